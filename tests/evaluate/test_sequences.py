from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.errors import DataError
from jaxrecipes.evaluate.bootstrap import ratio_interval
from jaxrecipes.evaluate.sequences import DocumentScores, forgetting, sequence_metrics

SCORE = st.floats(-10, 10) | st.just(math.nan)


@st.composite
def matrices(draw):
    tasks = draw(st.integers(1, 5))
    rows = [draw(st.lists(SCORE, min_size=tasks, max_size=tasks)) for _ in range(tasks + 1)]
    return rows


def mean(values):
    values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def by_hand(R, untrained):
    """The formulas with tasks and rows counted from 1, as they are printed."""
    T = len(R) - 1
    last = R[T]
    accuracy = mean([last[j - 1] for j in range(1, T + 1)])
    backward = mean([last[j - 1] - R[j][j - 1] for j in range(1, T)])
    forward = mean([R[j - 1][j - 1] - R[0][j - 1] for j in range(2, T + 1)])
    lost = []
    for j in range(1, T):
        before = [R[i][j - 1] for i in range(0 if untrained else 1, T)]
        before = [value for value in before if not math.isnan(value)]
        lost.append(max(before) - last[j - 1] if before else math.nan)
    return accuracy, backward, forward, mean(lost)


@settings(deadline=None, max_examples=150)
@given(matrices(), st.booleans())
def test_metrics_are_the_printed_formulas(matrix, untrained):
    found = sequence_metrics(np.asarray(matrix), untrained=untrained)
    values = [
        found.accuracy.value,
        found.backward_transfer.value,
        found.forward_transfer.value,
        found.forgetting.value,
    ]
    np.testing.assert_allclose(values, by_hand(matrix, untrained), atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(matrices())
def test_losses_keep_the_meaning_of_the_signs(matrix):
    scores = np.asarray(matrix)
    up, down = sequence_metrics(scores), sequence_metrics(-scores, higher_is_better=False)
    assert down.accuracy.value == -up.accuracy.value or math.isnan(up.accuracy.value)
    for name in ("backward_transfer", "forward_transfer", "forgetting"):
        a, b = getattr(up, name).value, getattr(down, name).value
        assert a == b or (math.isnan(a) and math.isnan(b))


def test_an_example_by_hand():
    matrix = np.array([[0.2, 0.1, 0.3], [0.9, 0.2, 0.3], [0.7, 0.8, 0.4], [0.5, 0.6, 0.9]])
    found = sequence_metrics(matrix)
    assert found.accuracy.value == pytest.approx(2.0 / 3)
    assert found.backward_transfer.value == pytest.approx((-0.4 - 0.2) / 2)
    assert found.forward_transfer.value == pytest.approx((0.1 + 0.1) / 2)
    # SSR's FWT: the score itself, before the task is learned.
    assert found.zero_shot.value == pytest.approx((0.2 + 0.4) / 2)
    assert found.forgetting.value == pytest.approx((0.4 + 0.2) / 2)
    # What the untrained model could do counts, or does not.
    matrix[0, 0] = 1.0
    assert forgetting(matrix) == pytest.approx((0.5 + 0.2) / 2)
    assert forgetting(matrix, untrained=False) == pytest.approx((0.4 + 0.2) / 2)


def test_one_task_has_no_transfer_and_missing_is_none_in_json():
    found = sequence_metrics(np.array([[0.1], [0.5]])).to_json()
    assert found["accuracy"] == {"value": 0.5, "low": None, "high": None}
    assert found["backward_transfer"]["value"] is None
    assert found["forgetting"]["value"] is None


def scores(generator, tasks=3, documents=(40, 25, 30)):
    return [
        [generator.normal(row + task, 1, documents[task]) for task in range(tasks)]
        for row in range(tasks + 1)
    ]


def test_document_scores_give_the_matrix_and_paired_intervals():
    generator = np.random.default_rng(0)
    values, weights = scores(generator), [generator.integers(1, 9, n) for n in (40, 25, 30)]
    documents = DocumentScores(values, weights)
    matrix = documents.matrix()
    for row in range(4):
        for task in range(3):
            expected = values[row][task].sum() / weights[task].sum()
            assert matrix[row, task] == pytest.approx(expected)
    found = sequence_metrics(documents)
    plain = sequence_metrics(matrix)
    for name in ("accuracy", "backward_transfer", "forward_transfer", "forgetting"):
        interval = getattr(found, name)
        assert interval.value == pytest.approx(getattr(plain, name).value)
        assert interval.low < interval.value < interval.high
    # Models that differ by a constant on every document: pairing leaves nothing to chance.
    constant = [[values[0][task] + row for task in range(3)] for row in range(4)]
    shifted = sequence_metrics(DocumentScores(constant)).backward_transfer
    assert shifted.low == pytest.approx(1.5) and shifted.high == pytest.approx(1.5)


def test_the_interval_of_one_number_is_that_of_its_documents():
    generator = np.random.default_rng(1)
    values = [[generator.normal(0, 1, 50)] for _ in range(2)]
    found = sequence_metrics(DocumentScores(values), samples=4000).accuracy
    expected = ratio_interval(values[1][0], np.ones(50), samples=4000, seed=3)
    assert found.low == pytest.approx(expected.low, abs=0.03)
    assert found.high == pytest.approx(expected.high, abs=0.03)


def test_what_was_not_measured_is_left_out():
    generator = np.random.default_rng(0)
    values = scores(generator)
    values[0][2] = None
    values[2][0] = None
    found = sequence_metrics(DocumentScores(values))
    R = DocumentScores(values).matrix()
    assert np.isnan(R[0, 2]) and np.isnan(R[2, 0])
    assert found.forward_transfer.value == pytest.approx(R[1, 1] - R[0, 1])
    assert found.forward_transfer.low is not None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[np.ones(3)]], "one model more than tasks"),
        ([[np.ones(3)], [np.ones(4)]], "task 1: .*same documents"),
        ([[None], [None]], "task 1: "),
    ],
)
def test_scores_that_do_not_fit_are_errors(values, message):
    with pytest.raises(DataError, match=message):
        sequence_metrics(DocumentScores(values))
    with pytest.raises(DataError, match="shape"):
        sequence_metrics(np.ones((3, 3)))
