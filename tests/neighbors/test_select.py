"""kNN selection: neighbours of a task, each once, and a control of the same size."""

from __future__ import annotations

import numpy as np
import pytest

from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.search import build_index
from jaxrecipes.neighbors.select import select_neighbors
from tests.neighbors.vectors import brute_force, unit_vectors


def test_selects_the_union_of_the_neighbours() -> None:
    pool, task = unit_vectors(500, 0), unit_vectors(20, 1)
    found = select_neighbors(build_index(pool, 5), task, 5, similarity=1.5)
    expected, _ = brute_force(task, pool, 5)
    np.testing.assert_array_equal(found.selected, np.unique(expected))
    np.testing.assert_array_equal(found.neighbors, expected)
    assert found.found == len(np.unique(expected)) and not found.duplicates.removed


def test_control_has_the_same_size_and_nothing_in_common_and_follows_the_seed() -> None:
    index, task = build_index(unit_vectors(500, 0), 5), unit_vectors(20, 1)
    found = select_neighbors(index, task, 5, seed=3)
    assert len(found.control) == len(found.selected)
    assert not set(found.control) & set(found.neighbors.ravel())
    assert len(set(found.control)) == len(found.control)
    np.testing.assert_array_equal(select_neighbors(index, task, 5, seed=3).control, found.control)
    assert (select_neighbors(index, task, 5, seed=4).control != found.control).any()


def test_copies_in_the_pool_are_selected_once() -> None:
    pool, task = unit_vectors(300, 2), unit_vectors(3, 3)
    best = int(np.argmax(pool @ task[0]))
    copies = [one for one in (10, 150, 290) if one != best]
    pool[copies] = pool[best]
    same = [best, *copies]
    found = select_neighbors(build_index(pool, 6), task, 6)
    assert [one for one in same if one in found.selected] == [min(same)]
    assert found.found == len(found.selected) + len(found.duplicates.removed)
    assert {one.kept for one in found.duplicates.removed} == {min(same)}
    lengths = np.ones(300)
    lengths[max(same)] = 2
    found = select_neighbors(build_index(pool, 6), task, 6, lengths=lengths)
    assert [one for one in same if one in found.selected] == [max(same)]


def test_a_pool_without_room_for_a_control_is_refused() -> None:
    with pytest.raises(DataError, match="the pool's 10 rows are neighbours"):
        select_neighbors(build_index(unit_vectors(10, 0), 8), unit_vectors(5, 1), 8)
