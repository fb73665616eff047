"""Attention against the formula, one query at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.models.attention import Places, attention

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8


def packed(generator, batch, length):
    """Rows of documents of random lengths, some with padding: segment ids and positions."""
    segment_ids, positions = np.zeros((2, batch, length), np.int32)
    for row in range(batch):
        start, segment = 0, 1
        while start < length:
            size = int(generator.integers(1, length + 1))
            stop = min(start + size, length)
            if segment > 1 and generator.random() < 0.2:
                break  # the rest is padding
            segment_ids[row, start:stop] = segment
            positions[row, start:stop] = np.arange(stop - start)
            start, segment = stop, segment + 1
    return segment_ids, positions


def with_gradients(function, arrays, weights):
    """A function's output, and the gradients of its weighted sum by each array."""

    def loss(*arrays):
        output = function(*arrays)
        return jnp.sum(output * weights), output

    (_, output), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*arrays)
    return output, *gradients


def by_hand(query, key, value, segment_ids, scale, softcap, window):
    """Softmax over the keys of the same document up to the query, in float64."""
    output = np.zeros(query.shape)
    for row, at, head in np.ndindex(query.shape[:3]):
        if segment_ids[row, at] == 0:
            continue
        seen = [
            other
            for other in range(at + 1)
            if segment_ids[row, other] == segment_ids[row, at]
            and (window is None or at - other < window)
        ]
        group = head // (HEADS // KV_HEADS)
        logits = scale * key[row, seen, group].astype(np.float64) @ query[row, at, head]
        if softcap is not None:
            logits = softcap * np.tanh(logits / softcap)
        weights = np.exp(logits - logits.max())
        output[row, at, head] = weights / weights.sum() @ value[row, seen, group]
    return output


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    softcap=st.sampled_from([None, 3.0]),
    window=st.sampled_from([None, 1, 3]),
)
def test_equals_the_formula_on_packed_rows(seed, softcap, window):
    generator = np.random.default_rng(seed)
    batch, length = 2, 11
    segment_ids, positions = packed(generator, batch, length)
    query = generator.standard_normal((batch, length, HEADS, HEAD_DIM), np.float32)
    key, value = generator.standard_normal((2, batch, length, KV_HEADS, HEAD_DIM), np.float32)
    found = attention(
        query,
        key,
        value,
        Places.of_rows(segment_ids, positions),
        scale=0.7,
        softcap=softcap,
        sliding_window=window,
    )
    expected = by_hand(query, key, value, segment_ids, 0.7, softcap, window)
    real = segment_ids != 0
    np.testing.assert_allclose(np.asarray(found)[real], expected[real], atol=2e-6)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_large_logits_neither_overflow_nor_lose_their_gradient(dtype):
    generator = np.random.default_rng(0)
    shape = (1, 6, HEADS, HEAD_DIM)
    query = jnp.asarray(100 * generator.standard_normal(shape), dtype)
    key = jnp.asarray(100 * generator.standard_normal((1, 6, KV_HEADS, HEAD_DIM)), dtype)
    ids, positions = jnp.ones((1, 6), jnp.int32), jnp.arange(6)[None]

    def total(query, key):
        mixed = attention(
            query,
            key,
            key,
            Places.of_rows(ids, positions),
            scale=1.0,
        )
        assert mixed.dtype == dtype
        return jnp.sum(mixed.astype(jnp.float32))

    value, gradients = jax.value_and_grad(total, (0, 1))(query, key)
    assert np.isfinite(value)
    assert all(np.isfinite(np.asarray(one, np.float32)).all() for one in gradients)
