"""Supervised examples in rows: the policy for long ones, packing, the prepared set, the loss."""

from __future__ import annotations

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrecipes.data.examples import Completion, Conversation
from jaxrecipes.data.pack import pack
from jaxrecipes.data.prepare import prepare
from jaxrecipes.data.preview import preview_source
from jaxrecipes.data.rows import row_arrays
from jaxrecipes.data.sources import SourceSpec
from jaxrecipes.data.store import PreparedSet, open_prepared
from jaxrecipes.data.tokenize import TokenizedDocument
from jaxrecipes.data.tokenize_examples import (
    NOTHING_LEFT,
    ExampleTokenizer,
    Supervision,
    tokenize_examples,
)
from jaxrecipes.errors import ConfigError, DataError
from tests.data.chat_templates import CASES, build_tokenizer
from tests.tiny import tiny_config, tiny_params, trainer

TOKENIZER = build_tokenizer(CASES["mistral"])
VOCABULARY = len(TOKENIZER)


def chats(number: int, seed: int = 0) -> list[Conversation]:
    generator = np.random.default_rng(seed)

    def words() -> str:
        return " ".join(generator.choice(["cat", "mat", "sat", "thing"], generator.integers(1, 5)))

    return [
        Conversation(
            f"c{at}",
            f"f:{at}",
            tuple(
                {"role": ("user", "assistant")[turn % 2], "content": words()}
                for turn in range(2 * int(generator.integers(1, 3)))
            ),
        )
        for at in range(number)
    ]


def tokenized(examples: Any, **options: Any) -> list[TokenizedDocument]:
    tokenizer = ExampleTokenizer(TOKENIZER, vocab_size=VOCABULARY)
    return list(tokenize_examples(examples, tokenizer, **options))


def long_chat(answer: str = "a b c d") -> Conversation:
    messages = ({"role": "user", "content": "x y z"}, {"role": "assistant", "content": answer})
    return Conversation("long", "f:1", messages)


def decoded(ids: np.ndarray) -> str:
    return TOKENIZER.decode(ids.tolist())


def test_what_happens_to_an_example_that_is_longer_than_a_row():
    whole = tokenized([long_chat()], length=100)[0]
    count = len(whole.token_ids)
    assert decoded(whole.token_ids) == "<s>[INST] x y z [/INST]a b c d</s>"
    assert whole.byte_count == len(decoded(whole.token_ids)) and whole.changes == ()
    with pytest.raises(DataError, match=rf"'long' has {count} tokens, more than .* {count - 2}"):
        tokenized([long_chat()], length=count - 2)
    (dropped,) = tokenized([long_chat()], length=count - 2, overlong="drop")
    assert len(dropped.token_ids) == 0 and dropped.changes == ("dropped as too long",)
    (left,) = tokenized([long_chat()], length=count - 2, overlong="truncate_left")
    assert left.token_ids.tolist() == [whole.token_ids[0], *whole.token_ids[3:]]
    assert left.supervised.tolist() == [False, *whole.supervised[3:]]
    assert left.changes == ("truncated (left)",)
    assert left.byte_count == len(decoded(left.token_ids[1:]))
    (right,) = tokenized([long_chat()], length=count - 2, overlong="truncate_right")
    assert right.token_ids.tolist() == whole.token_ids[:-2].tolist()
    assert right.byte_count == len(decoded(right.token_ids))
    # The prompt alone would be left: nothing to learn, so nothing is kept.
    prompt = int(np.flatnonzero(whole.supervised)[0])
    (empty,) = tokenized([long_chat()], length=prompt, overlong="truncate_right")
    assert len(empty.token_ids) == 0 and empty.changes == (NOTHING_LEFT,)


def test_an_example_whose_only_target_is_its_first_token_is_refused():
    tokenizer = build_tokenizer(CASES["chatml"])
    tokenizer.chat_template = "{% for m in messages %}{{ '' }}{% endfor %}"
    with pytest.raises(DataError, match="f:1: example 'long'"):
        ExampleTokenizer(tokenizer, vocab_size=len(tokenizer))(long_chat())
    # A single character has no token before it that could predict it; its end token has.
    example = ExampleTokenizer(tokenizer, vocab_size=len(tokenizer))
    assert example(Completion("c", "f:1", "", "a")).supervised.tolist() == [True, True]


def test_a_doubled_bos_and_a_foreign_vocabulary_are_refused():
    tokenizer = build_tokenizer(CASES["mistral"])
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    with pytest.raises(DataError, match="twice"):
        ExampleTokenizer(tokenizer, vocab_size=VOCABULARY)(long_chat())
    with pytest.raises(DataError, match="example 'long': token .* vocabulary has 20 entries"):
        ExampleTokenizer(TOKENIZER, vocab_size=20)(long_chat())


def rows_of(documents: list[TokenizedDocument], length: int, rows: int) -> dict[str, Any]:
    """Packs documents and pads with empty rows."""
    packed = [
        row_arrays(row, length=length, attend="document") for row in pack(documents, length=length)
    ]
    assert len(packed) <= rows
    batch = {key: np.stack([row[key] for row in packed]) for key in packed[0]}
    del batch["document_index"]
    missing = rows - len(packed)
    return {key: np.pad(value, ((0, missing), (0, 0))) for key, value in batch.items()}


def unpacked(documents: list[TokenizedDocument], length: int) -> dict[str, Any]:
    alone = [rows_of([document], length, 1) for document in documents]
    return {key: np.concatenate([one[key] for one in alone]) for key in alone[0]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", pytest.param("sliding", marks=pytest.mark.long)])
def test_loss_and_gradient_are_those_of_unpacked_examples_in_any_micro_batches(kind):
    """1 x 32, 8 x 4 and 32 x 1 (micro-batches x rows), packed and not: one and the same step."""
    length = 64
    documents = tokenized(chats(32), length=length)
    config = tiny_config(kind, 2, vocab_size=VOCABULARY)
    params = tiny_params(config)
    batches = [unpacked(documents, length), rows_of(documents, length, 32)]
    targets = sum(int(document.supervised[1:].sum()) for document in documents)
    found = []
    for micro_batches in (1, 8, 32):
        options = {"micro_batches": micro_batches, "compute_dtype": jnp.float32}
        step, state, frozen, _ = trainer(config, params, [(".*", True)], **options)
        for batch in batches:
            assert batch["token_ids"].shape == (32, length)
            metrics = step(state, frozen, batch)[1]
            found.append([float(metrics[name]) for name in ("loss", "gradient_norm")])
            assert int(metrics["supervised_tokens"]) == targets
    np.testing.assert_allclose(found, [found[0]] * len(found), rtol=1e-5)


def write(tmp_path, number: int = 40) -> SourceSpec:
    path = tmp_path / "chats.jsonl"
    lines = [
        {"id": chat.id, "messages": [dict(message) for message in chat.messages]}
        for chat in chats(number)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return SourceSpec(str(path))


def prepared(folder, source: SourceSpec, tokenizer: Any = TOKENIZER, **options: Any) -> PreparedSet:
    supervision = Supervision(**options.pop("supervision", {}))
    arguments = {"tokenizer_fingerprint": "t", "vocab_size": VOCABULARY, "length": 64, **options}
    return prepare(folder, source, tokenizer, supervision=supervision, **arguments)


def test_a_prepared_set_holds_every_mask(tmp_path):
    lines: list[str] = []
    found = prepared(tmp_path / "set", write(tmp_path), log=lines.append)
    documents = {document.id: document for document in tokenized(chats(40), length=64)}
    seen = set()
    for row in range(len(found)):
        arrays, start = found[row], 0
        for name, offset, tokens in found.document_ids(row):
            span = slice(start, start + tokens)
            assert offset == 0 and tokens == len(documents[name].token_ids)
            assert arrays["token_ids"][span].tolist() == documents[name].token_ids.tolist()
            wanted = [False, *documents[name].supervised[1:].tolist()]
            assert arrays["loss_mask"][span].tolist() == wanted
            start, seen = start + tokens, seen | {name}
    assert seen == set(documents)
    targets = sum(int(document.supervised[1:].sum()) for document in documents.values())
    assert found.manifest["supervised_tokens"] == targets
    assert found.manifest["shape"] == "chat"
    assert any("tokens are supervised" in line and "shape: chat" in line for line in lines)


def test_the_key_covers_template_turns_policy_and_shape(tmp_path):
    source = write(tmp_path)
    first = prepared(tmp_path / "set", source)
    assert prepared(tmp_path / "set", source).reused
    other = build_tokenizer(CASES["mistral"])
    other.chat_template += "{# changed #}"
    lines: list[str] = []
    changed = prepared(tmp_path / "set", source, other, log=lines.append)
    assert not changed.reused and any("supervision: chat_template changed" in one for one in lines)
    keys = {first.manifest["key"], changed.manifest["key"]}
    for options in ({"turns": "last"}, {"overlong": "drop"}):
        keys.add(prepared(tmp_path / "set", source, supervision=options).manifest["key"])
    assert len(keys) == 4


def test_documents_are_prepared_as_if_there_were_no_supervision(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"the cat {n}"}) + "\n" for n in range(9)))
    source, same = SourceSpec(str(path)), {}
    arguments: Any = {"tokenizer_fingerprint": "t", "vocab_size": VOCABULARY, "length": 16}
    prepare(tmp_path / "plain", source, TOKENIZER, **arguments)
    prepared(tmp_path / "auto", source, length=16)
    for name in ("plain", "auto"):
        folder = tmp_path / name
        same[name] = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    assert same["plain"] == same["auto"]
    assert "supervision" not in json.loads(same["plain"]["manifest.json"])["key_parts"]


def test_what_was_cut_or_dropped_is_counted_also_over_a_restart(tmp_path):
    source = write(tmp_path)
    whole = tokenized(chats(40), length=64)
    length = int(np.median([len(document.token_ids) for document in whole]))
    options: Any = {"length": length, "supervision": {"overlong": "truncate_right"}}
    found = prepared(tmp_path / "once", source, **options)
    expected = tokenized(chats(40), length=length, overlong="truncate_right")
    changes = [change for document in expected for change in document.changes]
    assert {reason: entry["documents"] for reason, entry in found.manifest["overlong"].items()} == {
        reason: changes.count(reason) for reason in set(changes)
    }
    assert all(document.tokens > 1 for document in found.documents)

    class Killed(Exception):
        pass

    def stop_after_two(line: str) -> None:
        stop_after_two.lines += 1  # type: ignore[attr-defined]
        if stop_after_two.lines == 2:  # type: ignore[attr-defined]
            raise Killed

    blocks = {**options, "block_tokens": 200}
    uninterrupted = prepared(tmp_path / "blocks", source, **blocks)
    stop_after_two.lines = 0  # type: ignore[attr-defined]
    with pytest.raises(Killed):
        prepared(tmp_path / "killed", source, log=stop_after_two, **blocks)
    resumed = prepared(tmp_path / "killed", source, **blocks)
    assert len(uninterrupted.manifest["shards"]) > 2
    assert resumed.manifest == uninterrupted.manifest
    assert open_prepared(tmp_path / "killed").manifest["supervised_tokens"] > 0


def test_supervised_examples_are_not_packed_to_see_each_other(tmp_path):
    with pytest.raises(ConfigError, match="must not see each other"):
        prepared(tmp_path / "set", write(tmp_path), attend="context")


def test_the_preview_shows_what_preparation_would_stop_at(tmp_path):
    source = write(tmp_path)
    found = preview_source(
        source, TOKENIZER, vocab_size=VOCABULARY, length=12, supervision=Supervision()
    )
    assert found.shape == "chat" and found.packed is None
    assert "more than the row length 12" in str(found.problem)
    assert len(found.lengths) == len(found.examples) == 40
