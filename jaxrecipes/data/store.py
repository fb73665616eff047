"""Prepared sets: ArrayRecord shards of packed rows, the documents in them, and a manifest.

A folder holds ``manifest.json``, ``documents.jsonl`` (one line a document: ``id``, ``bytes``,
``tokens``, ``rows``: a list of [row, offset in the document, tokens]) and
``rows-00000.array_record`` and so on. The manifest is the commit mark: it is written last, and the
folder is renamed into place complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxrecipes.data.rows import Attend, Row, decode_row, row_arrays
from jaxrecipes.durable import hash_file, read_manifest
from jaxrecipes.errors import DataError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
DOCUMENTS = "documents.jsonl"


@dataclass(frozen=True)
class PreparedDocument:
    """One document of a prepared set.

    Attributes:
        id: The document's id in its source.
        bytes: UTF-8 bytes of the text in the set.
        tokens: Its tokens in the set, EOS included.
        rows: Where they are: (row, offset of the first token in the document, number of tokens).
    """

    id: str
    bytes: int
    tokens: int
    rows: tuple[tuple[int, int, int], ...]


class PreparedSet:
    """Random access to the rows of a prepared set; made by ``open_prepared`` or ``prepare``.

    Attributes:
        folder: Where the set is.
        manifest: The manifest; notable keys: ``rows``, ``documents``, ``tokens``,
            ``supervised_tokens``, ``bytes``, ``length``, ``attend``, ``vocab_size``, ``key``.
        reused: True where ``prepare`` found the set complete and did nothing.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], *, reused: bool = False) -> None:
        """Wraps a folder whose files were checked against ``manifest``."""
        self.folder = folder
        self.manifest = manifest
        self.reused = reused
        self._dtype = np.dtype(manifest["token_dtype"])

    @property
    def length(self) -> int:
        """Tokens a row."""
        return int(self.manifest["length"])

    @property
    def attend(self) -> Attend:
        """May a document see those before it in its row (``context``), or not (``document``)?"""
        return self.manifest["attend"]

    def __len__(self) -> int:
        """Returns the number of rows."""
        return int(self.manifest["rows"])

    def row(self, index: int) -> Row:
        """Returns one row without padding.

        Raises:
            IndexError: There is no such row.
            DataError: The shard that holds it cannot be read.
        """
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} in {self.folder}")
        try:
            return decode_row(self._source[index], self._dtype)
        except (RuntimeError, ValueError, OSError) as error:
            raise DataError(
                f"{self._shard_of(index)}: row {index} cannot be read ({error}); the shard was "
                "changed after it was opened. Prepare the set again (the same command does it)."
            ) from None

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns the arrays of one row, each [length]; see ``rows.row_arrays``."""
        return row_arrays(self.row(index), length=self.length, attend=self.attend)

    def rows(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Returns the arrays of several rows, each [len(indices), length]."""
        items = [self[index] for index in indices]
        return {key: np.stack([item[key] for item in items]) for key in items[0]}

    def document_ids(self, index: int) -> list[tuple[str, int, int]]:
        """Returns (document id, offset of the first token in it, tokens) a segment of a row."""
        return [
            (self.documents[document].id, offset, tokens)
            for document, offset, tokens in self.row(index).segments.tolist()
        ]

    @cached_property
    def documents(self) -> list[PreparedDocument]:
        """The documents, in the order that ``document_index`` counts; read at the first use."""
        with (self.folder / DOCUMENTS).open("rb") as file:
            return [
                PreparedDocument(
                    line["id"], line["bytes"], line["tokens"], tuple(map(tuple, line["rows"]))
                )
                for line in map(json.loads, file)
            ]

    @cached_property
    def _source(self) -> Any:
        # Imported late: the command line opens manifests without reading rows.
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        # "path[0:rows]" is the library's own form; it spares opening every shard to count its rows.
        return ArrayRecordDataSource(
            [
                f"{self.folder / shard['name']}[0:{shard['rows']}]"
                for shard in self.manifest["shards"]
            ]
        )

    def _shard_of(self, index: int) -> Path:
        ends = np.cumsum([shard["rows"] for shard in self.manifest["shards"]])
        return (
            self.folder
            / self.manifest["shards"][int(np.searchsorted(ends, index, "right"))]["name"]
        )


def open_prepared(
    folder: str | Path,
    *,
    vocab_size: int | None = None,
    tokenizer_fingerprint: str | None = None,
    verify: bool = True,
) -> PreparedSet:
    """Opens a prepared set.

    Args:
        folder: Where it is.
        vocab_size: The model's vocabulary; every token id must be below it.
        tokenizer_fingerprint: The model's tokenizer; must be the one the set was made with.
        verify: Hash every file; otherwise only sizes are compared.

    Raises:
        DataError: The set is missing, incomplete, damaged (the message names the file), or was made
            for another tokenizer or vocabulary.
    """
    folder = Path(folder)
    manifest = read_set_manifest(folder)
    problem = find_damage(folder, manifest, verify=verify)
    if problem is not None:
        raise DataError(f"{problem} Prepare the set again (the same command does it).")
    if vocab_size is not None and manifest["max_token_id"] >= vocab_size:
        raise DataError(
            f"{folder}: the set holds the token id {manifest['max_token_id']}, but the model's "
            f"vocabulary has {vocab_size} entries. It was made for a vocabulary of "
            f"{manifest['vocab_size']}: prepare it with this model's tokenizer."
        )
    made_with = manifest["tokenizer_fingerprint"]
    if tokenizer_fingerprint is not None and made_with != tokenizer_fingerprint:
        raise DataError(
            f"{folder}: the set was made with another tokenizer (fingerprint {made_with[:12]}, the "
            f"model's is {tokenizer_fingerprint[:12]}). Prepare it with this model's tokenizer."
        )
    return PreparedSet(folder, manifest)


def read_set_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a prepared set.

    Raises:
        DataError: There is none, it is no JSON, or of another schema version.
    """
    return read_manifest(
        folder / MANIFEST,
        version=SCHEMA_VERSION,
        missing=f"no prepared set (there is no {MANIFEST}); expected a folder that `prepare` "
        "wrote. Its preparation may not have ended: run it again.",
        again="Prepare the set again.",
    )


def find_damage(folder: Path, manifest: Mapping[str, Any], *, verify: bool) -> str | None:
    """Returns what is wrong with the files of a prepared set, or None."""
    try:
        entries = [*manifest["shards"], manifest["documents_file"]]
        expected = [(str(e["name"]), int(e["bytes"]), str(e["sha256"])) for e in entries]
        if sum(int(shard["rows"]) for shard in manifest["shards"]) != manifest["rows"]:
            return f"{folder / MANIFEST}: the rows of the shards do not add up."
    except (KeyError, TypeError, ValueError) as error:
        return f"{folder / MANIFEST}: an entry is missing or wrong ({error!r})."
    for name, size, digest in expected:
        path = folder / name
        if not path.is_file():
            return f"{path}: the file is missing; the manifest lists it."
        found = path.stat().st_size
        if found != size:
            state = "truncated" if found < size else "too long"
            return f"{path}: the file is {state}: {found} bytes, the manifest says {size}."
        if verify and hash_file(path) != digest:
            return f"{path}: the file is corrupt: its SHA-256 is not the manifest's."
    return None


def set_key(parts: Mapping[str, Mapping[str, str]]) -> str:
    """Returns the key of a set: the hash of everything that shapes it."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def explain_miss(
    old: Mapping[str, Mapping[str, str]], new: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Lists in words what differs between the parts of two keys (``manifest['key_parts']``)."""
    reasons = []
    for section in sorted({*old, *new}):
        before, after = old.get(section, {}), new.get(section, {})
        for name in sorted({*before, *after}):
            if name not in before:
                reasons.append(f"{section}: {name} is new ({_short(after[name])})")
            elif name not in after:
                reasons.append(f"{section}: {name} is gone")
            elif before[name] != after[name]:
                reasons.append(
                    f"{section}: {name} changed from {_short(before[name])} to "
                    f"{_short(after[name])}"
                )
    return reasons


def _short(value: str) -> str:
    return value if len(value) <= 24 else f"{value[:12]}..."
