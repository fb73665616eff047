from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrecipes.errors import DataError
from jaxrecipes.evaluate import bootstrap
from jaxrecipes.evaluate.bootstrap import Interval, difference_interval, ratio_interval


def test_interval_of_a_mean_is_that_of_the_normal_approximation():
    generator = np.random.default_rng(0)
    values = generator.normal(3.0, 2.0, 400)
    interval = ratio_interval(values, np.ones(400), samples=4000)
    error = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert interval.high == pytest.approx(values.mean() + error, abs=0.1 * error)


def test_ratio_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        tokens = generator.integers(20, 400, 60)
        level = generator.normal(2.5, 0.4, 60)
        interval = ratio_interval(level * tokens, tokens, samples=400, seed=trial)
        assert interval.low is not None and interval.high is not None
        hits += interval.low <= 2.5 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


@given(st.integers(0, 2**31), st.integers(2, 30))
def test_the_same_seed_gives_the_same_interval(seed, documents):
    values = np.random.default_rng(seed).random(documents)
    first = ratio_interval(values, np.ones(documents), samples=50, seed=seed)
    assert first == ratio_interval(values, np.ones(documents), samples=50, seed=seed)


def test_blocks_do_not_change_the_interval(monkeypatch):
    values = np.random.default_rng(0).random(20)
    whole = ratio_interval(values, np.ones(20), samples=100)
    monkeypatch.setattr(bootstrap, "_BLOCK_ENTRIES", 60)
    parts = ratio_interval(values, np.ones(20), samples=100)
    assert parts.low == pytest.approx(whole.low) and parts.high == pytest.approx(whole.high)


def test_pairing_cancels_what_documents_share():
    generator = np.random.default_rng(0)
    tokens = generator.integers(20, 400, 50)
    base = generator.normal(2.5, 1.0, 50) * tokens
    model = base - 0.1 * tokens
    paired = difference_interval(model, base, tokens)
    assert (paired.value, paired.low, paired.high) == pytest.approx((-0.1, -0.1, -0.1))
    assert paired.excludes_zero()
    alone = ratio_interval(model, tokens)
    assert alone.high is not None and alone.low is not None and alone.high - alone.low > 0.3


def test_one_document_has_no_interval():
    assert ratio_interval(np.array([2.0]), np.array([4.0])) == Interval(0.5, None, None)
    assert not Interval(0.5, None, None).excludes_zero()


def test_nothing_to_score_is_an_error():
    with pytest.raises(DataError, match="nothing to score"):
        ratio_interval(np.zeros(3), np.zeros(3))
    with pytest.raises(DataError, match="nothing to score"):
        ratio_interval(np.zeros(0), np.zeros(0))
    with pytest.raises(DataError, match="one length"):
        ratio_interval(np.zeros(3), np.ones(4))
    with pytest.raises(DataError, match="same documents"):
        difference_interval(np.zeros(3), np.zeros(4), np.ones(3))


def test_json_has_no_infinities():
    assert Interval(float("inf"), None, 1.0).to_json() == {"value": None, "low": None, "high": 1.0}
