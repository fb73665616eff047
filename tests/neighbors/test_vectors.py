"""Rows that cannot be searched are refused with their number; a pair has one similarity."""

from __future__ import annotations

import numpy as np
import pytest

from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.vectors import (
    READ_ROWS,
    check_vectors,
    pair_similarities,
    recall,
    sort_neighbors,
)
from tests.neighbors.vectors import unit_vectors


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "row 5 holds a NaN"),
        (np.inf, "row 5 holds an infinity"),
        (-np.inf, "row 5 holds an infinity"),
        (0.0, "row 5 is all zeros"),
        (0.3, "row 5 has the length 1.2000"),
    ],
)
def test_refuses_a_bad_row(value: float, message: str) -> None:
    rows = unit_vectors(10, 0)
    rows[5] = value
    with pytest.raises(DataError, match=message):
        check_vectors(rows)


def test_names_a_row_beyond_the_first_block() -> None:
    rows = unit_vectors(READ_ROWS + 10, 0, width=4)
    rows[READ_ROWS + 3, 1] = np.nan
    with pytest.raises(DataError, match=f"row {READ_ROWS + 3} holds a NaN .at column 1"):
        check_vectors(rows)


def test_refuses_shapes() -> None:
    with pytest.raises(DataError, match="no rows"):
        check_vectors(np.zeros((0, 4), np.float32))
    with pytest.raises(DataError, match=r"shape \[3\]"):
        check_vectors(np.ones(3, np.float32))
    with pytest.raises(DataError, match="16 numbers, expected 8"):
        check_vectors(unit_vectors(3, 0), width=8)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_accepts_what_embeddings_are_stored_in(dtype: str) -> None:
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    assert check_vectors(unit_vectors(500, 1, width=384).astype(kind)) == 384


def test_a_pair_has_one_similarity_whatever_stands_around_it() -> None:
    rows = unit_vectors(200, 2, width=384)
    everything = np.tile(np.arange(200), (200, 1))
    table = pair_similarities(rows, rows, everything)
    np.testing.assert_array_equal(table, table.T)
    np.testing.assert_array_equal(
        pair_similarities(rows[7:8], rows[50:60], np.arange(10)[None]), table[7:8, 50:60]
    )
    np.testing.assert_allclose(table, rows @ rows.T, atol=1e-6)
    assert pair_similarities(rows[:1], rows, np.array([[-1]]))[0, 0] == -np.inf


def test_sorts_by_similarity_then_id_and_missing_last() -> None:
    ids, values = sort_neighbors(
        np.array([[9, -1, 3, 4]]), np.array([[0.5, -np.inf, 0.5, 0.9]], np.float32)
    )
    assert ids.tolist() == [[4, 3, 9, -1]]
    assert values[0, :3].tolist() == pytest.approx([0.9, 0.5, 0.5])


def test_recall_counts_copies_and_misses() -> None:
    exact = np.array([[0.9, 0.8], [0.7, -np.inf]], np.float32)
    assert recall(exact, exact) == 1
    assert recall(np.array([[0.9, 0.3], [0.7, -np.inf]], np.float32), exact) == pytest.approx(2 / 3)
    assert recall(np.array([[0.8, 0.8], [-np.inf, -np.inf]], np.float32), exact) == pytest.approx(
        2 / 3
    )
