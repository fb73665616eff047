"""Scores of classifiers against scikit-learn and brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.errors import ConfigError, DataError
from jaxrecipes.evaluate.bootstrap import resampling_weights
from jaxrecipes.evaluate.classification import (
    EarlyStopping,
    accuracy,
    macro_f1,
    over_seeds,
    paired_difference,
)


def written_out(predictions, labels):
    """Macro-F1, class by class."""
    scores = []
    for one in sorted(set(predictions) | set(labels)):
        pairs = list(zip(predictions, labels, strict=True))
        hits = sum(p == one and t == one for p, t in pairs)
        wrong = sum((p == one) != (t == one) for p, t in pairs)
        scores.append(2 * hits / (2 * hits + wrong))
    return sum(scores) / len(scores)


pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(pairs)
def test_scores_are_those_of_brute_force(items):
    predictions, labels = map(np.array, zip(*items, strict=True))
    np.testing.assert_allclose(macro_f1(predictions, labels), written_out(*zip(*items)))  # noqa: B905
    np.testing.assert_allclose(accuracy(predictions, labels), np.mean(predictions == labels))


@settings(max_examples=30, deadline=None)
@given(pairs)
def test_scores_are_those_of_scikit_learn(items):
    metrics = pytest.importorskip("sklearn.metrics")
    predictions, labels = map(np.array, zip(*items, strict=True))
    theirs = metrics.f1_score(labels, predictions, average="macro", zero_division=0)
    np.testing.assert_allclose(macro_f1(predictions, labels), theirs)


@pytest.mark.parametrize("score", ["accuracy", "macro_f1"])
def test_the_paired_bootstrap_is_that_of_drawn_items(score):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 50)
    arms = generator.integers(0, 3, (2, 4, 50))
    arms[0] = np.where(generator.random((4, 50)) < 0.5, labels, arms[0])
    found = paired_difference(arms[0], arms[1], labels, score, samples=200, seed=3)
    function = accuracy if score == "accuracy" else macro_f1
    means = [np.mean([function(row, labels) for row in arm]) for arm in arms]
    np.testing.assert_allclose(found.value, means[0] - means[1])
    draws = []
    for weights in np.concatenate(list(resampling_weights(50, samples=200, seed=3))):
        drawn = np.repeat(np.arange(50), weights.astype(int))
        one, other = ([function(row[drawn], labels[drawn]) for row in arm] for arm in arms)
        draws.append(np.mean(one) - np.mean(other))
    np.testing.assert_allclose([found.low, found.high], np.quantile(draws, [0.025, 0.975]))
    assert found.excludes_zero()


def test_equal_arms_differ_by_nothing():
    labels = np.arange(30) % 3
    predictions = np.random.default_rng(0).integers(0, 3, (5, 30))
    found = paired_difference(predictions, predictions[::-1], labels, "macro_f1", samples=50)
    assert found.value == pytest.approx(0)
    assert found.low == pytest.approx(0)


def test_seeds_are_summarised():
    found = over_seeds([0.5, 0.7, 0.6])
    assert found.mean == pytest.approx(0.6)
    assert found.deviation == pytest.approx(0.1)
    assert found.show() == "60.00 ± 10.00"
    assert over_seeds([0.5]).show() == "50.00"


def test_stopping_waits_for_its_patience():
    stop = EarlyStopping(patience=2)
    looks = [0.5, 0.6, 0.6, float("nan"), 0.9]
    improved, stopped = [], []
    for score in looks:
        improved.append(stop.improved(score))
        stopped.append(stop.should_stop)
    assert improved == [True, True, False, False, True]
    assert stopped == [False, False, False, True, False]
    assert (stop.best, stop.best_at) == (0.9, 4)
    never = EarlyStopping(patience=1)
    never.improved(float("nan"))
    assert never.should_stop


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(DataError, match="at least 1"):
        accuracy(np.array([]), np.array([]))
    with pytest.raises(DataError, match="shape"):
        macro_f1(np.array([1, 2]), np.array([1]))
    with pytest.raises(DataError, match="base_predictions has the shape"):
        paired_difference(np.ones((2, 3)), np.ones((2, 4)), np.ones(3), "accuracy")
    with pytest.raises(DataError, match="no scores"):
        over_seeds([])
    with pytest.raises(ConfigError, match="patience is 0"):
        EarlyStopping(0)
