"""Texts with their places, and the guard against texts of dev and test rows."""

from __future__ import annotations

import json

import pytest

from jaxrecipes.data.classification_rows import read_labelled
from jaxrecipes.data.docstring_task import SPLITS
from jaxrecipes.data.plain_texts import (
    PlainText,
    find_overlaps,
    read_plain_texts,
    refuse_overlaps,
    without_labels,
)
from jaxrecipes.data.sources import SourceSpec
from jaxrecipes.errors import ConfigError, DataError


def text(*texts: str, where: str = "a:1") -> PlainText:
    return PlainText(texts, where)


def test_texts_know_file_and_line_also_where_rows_have_ids(tmp_path):
    path = tmp_path / "pool.jsonl"
    rows = [{"id": "x", "text": "one"}, {"id": "y", "text": " "}, {"id": "z", "text": "three"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_plain_texts(SourceSpec(str(path)))
    assert [one.texts for one in found] == [("one",), ("three",)]
    assert [one.where for one in found] == [f"{path}:1", f"{path}:3"]
    assert len(read_plain_texts(SourceSpec(str(path)), 1)) == 1
    path.write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="there are no texts"):
        read_plain_texts(SourceSpec(str(path)))


@pytest.mark.parametrize(
    ("read", "held_out", "found"),
    [
        (text("A  cat\nsat."), text("a cat SAT."), True),
        (text("a cat sat"), text("a cat sat."), False),
        (text("one", "two"), text("One", "TWO"), True),
        (text("one"), text("one", "two"), True),  # a document that is one text of a pair
        (text("one", "other"), text("one", "two"), False),  # premises are shared by right
        (text("one", "two"), text("two", "one"), False),
    ],
)
def test_texts_are_equal_up_to_case_and_white_space(read, held_out, found):
    assert bool(find_overlaps([read], [held_out])) is found


def test_the_error_says_how_many_and_where_and_what_to_do():
    read = [text("Fine.", where="p:1"), text("Bad  one", where="p:2"), text("bad", where="p:3")]
    held_out = [text("bad one", where="test.jsonl:7"), text("Bad", where="dev.jsonl:2")]
    with pytest.raises(DataError) as caught:
        refuse_overlaps(find_overlaps(read, held_out), "dapt")
    message = str(caught.value)
    assert "phase dapt would read 2 texts" in message and "'Bad  one'" in message
    assert "p:2" in message and "test.jsonl:7" in message and "transductive: true" in message
    refuse_overlaps(find_overlaps(read[:1], held_out), "dapt")


def test_docstrings_are_a_task_whose_splits_share_no_name():
    rows = {
        split: read_labelled(SourceSpec("docstrings:email,logging,unittest", split=split))
        for split in SPLITS
    }
    assert {row.label for row in rows["train"]} == {"email", "logging", "unittest"}
    names = [{row.group for row in of_split} for of_split in rows.values()]
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
    assert not find_overlaps(without_labels(rows["train"]), without_labels(rows["test"]))
    row = rows["train"][0]
    assert row.id not in row.texts[0] and row.where == f"docstring of {row.id}"
    with pytest.raises(ConfigError, match="split is 'all'"):
        read_labelled(SourceSpec("docstrings:email", split="all"))
