"""Heads against `transformers`, on packed rows, and what dropout depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrecipes.errors import ConfigError
from jaxrecipes.models import decoder
from jaxrecipes.models.dropout import Dropout, row_keys
from jaxrecipes.models.heads import (
    ClassificationHead,
    classify,
    family_head,
    init_classifier,
    last_states,
    mean_head,
)

LENGTHS = np.array([12, 7, 3])
POSITIONS = np.tile(np.arange(12, dtype=np.int32), (3, 1))
SEGMENTS = (LENGTHS[:, None] > POSITIONS).astype(np.int32)
STATES = np.random.default_rng(0).normal(size=(3, 12, 8)).astype(np.float32)


def test_a_decoder_is_scored_at_its_last_token_as_by_transformers():
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from jaxrecipes.models.config import FULL_ATTENTION, ModelConfig

    generator = np.random.default_rng(0)
    tokens = generator.integers(1, 50, (3, 12)) * SEGMENTS
    theirs_config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=5,
        pad_token_id=0,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(theirs_config).eval()
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    config = ModelConfig(
        family="llama",
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_dim=8,
        max_position_embeddings=2048,
        layer_types=(FULL_ATTENTION,) * 2,
        query_scale=8**-0.5,
        norm_epsilon=theirs_config.rms_norm_eps,
    )
    params = decoder.init_params(config, jax.random.key(0))
    params["embedding"]["table"] = weights["model.embed_tokens.weight"]
    params["final_norm"]["scale"] = weights["model.norm.weight"]
    for index in range(2):
        place, layer = f"model.layers.{index}", params["layers"][str(index)]
        for name in ("query", "key", "value", "output"):
            their = f"{place}.self_attn.{name[0]}_proj.weight"
            layer["attention"][name]["kernel"] = weights[their].T
        for name in ("gate", "up", "down"):
            layer["mlp"][name]["kernel"] = weights[f"{place}.mlp.{name}_proj.weight"].T
    with torch.no_grad():
        theirs = model(torch.tensor(tokens), attention_mask=torch.tensor(SEGMENTS)).logits
    states = decoder.hidden_states(config, params, tokens, SEGMENTS, POSITIONS)
    head = family_head("llama", 5)
    ours = classify(head, {"output": {"kernel": weights["score.weight"].T}}, states, SEGMENTS)
    np.testing.assert_allclose(ours[:, 0], theirs, atol=1e-5)


@pytest.mark.parametrize(
    "head", [family_head("bert", 3), family_head("roberta", 3), mean_head(3), family_head("x", 3)]
)
def test_texts_of_a_packed_row_are_classified_as_they_are_alone(head):
    params = init_classifier(head, 8, jax.random.key(0))
    packed = np.zeros((1, 24, 8), np.float32)
    segment_ids = np.zeros((1, 24), np.int32)
    start = 0
    for number, length in enumerate(LENGTHS, 1):
        packed[0, start : start + length] = STATES[number - 1, :length]
        segment_ids[0, start : start + length] = number
        start += length
    together = classify(head, params, packed, segment_ids, segments=3)
    np.testing.assert_allclose(
        together[0], classify(head, params, STATES, SEGMENTS)[:, 0], atol=1e-6
    )


def test_padding_does_not_count_and_a_missing_text_is_zero():
    changed = np.where(SEGMENTS[..., None] > 0, STATES, 1e6)
    for head in (mean_head(2), family_head("bert", 2), family_head("llama", 2)):
        params = init_classifier(head, 8, jax.random.key(0))
        np.testing.assert_array_equal(
            classify(head, params, changed, SEGMENTS), classify(head, params, STATES, SEGMENTS)
        )
    states = last_states(STATES, SEGMENTS, 2)
    np.testing.assert_array_equal(states[:, 1], 0)
    np.testing.assert_array_equal(states[1, 0], STATES[1, 6])


def test_dropout_follows_its_keys_and_sites():
    keys = row_keys(jax.random.key(0), 4)
    ones = jnp.ones((4, 6, 500))
    drop = Dropout(0.25, keys)
    dropped = drop(ones, "mlp")
    np.testing.assert_array_equal(dropped, drop(ones, "mlp"))
    # 12,000 draws: 0.25 within six standard deviations.
    assert abs(float(jnp.mean(dropped == 0)) - 0.25) < 6 * (0.25 * 0.75 / 12_000) ** 0.5
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    others = (drop(ones, "attention"), drop.at_layer(0)(ones, "mlp"), drop.at_layer(1)(ones, "mlp"))
    for other in others:
        assert np.mean(np.asarray(other) != np.asarray(dropped)) > 0.2
    # A row's mask is its key's, whatever the other rows are.
    np.testing.assert_array_equal(Dropout(0.25, keys[2:])(ones[2:], "mlp"), dropped[2:])
    np.testing.assert_array_equal(Dropout(0.25, None)(ones, "mlp"), ones)


def test_heads_drop_only_in_training():
    head = family_head("roberta", 3, dropout=0.5)
    params = init_classifier(head, 8, jax.random.key(0))
    plain = classify(head, params, STATES, SEGMENTS)
    dropped = classify(head, params, STATES, SEGMENTS, dropout_keys=row_keys(jax.random.key(1), 3))
    assert not np.allclose(plain, dropped)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": 0}, "classes is 0"),
        ({"classes": 2, "dropout": 1.0}, "dropout is 1.0"),
        ({"classes": 2, "pooling": "max"}, "pooling is 'max'"),
    ],
)
def test_wrong_heads_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        ClassificationHead(**fields)
