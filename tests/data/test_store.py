from __future__ import annotations

import json

import pytest

from jaxrecipes.data.prepare import prepare
from jaxrecipes.data.sources import SourceSpec
from jaxrecipes.data.store import explain_miss, open_prepared
from jaxrecipes.errors import DataError


@pytest.fixture
def folder(tmp_path, tokenizer):
    corpus = tmp_path / "a.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"the cat {i} sat"}) + "\n" for i in range(50)))
    prepare(
        tmp_path / "set",
        SourceSpec(str(corpus)),
        tokenizer,
        tokenizer_fingerprint="f1",
        vocab_size=300,
        length=16,
        overlong="split",
    )
    return tmp_path / "set"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def edit_manifest(change):
    def apply(path):
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return apply


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("rows-00000.array_record", truncate, "rows-00000.array_record: the file is truncated"),
        ("rows-00000.array_record", flip, "rows-00000.array_record: the file is corrupt"),
        (
            "rows-00000.array_record",
            lambda p: p.unlink(),
            "rows-00000.array_record: the file is missing",
        ),
        ("documents.jsonl", flip, "documents.jsonl: the file is corrupt"),
        ("manifest.json", truncate, "manifest.json: this is not JSON"),
        ("manifest.json", lambda p: p.unlink(), "there is no manifest.json"),
        ("manifest.json", edit_manifest(lambda m: m.pop("shards")), "an entry is missing or wrong"),
        ("manifest.json", edit_manifest(lambda m: m.update(rows=3)), "do not add up"),
        ("manifest.json", edit_manifest(lambda m: m.update(schema_version=9)), "schema version 9"),
        ("manifest.json", lambda p: p.write_text("[]"), "schema version None"),
    ],
)
def test_damage_is_named(folder, name, damage, message):
    damage(folder / name)
    with pytest.raises(DataError) as caught:
        open_prepared(folder)
    assert message in str(caught.value)
    assert "repare" in str(caught.value) or "run it again" in str(caught.value)


def test_another_tokenizer_or_a_smaller_vocabulary_is_refused(folder):
    largest = open_prepared(folder).manifest["max_token_id"]
    assert len(open_prepared(folder, vocab_size=largest + 1, tokenizer_fingerprint="f1")) > 0
    with pytest.raises(DataError, match=rf"token id {largest}.*vocabulary has {largest} entries"):
        open_prepared(folder, vocab_size=largest)
    with pytest.raises(DataError, match="another tokenizer"):
        open_prepared(folder, tokenizer_fingerprint="f2")


def test_rows_outside_of_the_set_are_index_errors(folder):
    prepared = open_prepared(folder)
    for index in (-1, len(prepared)):
        with pytest.raises(IndexError, match="in .*set"):
            prepared[index]


def test_a_shard_damaged_after_opening_is_a_data_error(folder):
    prepared = open_prepared(folder)
    shard = folder / "rows-00000.array_record"
    shard.write_bytes(b"\x00" * shard.stat().st_size)
    with pytest.raises(DataError, match=r"rows-00000.array_record: row 0 cannot be read"):
        prepared[0]


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="no prepared set"):
        open_prepared(tmp_path / "nothing")


def test_explain_lists_what_is_new_gone_and_changed():
    old = {"source": {"file a": "1", "file b": "2"}, "options": {"length": "8"}}
    new = {"source": {"file a": "3", "file c": "2"}, "options": {"length": "8"}}
    assert explain_miss(old, new) == [
        "source: file a changed from 1 to 3",
        "source: file b is gone",
        "source: file c is new (2)",
    ]
