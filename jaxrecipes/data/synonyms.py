"""Synonyms of English words: from an installed WordNet, or from a file of yours."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from jaxrecipes.errors import DataError

WORDNET = "wordnet"
_PARTS = ("noun", "verb", "adj", "adv")
Synonyms = Mapping[str, tuple[str, ...]]


def read_synonyms(source: str) -> Synonyms:
    """Reads synonyms.

    Args:
        source: `wordnet` for an installed one; a folder with WordNet's `data.noun`, `data.verb`,
            `data.adj` and `data.adv`; or a JSONL file with rows such as `{"word": "big",
            "synonyms": ["large", "great"]}`.

    Returns:
        Word in lower case -> its synonyms, sorted, without itself.

    Raises:
        DataError: There is none, or it cannot be read; says where one may come from.
    """
    if source == WORDNET:
        return read_wordnet(find_wordnet())
    path = Path(source)
    return read_wordnet(path) if path.is_dir() else _read_file(path)


def find_wordnet() -> Path:
    """Returns the folder of an installed WordNet.

    It is looked for where WNSEARCHDIR and WNHOME say, where Debian's package wordnet-base puts it,
    and where NLTK's corpora are (NLTK_DATA, nltk_data beside Python and at home). Nothing is
    downloaded.

    Raises:
        DataError: There is none.
    """
    places = [Path(os.environ[name]) for name in ("WNSEARCHDIR",) if name in os.environ]
    places += [Path(os.environ[name]) / "dict" for name in ("WNHOME",) if name in os.environ]
    places += [Path("/usr/share/wordnet"), Path("/usr/local/share/wordnet")]
    data = [Path(text) for text in os.environ.get("NLTK_DATA", "").split(os.pathsep) if text]
    data += [Path(sys.prefix) / "nltk_data", Path(sys.prefix) / "share" / "nltk_data"]
    data += [Path.home() / "nltk_data", Path("/usr/share/nltk_data")]
    places += [folder / "corpora" / "wordnet" for folder in data]
    for place in places:
        if all((place / f"data.{part}").is_file() for part in _PARTS):
            return place
    raise DataError(
        "no WordNet is installed: none of the usual folders has data.noun, data.verb, data.adj and "
        "data.adv. Install one (Debian: wordnet-base), name its folder in WNSEARCHDIR, or give a "
        'JSONL file with rows such as {"word": "big", "synonyms": ["large", "great"]}'
    )


def read_wordnet(folder: Path) -> Synonyms:
    """Reads the synonyms of WordNet's database files.

    Words of one synset are synonyms. Terms of several words are written with spaces.

    Args:
        folder: It has `data.noun`, `data.verb`, `data.adj` and `data.adv` (format `wndb(5WN)`).

    Raises:
        DataError: A file is missing or damaged; names file and line.
    """
    found: dict[str, set[str]] = {}
    for part in _PARTS:
        path = folder / f"data.{part}"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); expected WordNet's file") from None
        for number, line in enumerate(lines, start=1):
            if not line or line.startswith(" "):  # the licence
                continue
            fields = line.split(" ")
            try:
                count = int(fields[3], 16)
                names = [_plain(fields[4 + 2 * place]) for place in range(count)]
            except (IndexError, ValueError):
                raise DataError(
                    f"{path}:{number}: no synset of WordNet; expected offset, file, type, number "
                    "of words, words"
                ) from None
            for name in names:
                found.setdefault(name, set()).update(names)
    return _sorted(found)


def _plain(name: str) -> str:
    # Adjectives may carry where they stand: galore(ip).
    return name.partition("(")[0].replace("_", " ").replace("-", " ").lower()


def _read_file(path: Path) -> Synonyms:
    found: dict[str, set[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected a JSONL file") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            word, others = row["word"], row["synonyms"]
        except (ValueError, KeyError, TypeError):
            word, others = None, None
        listed = isinstance(others, list) and all(isinstance(one, str) for one in others)
        if not isinstance(word, str) or not isinstance(others, list) or not listed:
            raise DataError(
                f'{path}:{number}: expected a row such as {{"word": "big", "synonyms": '
                '["large", "great"]}'
            )
        found.setdefault(word.lower(), set()).update(one.lower() for one in others)
    if not found:
        raise DataError(f"{path}: there are no synonyms in it")
    return _sorted(found)


def _sorted(found: Mapping[str, set[str]]) -> Synonyms:
    pairs = {word: tuple(sorted(others - {word})) for word, others in found.items()}
    return {word: others for word, others in sorted(pairs.items()) if others}
