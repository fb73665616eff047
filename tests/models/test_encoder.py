"""The encoder: packed rows, long rows, its tree. Parity is in tests/checkpoint/test_encoder.py."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrecipes.checkpoint.random_model import ENCODER_PRESETS
from jaxrecipes.errors import ConfigError
from jaxrecipes.models.attention import Places, attention, visible
from jaxrecipes.models.encoder import (
    abstract_encoder_params,
    encode,
    encoder_layout,
    init_encoder_params,
)
from jaxrecipes.models.encoder_layers import attend_both_ways
from jaxrecipes.models.pooling import normalize, pool
from jaxrecipes.params.layout import to_runtime

CONFIG = replace(
    ENCODER_PRESETS["tiny-bert"],
    family="roberta",
    vocab_size=50,
    num_layers=3,
    max_position_embeddings=40,
    type_vocab_size=1,
    position_offset=2,
    pad_token_id=1,
)


@pytest.fixture(scope="module")
def params():
    leaves, structure = jax.tree.flatten(init_encoder_params(CONFIG, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + 0.2 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


def packed(lengths, row_length):
    """One row of texts behind one another: token ids, segment ids, positions, each [1, length]."""
    generator = np.random.default_rng(sum(lengths))
    token_ids = np.full(row_length, CONFIG.pad_token_id, np.int32)
    segment_ids, positions = np.zeros((2, row_length), np.int32)
    start = 0
    for number, length in enumerate(lengths, 1):
        token_ids[start : start + length] = generator.integers(2, CONFIG.vocab_size, length)
        segment_ids[start : start + length] = number
        positions[start : start + length] = np.arange(length)
        start += length
    return token_ids[None], segment_ids[None], positions[None]


run = jax.jit(encode, static_argnames=("config", "compute_dtype", "layout"))


def test_a_decoder_hides_later_keys_and_an_encoder_does_not():
    places = Places.of_rows(jnp.array([[1, 1, 2, 0]]), jnp.array([[0, 1, 0, 0]]))
    causal = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
    both_ways = causal.copy()
    both_ways[0, 1] = True
    np.testing.assert_array_equal(visible(places, None)[0], causal)
    np.testing.assert_array_equal(visible(places, None, causal=False)[0], both_ways)


@pytest.mark.slow
def test_canonical_and_stacked_trees_compute_the_same(params):
    row = packed([7, 4], 16)
    layout = encoder_layout(CONFIG)
    stacked = run(CONFIG, to_runtime(layout, params), *row, layout=layout)
    np.testing.assert_allclose(run(CONFIG, params, *row), stacked, atol=1e-5)


def test_abstract_tree_has_the_shapes_of_the_real_one(params):
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert jax.tree.map(lambda leaf: leaf.shape, abstract_encoder_params(CONFIG)) == shapes
    half = abstract_encoder_params(CONFIG, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}


def test_the_program_does_not_grow_with_the_depth(params):
    def length(layers):
        config = replace(CONFIG, num_layers=layers)
        layout = encoder_layout(config)
        stacked = to_runtime(layout, init_encoder_params(config, jax.random.key(0)))
        traced = jax.make_jaxpr(lambda *row: encode(config, stacked, *row, layout=layout))
        return len(str(traced(*packed([5], 8))))

    assert length(12) < 1.05 * length(2)


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_packed_texts_embed_as_they_do_alone(params, mode):
    lengths = [7, 1, 12, 5]
    row = packed(lengths, 32)
    together = pool(run(CONFIG, params, *row), row[1], mode, segments=5)[0]
    start = 0
    for number, length in enumerate(lengths):
        alone = (
            row[0][:, start : start + length],
            np.ones((1, length), np.int32),
            np.arange(length, dtype=np.int32)[None],
        )
        vector = pool(run(CONFIG, params, *alone), alone[1], mode)[0, 0]
        np.testing.assert_allclose(together[number], vector, atol=2e-6)
        start += length
    assert not np.any(together[4])  # there is no fifth text


def test_a_text_cannot_see_its_neighbours_in_the_row(params):
    row = packed([7, 6, 9], 32)
    before = run(CONFIG, params, *row)
    changed = row[0].copy()
    changed[0, 7:13] = (changed[0, 7:13] + 3) % CONFIG.vocab_size
    changed[0, 25] = 3  # padding
    after = run(CONFIG, params, changed, *row[1:])
    others = (row[1] == 1) | (row[1] == 3)
    np.testing.assert_array_equal(before[others], after[others])
    assert np.abs(before - after)[row[1] == 2].min(axis=-1).max() > 0
    for mode in ("mean", "cls"):
        first, second = (
            np.asarray(pool(states, row[1], mode, segments=3)[0]) for states in (before, after)
        )
        np.testing.assert_array_equal(first[[0, 2]], second[[0, 2]])
        assert np.abs(first[1] - second[1]).max() > 1e-3


def test_every_token_sees_the_whole_text(params):
    row = packed([8], 8)
    before = run(CONFIG, params, *row)
    changed = row[0].copy()
    changed[0, 7] = (changed[0, 7] + 3) % CONFIG.vocab_size
    difference = np.abs(before - run(CONFIG, params, changed, *row[1:])).max(axis=-1)
    assert difference.min() > 1e-4


@pytest.mark.parametrize("length", [640, 1024, 1000])
def test_long_rows_are_attended_in_blocks_with_the_same_result(length):
    keys = jax.random.split(jax.random.key(length), 3)
    query, key, value = (jax.random.normal(key, (2, length, 2, 8)) for key in keys)
    segment_ids = jnp.asarray(
        np.sort(np.random.default_rng(0).integers(0, 4, (2, length)))[:, ::-1]
    )
    places = Places.of_rows(segment_ids, jnp.zeros_like(segment_ids))
    expected = attention(query, key, value, places, scale=0.3, causal=False)
    found = attend_both_ways(query, key, value, places, scale=0.3)
    real = np.asarray(segment_ids) > 0
    np.testing.assert_allclose(found[real], expected[real], atol=1e-6)


def test_pooling_by_hand():
    states = jnp.array([[[1.0, 2.0], [3.0, 4.0], [5.0, 0.0], [9.0, 9.0]]])
    segment_ids = jnp.array([[1, 1, 2, 0]])
    np.testing.assert_allclose(pool(states, segment_ids, "mean", segments=2)[0], [[2, 3], [5, 0]])
    np.testing.assert_allclose(pool(states, segment_ids, "cls", segments=2)[0], [[1, 2], [5, 0]])
    vectors = normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 0]], atol=1e-7)


def test_bfloat16_is_close(params):
    row = packed([20], 32)
    exact = normalize(pool(run(CONFIG, params, *row), row[1], "mean"))[0, 0]
    half = run(CONFIG, params, *row, compute_dtype=jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    assert float(normalize(pool(half, row[1], "mean"))[0, 0] @ exact) > 0.999


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("family", "t5", "expected one of"),
        ("activation", "tanh", "expected one of"),
        ("num_heads", 5, "multiple of num_heads"),
        ("num_layers", 0, "at least 1"),
        ("pad_token_id", 50, "below 50"),
        ("position_offset", 40, "leaves 0 of the 40 rows"),
    ],
)
def test_contradictions_are_refused(field, value, message):
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **{field: value})


def test_longest_input():
    assert CONFIG.max_tokens == 38
