from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxrecipes.data.prepare import prepare
from jaxrecipes.data.sources import SourceSpec
from jaxrecipes.data.split import Split
from jaxrecipes.data.store import open_prepared
from jaxrecipes.errors import ConfigError, DataError, JaxrecipesError


def write_corpus(path: Path, *, count: int = 120) -> SourceSpec:
    generator = np.random.default_rng(0)
    words = ["cat", "mat", "größer", "other", "thing", "日本", "sat"]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = " ".join(generator.choice(words, int(generator.integers(1, 40))))
            file.write(json.dumps({"id": f"d{number}", "text": f"{number} {text}"}) + "\n")
    return SourceSpec(str(path))


def run(folder, source, tokenizer, **options):
    options = {"length": 32, "overlong": "split", "vocab_size": 300, "block_tokens": 700} | options
    return prepare(folder, source, tokenizer, tokenizer_fingerprint="f1", **options)


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture
def source(tmp_path):
    return write_corpus(tmp_path / "corpus.jsonl")


def test_the_prepared_set_holds_every_document_exactly(tmp_path, source, tokenizer):
    prepared = run(tmp_path / "set", source, tokenizer)
    texts = {
        row["id"]: row["text"]
        for row in map(json.loads, Path(source.reference).read_text().splitlines())
    }
    manifest = prepared.manifest
    assert len(manifest["shards"]) > 3  # several blocks, so that numbering across them is tested
    assert [d.id for d in prepared.documents] == list(texts)
    for number, document in enumerate(prepared.documents):
        assert document.bytes == len(texts[document.id].encode())
        tokens: list[int] = []
        for row, offset, count in document.rows:
            assert offset == len(tokens)
            arrays = prepared[row]
            here = arrays["token_ids"][arrays["document_index"] == number]
            assert len(here) == count
            tokens.extend(here.tolist())
            assert (document.id, offset, count) in prepared.document_ids(row)
        assert len(tokens) == document.tokens
        assert tokens[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(tokens[:-1]) == texts[document.id]
    everything = prepared.rows(range(len(prepared)))
    assert manifest["tokens"] == int((everything["segment_ids"] > 0).sum())
    assert manifest["supervised_tokens"] == int(everything["loss_mask"].sum())
    assert manifest["padding_tokens"] == int((everything["segment_ids"] == 0).sum())
    assert manifest["max_token_id"] == int(everything["token_ids"].max())
    assert manifest["max_segments"] == int(everything["segment_ids"].max())
    assert manifest["bytes"] == sum(len(text.encode()) for text in texts.values())


def test_it_is_skipped_when_nothing_changed_and_says_why_when_something_did(
    tmp_path, source, tokenizer
):
    folder = tmp_path / "set"
    assert not run(folder, source, tokenizer).reused
    before = contents(folder)
    assert run(folder, source, tokenizer).reused
    said: list[str] = []
    assert not run(folder, source, tokenizer, length=48, log=said.append).reused
    assert "options: length changed from 32 to 48" in said[0]
    said.clear()
    write_corpus(tmp_path / "corpus.jsonl", count=121)
    assert not run(folder, source, tokenizer, log=said.append).reused
    assert "source: file corpus.jsonl changed" in said[0]
    write_corpus(tmp_path / "corpus.jsonl", count=120)
    run(folder, source, tokenizer)
    assert contents(folder) == before
    said.clear()
    prepare(
        folder,
        source,
        tokenizer,
        tokenizer_fingerprint="f2",
        vocab_size=300,
        length=32,
        overlong="split",
        block_tokens=700,
        log=said.append,
    )
    assert "tokenizer: fingerprint changed from f1 to f2" in said[0]


def test_moving_the_corpus_or_the_set_does_not_change_it(tmp_path, source, tokenizer):
    run(tmp_path / "one", source, tokenizer)
    (tmp_path / "elsewhere").mkdir()
    moved = write_corpus(tmp_path / "elsewhere" / "corpus.jsonl")
    run(tmp_path / "two", moved, tokenizer)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    (tmp_path / "one").rename(tmp_path / "three")
    assert len(open_prepared(tmp_path / "three")) > 0


def test_train_and_held_out_share_nothing_and_miss_nothing(tmp_path, source, tokenizer):
    parts = [
        run(tmp_path / part, source, tokenizer, split=Split(part, 0.2))
        for part in ("train", "held_out")
    ]
    ids = [{d.id for d in part.documents} for part in parts]
    assert not ids[0] & ids[1]
    assert len(ids[0] | ids[1]) == 120
    limited = run(
        tmp_path / "small", source, tokenizer, split=Split("held_out", 0.2), limit_documents=5
    )
    assert {d.id for d in limited.documents} < ids[1]
    assert len(limited.documents) == 5


def test_a_limit_chooses_the_same_documents_in_any_order(tmp_path, source, tokenizer):
    lines = Path(source.reference).read_text().splitlines(keepends=True)
    reversed_path = tmp_path / "reversed.jsonl"
    reversed_path.write_text("".join(reversed(lines)))
    chosen = [
        [d.id for d in run(tmp_path / name, spec, tokenizer, limit_documents=9).documents]
        for name, spec in (("a", source), ("b", SourceSpec(str(reversed_path))))
    ]
    assert len(chosen[0]) == 9
    assert chosen[0] == chosen[1][::-1]


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_what_is_dropped_or_truncated_is_counted(tmp_path, source, tokenizer, overlong):
    prepared = run(tmp_path / "set", source, tokenizer, overlong=overlong)
    changed = next(iter(prepared.manifest["overlong"].values()))
    assert changed["documents"] > 10 and len(changed["examples"]) == 5
    assert max(d.tokens for d in prepared.documents) <= 32
    texts = {
        row["id"]: row["text"]
        for row in map(json.loads, Path(source.reference).read_text().splitlines())
    }
    dropped = prepared.manifest["documents_read"] - len(prepared.documents)
    assert dropped == (changed["documents"] if overlong == "drop" else 0)
    for document in prepared.documents:
        row, _, _ = document.rows[0]
        arrays = prepared[row]
        index = prepared.documents.index(document)
        ids = arrays["token_ids"][arrays["document_index"] == index].tolist()
        kept = tokenizer.decode(ids, skip_special_tokens=True).rstrip("\N{REPLACEMENT CHARACTER}")
        assert texts[document.id].startswith(kept)
        assert 0 <= document.bytes - len(kept.encode()) <= 3


def test_what_the_source_left_out_is_in_the_manifest_without_its_place(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "the cat"}\n{"text": " "}\n{"text": "on the mat"}\n')
    for limit in (None, 1):
        folder = tmp_path / f"set-{limit}"
        prepared = run(folder, SourceSpec(str(path)), tokenizer, limit_documents=limit)
        left_out = prepared.manifest["left_out_of_source"]
        assert left_out == {"empty": {"documents": 1, "examples": ["a.jsonl:2"]}}


def test_refusals(tmp_path, source, tokenizer):
    with pytest.raises(DataError, match=r"'d\d+' has \d+ tokens, more than the row length 32"):
        run(tmp_path / "a", source, tokenizer, overlong="error")
    with pytest.raises(ConfigError, match="overlong"):
        run(tmp_path / "a", source, tokenizer, overlong="cut")
    with pytest.raises(DataError, match="vocabulary has 100"):
        run(tmp_path / "a", source, tokenizer, vocab_size=100)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear")
    with pytest.raises(DataError, match="not empty and holds no prepared set"):
        run(tmp_path / "mine", source, tokenizer)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "dear"
    (tmp_path / "file").write_text("")
    with pytest.raises(JaxrecipesError, match="cannot be written"):
        run(tmp_path / "file" / "set", source, tokenizer)
    with pytest.raises(DataError, match="no document is left on the held_out side"):
        few = write_corpus(tmp_path / "few.jsonl", count=1)
        run(tmp_path / "b", few, tokenizer, split=Split("held_out", 1e-9))


def test_a_full_disk_is_one_message_and_leaves_no_set(tmp_path, source, tokenizer, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(JaxrecipesError, match="No space left on device.*df -h"):
            run(tmp_path / "set", source, tokenizer)
    assert not (tmp_path / "set").exists()
    assert len(run(tmp_path / "set", source, tokenizer)) > 0


def test_a_damaged_set_is_prepared_again(tmp_path, source, tokenizer):
    folder = tmp_path / "set"
    run(folder, source, tokenizer)
    before = contents(folder)
    shard = folder / "rows-00001.array_record"
    shard.write_bytes(shard.read_bytes()[:-5])
    said: list[str] = []
    assert not run(folder, source, tokenizer, log=said.append).reused
    assert "rows-00001.array_record: the file is truncated" in said[0]
    assert contents(folder) == before


# A process that dies by SIGKILL just before its n-th step that touches the disk for good. The
# tokenizer is a few lines of Python, so that the process starts fast.
KILLED_PROGRAM = """
import os, pathlib, shutil, signal, sys
from jaxrecipes.data.prepare import prepare
from jaxrecipes.data.sources import SourceSpec

class Letters:
    eos_token_id, bos_token_id = 0, None
    def __call__(self, texts, **options):
        return {"input_ids": [[1 + byte for byte in text.encode()] for text in texts]}

steps = int(sys.argv[3])
def counted(function):
    def call(*arguments, **options):
        global steps
        steps -= 1
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

os.fsync = counted(os.fsync)
pathlib.Path.rename = counted(pathlib.Path.rename)
pathlib.Path.unlink = counted(pathlib.Path.unlink)
shutil.rmtree = counted(shutil.rmtree)
prepare(sys.argv[1], SourceSpec(sys.argv[2]), Letters(), tokenizer_fingerprint="letters",
        vocab_size=257, length=int(sys.argv[4]), overlong="split", block_tokens=8000, log=print)
"""


def start(folder, source, steps, length=64):
    return subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED_PROGRAM,
            str(folder),
            source.reference,
            str(steps),
            str(length),
        ],
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("replacing", [False, pytest.param(True, marks=pytest.mark.long)])
def test_killed_at_any_step_and_rerun_equals_never_killed(tmp_path, source, replacing):
    assert start(tmp_path / "never", source, 0).returncode == 0
    wanted = contents(tmp_path / "never")
    resumed = 0
    for step in range(1, 100):
        folder = tmp_path / f"killed-{step}"
        if replacing:  # an older set with another key stands there
            assert start(folder, source, 0, length=32).returncode == 0
        killed = start(folder, source, step)
        if killed.returncode == 0:
            break
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        rerun = start(folder, source, 0)
        assert rerun.returncode == 0, rerun.stderr
        resumed += "going on after" in rerun.stdout
        assert contents(folder) == wanted, step
        assert [p.name for p in tmp_path.glob(f".killed-{step}.*")] == [f".killed-{step}.lock"]
    assert step > 15  # the loop has visited every step of a whole preparation
    assert resumed > 3


@pytest.mark.slow
def test_two_processes_at_once_make_one_good_set(tmp_path, source):
    assert start(tmp_path / "alone", source, 0).returncode == 0
    command = [
        sys.executable,
        "-c",
        KILLED_PROGRAM,
        str(tmp_path / "set"),
        source.reference,
        "0",
        "64",
    ]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert contents(tmp_path / "set") == contents(tmp_path / "alone")


def test_the_whole_path_on_real_text(shared_data, tmp_path, tokenizer):
    spec = SourceSpec(
        str(shared_data / "newsgroups20" / "documents.jsonl"), columns={"text": ["title", "text"]}
    )
    prepared = run(
        tmp_path / "set", spec, tokenizer, length=512, attend="context", block_tokens=2**24
    )
    assert len(prepared.documents) == 2540
    assert prepared.manifest["padding_tokens"] < 512
    assert set(np.unique(prepared[3]["segment_ids"])) == {1}
