"""EDA's operations, and the synonyms that they draw from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrecipes.data.eda import STOP_WORDS, EdaOptions, clean, eda
from jaxrecipes.data.synonyms import find_wordnet, read_synonyms, read_wordnet
from jaxrecipes.errors import ConfigError, DataError

SYNONYMS = {"big": ("great", "large"), "dog": ("hound", "man s best friend"), "runs": ("sprints",)}
TEXT = "The big dog, it's said, runs over the hill!"
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(TEXT.split())).map(" ".join))


@given(TEXTS, st.integers(1, 20), st.integers(0, 5))
def test_the_number_asked_for_and_the_original_last(text: str, number: int, seed: int):
    found = eda(text, SYNONYMS, EdaOptions(new_texts=number), seed=seed)
    assert len(found) == number + 1
    assert found[-1] == (clean(text) or text)
    assert found == eda(text, SYNONYMS, EdaOptions(new_texts=number), seed=seed)
    if clean(text):
        assert all(wording.split() for wording in found)


@given(TEXTS.filter(clean), st.integers(0, 5))
def test_each_operation_changes_what_its_name_says(text: str, seed: int):
    words = clean(text).split()
    only = {"synonyms": 0.0, "insertions": 0.0, "swaps": 0.0, "deletions": 0.0}

    def wordings(**share: float) -> list[Counter[str]]:
        options = EdaOptions(**{**only, **share}, new_texts=4)
        return [Counter(one.split()) for one in eda(text, SYNONYMS, options, seed=seed)[:-1]]

    before = Counter(words)
    assert all(found == before for found in wordings(swaps=0.3))
    assert all(found <= before and found for found in wordings(deletions=0.4))
    assert all(found >= before for found in wordings(insertions=0.2))
    for found in wordings(synonyms=1.0):
        changed = set(before - found)
        assert changed == set(words) & set(SYNONYMS) - STOP_WORDS


def test_another_process_draws_the_same():
    code = (
        "from jaxrecipes.data.eda import EdaOptions, eda\n"
        f"print(eda({TEXT!r}, {SYNONYMS!r}, EdaOptions(), seed=3))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert said == {f"{eda(TEXT, SYNONYMS, EdaOptions(), seed=3)}\n"}


def test_shares_out_of_range_are_errors():
    nothing = {"synonyms": 0.0, "insertions": 0.0, "swaps": 0.0, "deletions": 0.0}
    for wrong in (nothing, {"swaps": 1.5}, {"new_texts": 0}):
        with pytest.raises(ConfigError, match="eda"):
            EdaOptions(**wrong)


def write_wordnet(folder: Path) -> Path:
    folder.mkdir(parents=True)
    lines = {
        "noun": "  1 the licence\n00001740 03 n 02 dog 0 domestic_dog 0 001 @ 0001 n 0000 | pet\n",
        "verb": "00001740 29 v 02 run 0 sprint 1 000 | go fast\n",
        "adj": "00001740 00 a 03 big 0 large(p) 0 great 0 000 | of size\n",
        "adv": "00001740 02 r 01 here 0 000 | in this place\n",
    }
    for part, text in lines.items():
        (folder / f"data.{part}").write_text(text)
    return folder


def test_synonyms_of_wordnet_and_of_a_file(tmp_path, monkeypatch):
    folder = write_wordnet(tmp_path / "data" / "corpora" / "wordnet")
    expected = {
        "big": ("great", "large"),
        "dog": ("domestic dog",),
        "domestic dog": ("dog",),
        "great": ("big", "large"),
        "large": ("big", "great"),
        "run": ("sprint",),
        "sprint": ("run",),
    }
    assert read_wordnet(folder) == expected
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "data"))
    assert read_synonyms("wordnet") == expected == read_synonyms(str(folder))
    path = tmp_path / "mine.jsonl"
    path.write_text('{"word": "Big", "synonyms": ["huge", "big"]}\n\n')
    assert read_synonyms(str(path)) == {"big": ("huge",)}
    path.write_text('{"word": "big"}\n')
    with pytest.raises(DataError, match=r"mine.jsonl:1: expected a row such as"):
        read_synonyms(str(path))
    (folder / "data.adv").write_text("nonsense\n")
    with pytest.raises(DataError, match=r"data.adv:1: no synset"):
        read_wordnet(folder)


def test_without_a_wordnet_the_way_to_one_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    monkeypatch.delenv("WNSEARCHDIR", raising=False)
    try:
        find_wordnet()
    except DataError as error:
        assert "wordnet-base" in str(error) and "WNSEARCHDIR" in str(error)
    else:
        pytest.skip("this machine has a WordNet")
