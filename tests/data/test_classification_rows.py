"""Labelled rows: what is read, how classes are numbered, and what is refused where."""

import json

import pytest

from jaxrecipes.data.classification_rows import LabelMap, read_labelled
from jaxrecipes.data.sources import SourceSpec
from jaxrecipes.errors import DataError


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(text, label):
    return {"text": text, "label": label}


def test_texts_and_pairs_are_read(tmp_path):
    single = read_labelled(write(tmp_path / "a.jsonl", row("the cat", "b"), row("a dog", "a")))
    assert [example.texts for example in single] == [("the cat",), ("a dog",)]
    pairs = read_labelled(
        write(tmp_path / "b.jsonl", {"sentence1": "one", "sentence2": "two", "label": 0})
    )
    assert pairs[0].texts == ("one", "two")
    mapped = SourceSpec(
        str(write(tmp_path / "c.jsonl", {"body": "one", "class": "x"})),
        columns={"text": "body", "label": "class"},
    )
    assert read_labelled(mapped)[0].label == "x"


def test_labels_are_numbered_in_order_and_saved(tmp_path):
    texts = write(tmp_path / "a.jsonl", row("one", "zebra"), row("two", "ape"), row("x", "zebra"))
    examples = read_labelled(texts)
    labels = LabelMap.of_training(examples)
    assert labels.names == ("ape", "zebra")
    assert labels.numbers(examples) == [1, 0, 1]
    labels.save(tmp_path / "labels.json")
    assert LabelMap.load(tmp_path / "labels.json") == labels
    numbers = write(tmp_path / "n.jsonl", *(row(f"text {label}", label) for label in (10, 9, 2)))
    assert LabelMap.of_training(read_labelled(numbers)).names == ("2", "9", "10")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("one", "a"), row("  ", "b")], r"a\.jsonl:2: a text is empty"),
        (
            [{"sentence1": "one", "sentence2": "", "label": "a"}],
            r"a\.jsonl:1: a text is empty",
        ),
        ([{"text": "one", "label": 1.5}], r"a\.jsonl:1.*expected a label"),
        ([row("one", "a"), {"text": "two"}], r"a\.jsonl:2.*label"),
        ([{"prompt": "one", "completion": "two"}], "prompt_completion; expected labelled"),
        ([], "a.jsonl"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_labelled(write(tmp_path / "a.jsonl", *rows))


def test_wrong_labels_are_named(tmp_path):
    one = read_labelled(write(tmp_path / "a.jsonl", row("one", "a"), row("two", "a")))
    with pytest.raises(DataError, match=r"a\.jsonl:1 and all 2 rows have the label 'a'"):
        LabelMap.of_training(one)
    dev = read_labelled(write(tmp_path / "dev.jsonl", row("one", "a"), row("two", "c")))
    with pytest.raises(DataError, match=r"dev\.jsonl:2: the label 'c'.*a, b"):
        LabelMap(("a", "b")).numbers(dev)
    (tmp_path / "labels.json").write_text("{}")
    with pytest.raises(DataError, match="schema version"):
        LabelMap.load(tmp_path / "labels.json")
