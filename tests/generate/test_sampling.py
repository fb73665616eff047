"""Sampling transforms against the warpers of transformers, and draws against their distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.errors import ConfigError
from jaxrecipes.generate.sampling import (
    Sampling,
    choose,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    sampling_rows,
)

VOCABULARY = 23


def random_logits(seed: int, rows: int = 3) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (3 * generator.standard_normal((rows, VOCABULARY))).astype(np.float32)


def warper(name: str, value: float):
    process = pytest.importorskip("transformers.generation.logits_process")
    return getattr(process, name)(value)


@pytest.mark.parametrize(
    ("transform", "name", "values"),
    [
        (keep_top_k, "TopKLogitsWarper", [1, 4, VOCABULARY, 60]),
        (keep_top_p, "TopPLogitsWarper", [0.05, 0.5, 0.9, 0.99]),
        (keep_min_p, "MinPLogitsWarper", [0.01, 0.2, 1.0]),
    ],
)
def test_transforms_equal_those_of_transformers(transform, name, values):
    torch = pytest.importorskip("torch")
    for seed, value in enumerate(values):
        logits = random_logits(seed, rows=8)
        expected = warper(name, value)(None, torch.tensor(logits)).numpy()
        ours = transform(jnp.asarray(logits), jnp.full((8, 1), value))
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.8])
def test_the_repetition_penalty_equals_that_of_transformers(penalty):
    torch = pytest.importorskip("torch")
    logits = random_logits(11, rows=4)
    texts = np.random.default_rng(0).integers(0, VOCABULARY, (4, 9))
    process = warper("RepetitionPenaltyLogitsProcessor", penalty)
    expected = process(torch.tensor(texts), torch.tensor(logits)).numpy()
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, texts, True, axis=1)
    ours = penalise_repetition(jnp.asarray(logits), jnp.asarray(seen), jnp.full((4, 1), penalty))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), top_p=st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_it(seed, top_p):
    logits = random_logits(seed, rows=1)
    kept = np.isfinite(np.asarray(keep_top_p(jnp.asarray(logits), jnp.full((1, 1), top_p))))[0]
    probabilities = np.asarray(jax.nn.softmax(logits))[0].astype(np.float64)
    assert probabilities[kept].sum() >= top_p - 1e-5
    assert probabilities[kept].sum() - probabilities[kept].min() < top_p + 1e-5
    assert kept[probabilities.argmax()]
    assert kept.all() or probabilities[kept].min() >= probabilities[~kept].max()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), top_k=st.integers(1, VOCABULARY))
def test_top_k_keeps_the_k_most_likely(seed, top_k):
    logits = random_logits(seed, rows=1)
    kept = np.isfinite(np.asarray(keep_top_k(jnp.asarray(logits), jnp.full((1, 1), float(top_k)))))[
        0
    ]
    assert set(np.flatnonzero(kept)) == set(np.argsort(-logits[0])[:top_k])


DRAWN = (
    Sampling(temperature=1.0),
    Sampling(temperature=0.6),
    Sampling(temperature=1.3, top_k=5),
    Sampling(temperature=1.0, top_p=0.7),
    Sampling(temperature=1.5, min_p=0.2),
    Sampling(temperature=1.2, top_k=9, top_p=0.8, min_p=0.1),
)


def distribution(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The distribution by definition, in float64 and one step after the other."""
    probabilities = np.exp(logits.astype(np.float64) / sampling.temperature)
    probabilities /= probabilities.sum()
    if sampling.top_k:
        probabilities[np.argsort(-probabilities)[sampling.top_k :]] = 0
        probabilities /= probabilities.sum()
    if sampling.top_p < 1:
        order = np.argsort(-probabilities)
        reached = np.cumsum(probabilities[order]) - probabilities[order] >= sampling.top_p
        probabilities[order[reached]] = 0
        probabilities /= probabilities.sum()
    probabilities[probabilities < sampling.min_p * probabilities.max()] = 0
    return probabilities / probabilities.sum()


def test_draws_follow_the_distribution_that_each_row_asks_for():
    draws = 20_000
    logits = random_logits(7, rows=1)[0] / 2
    asked = (*DRAWN, Sampling())
    rows = jax.tree.map(lambda one: jnp.tile(one, draws), sampling_rows(asked))
    keys = jax.random.split(jax.random.key(3), draws * len(asked))
    drawn = choose(jnp.tile(jnp.asarray(logits), (draws * len(asked), 1)), rows, keys, None)
    drawn = np.asarray(drawn).reshape(draws, len(asked))
    for column, sampling in enumerate(DRAWN):
        probabilities = distribution(logits, sampling)
        counts = np.bincount(drawn[:, column], minlength=VOCABULARY)
        allowed = probabilities > 0
        assert counts[~allowed].sum() == 0, sampling
        expected = draws * probabilities[allowed]
        assert scipy.stats.chisquare(counts[allowed], expected).pvalue > 1e-3, sampling
    assert set(drawn[:, -1]) == {logits.argmax()}  # the greedy row beside them


def test_temperature_zero_takes_the_most_likely_whatever_the_key():
    logits = jnp.asarray(random_logits(1))
    rows = sampling_rows([Sampling(top_k=5, top_p=0.5)] * 3)
    for seed in range(3):
        chosen = choose(logits, rows, jax.random.split(jax.random.key(seed), 3), None)
        np.testing.assert_array_equal(chosen, logits.argmax(-1))


def test_a_draw_depends_on_its_own_key_only():
    logits = jnp.asarray(random_logits(2, rows=6))
    keys = jax.random.split(jax.random.key(0), 6)
    together = draw(logits, keys)
    alone = [int(draw(logits[row : row + 1], keys[row : row + 1])[0]) for row in range(6)]
    assert together.tolist() == alone


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.5),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
    ],
)
def test_values_out_of_range_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        Sampling(**{field: value})
