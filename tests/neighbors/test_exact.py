"""Exact search against numpy, with ties, copies, blocks of any size and too few rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.neighbors.exact import ExactIndex
from tests.neighbors.vectors import brute_force, exact_unit_vectors, unit_vectors


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 300),
    queries=st.integers(1, 40),
    count=st.sampled_from([1, 3, 11]),
    blocks=st.sampled_from([(8, 64), (16, 128), (1024, 16_384)]),
    copies=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_brute_force_with_ties_and_copies(
    rows: int, queries: int, count: int, blocks: tuple[int, int], copies: bool, seed: int
) -> None:
    vectors = exact_unit_vectors(rows, seed)
    if copies:
        vectors[rows // 3 :] = vectors[rows // 3]
    asked = exact_unit_vectors(queries, seed + 1)
    index = ExactIndex(vectors, query_block=blocks[0], row_block=blocks[1])
    expected, _ = brute_force(asked, vectors, count)
    np.testing.assert_array_equal(index.search(asked, count), expected)


def test_equals_brute_force_through_both_rounds_of_top_k() -> None:
    # 4096 columns are 64 groups, more than the 7 wanted: the round over groups is taken.
    vectors, asked = exact_unit_vectors(9000, 3), exact_unit_vectors(20, 4)
    found = ExactIndex(vectors, query_block=32, row_block=4096).search(asked, 7)
    np.testing.assert_array_equal(found, brute_force(asked, vectors, 7)[0])


def test_equals_brute_force_on_ordinary_vectors() -> None:
    vectors, asked = unit_vectors(3000, 5, width=48), unit_vectors(100, 6, width=48)
    found = ExactIndex(vectors, query_block=64, row_block=1024).search(asked, 10)
    np.testing.assert_array_equal(found, brute_force(asked, vectors, 10)[0])


def test_pads_where_there_are_fewer_rows() -> None:
    found = ExactIndex(exact_unit_vectors(3, 0)).search(exact_unit_vectors(2, 1), 5)
    assert (found[:, 3:] == -1).all() and (found[:, :3] >= 0).all()


def test_refuses_blocks_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        ExactIndex(exact_unit_vectors(3, 0), row_block=100)
