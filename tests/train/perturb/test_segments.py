import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.train.perturb.segments import (
    direction,
    example_mean,
    norms,
    project,
    segment_lengths,
    token_keys,
    uniform_noise,
)

from .problems import apart, cut, packed, places

VECTORS = np.random.default_rng(0).normal(0, 3, (4, 20, 6)).astype(np.float32)


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("linf", np.inf)])
def test_norms_steps_and_balls_are_those_of_each_text_alone(norm, order):
    batch = packed()
    ids = batch["segment_ids"]
    sizes = np.asarray(norms(VECTORS, ids, norm))
    steps, moved = direction(VECTORS, ids, norm), project(VECTORS, ids, 2.0, norm)
    for (row, inside), step, inner in zip(
        places(batch), cut(steps, batch), cut(moved, batch), strict=True
    ):
        text = VECTORS[row][inside]
        expected = np.linalg.norm(text.ravel(), order)
        np.testing.assert_allclose(sizes[row][inside], expected, rtol=1e-5)
        np.testing.assert_allclose(step, text / expected, rtol=1e-5)
        closest = np.clip(text, -2, 2) if norm == "linf" else text * min(1, 2 / expected)
        np.testing.assert_allclose(inner, closest, rtol=1e-5)
    assert (sizes[ids == 0] == 0).all()
    assert (np.asarray(steps)[ids == 0] == 0).all()
    assert (np.asarray(segment_lengths(ids))[3, :16] == 16).all()
    # Each text counts once, whatever its length.
    means = [np.linalg.norm(VECTORS[row][inside].ravel(), order) for row, inside in places(batch)]
    np.testing.assert_allclose(example_mean(sizes, ids), np.mean(means), rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31 - 1))
def test_noise_belongs_to_the_text_and_not_to_its_place(seed):
    batch, key = packed(seed=seed % 5), jax.random.key(seed)
    noise = uniform_noise(key, batch, 8)
    for here, there in zip(
        cut(noise, batch),
        cut(uniform_noise(key, apart(batch), 8), apart(batch)),
        strict=True,
    ):
        np.testing.assert_array_equal(here, there)
        assert (np.abs(here) <= 1).all()
    assert (np.asarray(noise)[batch["segment_ids"] == 0] == 0).all()


def test_every_token_of_different_texts_has_its_own_key():
    batch = packed()
    keys = np.asarray(jax.random.key_data(token_keys(jax.random.key(0), batch)))
    inside = batch["segment_ids"] > 0
    assert len(np.unique(keys[inside], axis=0)) == inside.sum()
    other = np.asarray(jax.random.key_data(token_keys(jax.random.key(1), batch)))
    assert not (keys[inside] == other[inside]).all(-1).any()


def test_a_zero_gradient_is_no_step():
    batch = packed()
    step = direction(np.zeros_like(VECTORS), batch["segment_ids"])
    assert (np.asarray(step) == 0).all()
