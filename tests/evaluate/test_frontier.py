from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrecipes.errors import DataError
from jaxrecipes.evaluate.frontier import Curve, curve_from_records, equal_learning


def curve(name, gain, forgetting, **sums) -> Curve:
    return Curve(name, np.arange(len(gain)), np.array(gain), np.array(forgetting), **sums)


def test_forgetting_is_read_at_the_largest_gain_that_all_reached():
    result = equal_learning(
        [curve("slow", [0, 0.1, 0.2], [0, 1, 3]), curve("fast", [0, 0.4], [0, 8])]
    )
    assert result.gain == pytest.approx(0.2)
    assert result.forgetting["slow"].value == pytest.approx(3)
    assert result.forgetting["fast"].value == pytest.approx(4)
    assert result.differences["fast"].value == pytest.approx(1)
    assert result.reason is not None and "no sums" in result.reason


def test_the_first_time_a_gain_is_reached_counts():
    wavy = curve("wavy", [0, 0.3, 0.1, 0.5], [0, 3, 4, 9])
    low = curve("low", [0, 0.2], [0, 1])
    assert equal_learning([low, wavy]).forgetting["wavy"].value == pytest.approx(2)
    high = curve("high", [0, 0.4], [0, 1])
    # Between the third and the fourth evaluation, not between the second and the fourth.
    expected = 4 + (0.4 - 0.1) / (0.5 - 0.1) * 5
    assert equal_learning([high, wavy]).forgetting["wavy"].value == pytest.approx(expected)


@given(
    st.lists(st.floats(0.01, 0.5), min_size=1, max_size=6),
    st.lists(st.floats(0, 2), min_size=6, max_size=6),
    st.floats(0.05, 1.0),
)
def test_on_a_rising_curve_it_is_linear_interpolation(increments, forgetting, share):
    gain = np.concatenate([[0], np.cumsum(increments)])
    lost = np.array([0, *forgetting])[: gain.size]
    target = share * gain[-1]
    result = equal_learning([curve("a", gain, lost), curve("b", [0, target], [0, 1])])
    assert result.gain == pytest.approx(target)
    assert result.forgetting["a"].value == pytest.approx(np.interp(target, gain, lost), abs=1e-9)


def test_an_arm_that_did_not_learn_gives_a_reason_instead_of_a_number():
    result = equal_learning([curve("good", [0, 0.4], [0, 8]), curve("bad", [0, -0.1], [0, 1])])
    assert result.gain is None and result.forgetting == {}
    assert result.reason is not None and "bad" in result.reason and "good" not in result.reason
    assert equal_learning([]).reason is not None


def with_sums(name, gain, forgetting, noise, documents=40, seed=0):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(50, 200, documents).astype(float)
    scale = generator.normal(1, noise, documents)
    gain_sums, lost_sums = (np.outer(values, tokens * scale) for values in (gain, forgetting))
    return curve(
        name,
        gain_sums.sum(1) / tokens.sum(),
        lost_sums.sum(1) / tokens.sum(),
        gain_sums=gain_sums,
        learn_tokens=tokens,
        forgetting_sums=lost_sums,
        keep_tokens=tokens,
    )


def test_intervals_hold_the_value_and_shrink_with_noise():
    wide = equal_learning(
        [with_sums("a", [0, 0.4], [0, 1], 0.3), with_sums("b", [0, 0.6], [0, 2], 0.3)]
    )
    narrow = equal_learning(
        [with_sums("a", [0, 0.4], [0, 1], 0.02), with_sums("b", [0, 0.6], [0, 2], 0.02)]
    )
    for result in (wide, narrow):
        for interval in result.forgetting.values():
            assert interval.low is not None and interval.high is not None
            assert interval.low <= interval.value <= interval.high
    spread = [result.forgetting["b"].high - result.forgetting["b"].low for result in (wide, narrow)]
    assert spread[1] < spread[0] / 5
    # The same documents for both arms: the difference is known better than either.
    assert narrow.differences["b"].excludes_zero()
    assert narrow.reason is None


def test_a_gain_within_noise_has_no_interval_but_a_reason():
    result = equal_learning(
        [with_sums("a", [0, 0.001], [0, 1], 20.0, 10), with_sums("b", [0, 0.6], [0, 2], 0.1, 10)]
    )
    if result.gain is not None:
        assert result.forgetting["a"].low is None
        assert result.reason is not None and "resamples" in result.reason
    else:
        assert result.reason is not None and "a" in result.reason


def test_arms_on_other_documents_are_refused():
    with pytest.raises(DataError, match="different documents"):
        equal_learning(
            [with_sums("a", [0, 1], [0, 1], 0.1), with_sums("b", [0, 1], [0, 1], 0.1, seed=5)]
        )


def record(step, change, kl, keep_change=0.2, accuracy_change=-0.1):
    return {
        "step": step,
        "tokens": step * 10,
        "learn": {"change": {"value": change}},
        "keep": {"kl": {"value": kl}, "change": {"value": keep_change}},
        "choices": {"change": {"value": accuracy_change}},
    }


def test_curves_from_records():
    records = [
        record(20, -0.2, 0.9),
        record(0, 0.0, 0.0),
        record(10, -0.1, 0.1),
        record(20, -0.3, 0.4),
    ]
    made = curve_from_records("a", records)
    assert isinstance(made, Curve)
    assert made.steps.tolist() == [0, 10, 20]
    assert made.gain.tolist() == [0.0, 0.1, 0.3]
    assert made.forgetting.tolist() == [0.0, 0.1, 0.4]
    loss = curve_from_records("a", records, measure="loss")
    accuracy = curve_from_records("a", records, measure="accuracy")
    assert isinstance(loss, Curve) and loss.forgetting.tolist() == [0.2, 0.2, 0.2]
    assert isinstance(accuracy, Curve) and accuracy.forgetting.tolist() == [0.1, 0.1, 0.1]


def test_evaluations_without_the_measure_are_left_out():
    without = {**record(10, -0.1, 0.1), "choices": None}
    made = curve_from_records("a", [without, record(20, -0.3, 0.4)], measure="accuracy")
    assert isinstance(made, Curve)
    assert made.steps.tolist() == [0, 20] and made.forgetting.tolist() == [0.0, 0.1]


def test_surgery_that_changes_the_function_starts_off_the_origin():
    made = curve_from_records("copy", [record(0, 0.5, 2.0), record(10, -0.3, 0.6)])
    assert isinstance(made, Curve)
    assert made.gain.tolist() == [-0.5, 0.3] and made.forgetting.tolist() == [2.0, 0.6]
    # Half of 0.3 is reached after 13/16 of the way.
    result = equal_learning([made, curve("b", [0, 0.15], [0, 1])])
    assert result.forgetting["copy"].value == pytest.approx(2.0 - 1.4 * 0.65 / 0.8)


def test_records_without_a_measure_give_a_reason():
    without = {**record(10, -0.1, 0.1), "keep": None}
    reason = curve_from_records("a", [without])
    assert reason == "a has no KL to the base on the keep set after training began"
    assert "after training began" in str(curve_from_records("a", [record(0, 0.0, 0.0)]))
    with pytest.raises(DataError, match="'bleu' is unknown"):
        curve_from_records("a", [], measure="bleu")


def test_a_curve_must_be_one_run():
    with pytest.raises(DataError, match="at least one"):
        Curve("a", np.array([0]), np.zeros(1), np.zeros(1))
    with pytest.raises(DataError, match="order"):
        Curve("a", np.array([0, 2, 1]), np.zeros(3), np.zeros(3))
