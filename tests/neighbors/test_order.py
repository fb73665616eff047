from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.graph import build_graph
from jaxrecipes.neighbors.greedy import greedy_path
from jaxrecipes.neighbors.order import (
    Order,
    adjacent_cosines,
    check_permutation,
    order_statistics,
    take_rows,
)
from jaxrecipes.neighbors.random_order import derived_seed, random_order, random_priorities
from tests.neighbors.plain import plain_priorities
from tests.neighbors.real import SlicesOnly


def an_order(documents, starts=None):
    documents = np.array(documents, np.int64)
    if starts is None:
        starts = np.arange(len(documents)) == 0
    return Order(documents, np.zeros(len(documents), np.float32), np.array(starts), "path")


def unit_vectors(count, width=8, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@given(st.integers(0, 50), st.integers(-(2**70), 2**70))
def test_priorities_are_split_mix(count, seed):
    assert random_priorities(count, seed).tolist() == plain_priorities(count, seed)
    assert sorted(random_order(count, seed).tolist()) == list(range(count))


def test_known_priorities():
    # The first numbers of SplitMix64 started at 0 (published reference values).
    from jaxrecipes.neighbors.random_order import _STEP, _mix

    state = np.arange(1, 4, dtype=np.uint64) * np.uint64(_STEP)
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert _mix(state).tolist() == expected


def test_random_orders_are_uniform_enough_and_seeds_differ():
    first = [int(random_order(5, seed)[0]) for seed in range(2000)]
    assert all(abs(count - 400) < 90 for count in np.bincount(first, minlength=5))  # 5 sigma
    seeds = {derived_seed(seed, part) for seed in range(50) for part in range(50)}
    assert len(seeds) == 2500


def test_statistics_by_hand():
    # 0 - 1 (0.5), 1 - 2 (0.25); 0 and 2 are not joined.
    graph = build_graph(np.array([[1], [2], [-1], [-1]]), np.float32([[0.5], [0.25], [0], [0]]))
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    vectors = np.vstack([vectors, [[1, 0]]])
    order = an_order([0, 2, 1, 0], [True, False, True, False])
    found = order_statistics(order, vectors, graph)
    assert (found.method, found.places, found.coverage) == ("path", 4, 0.75)
    assert (found.largest_repeats, found.starts) == (2, 2)
    assert found.path_weight == 0.75
    assert found.mean_path_weight == 0.25
    assert found.mean_adjacent_cosine == pytest.approx((0.6 + 0.8 + 0.0) / 3)
    assert json.loads(json.dumps(found.to_json()))["starts"] == 2


def test_an_order_is_read_back_as_it_was_written(tmp_path):
    order = Order(
        np.array([2, 0, 1]), np.float32([0, 0.5, 0]), np.array([True, False, True]), "knn"
    )
    order.save(tmp_path)
    found = Order.load(tmp_path)
    assert found.method == "knn"
    for name in ("documents", "similarities", "starts"):
        assert getattr(found, name).dtype == getattr(order, name).dtype
        np.testing.assert_array_equal(getattr(found, name), getattr(order, name))


@pytest.mark.parametrize("damage", ["missing", "cut", "turned", "empty", "other"])
def test_a_damaged_order_is_told(tmp_path, damage):
    an_order(range(100)).save(tmp_path)
    path = tmp_path / "order.npz"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "other":
        np.savez(path, documents=np.arange(3))
    else:
        middle = content.index(np.arange(100).tobytes()) + 40
        turned = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:-3], "turned": turned, "empty": b""}[damage])
    with pytest.raises(DataError, match="order.npz: no order can be read"):
        Order.load(tmp_path)


def test_the_path_s_own_weights_are_those_of_the_graph():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 200, (200, 3))
    graph = build_graph(ids, rng.random((200, 3), np.float32))
    order = greedy_path(graph, seed=0)
    found = order_statistics(order, unit_vectors(200), graph)
    # A restart may land beside a neighbour of the document before? No: none of them was left.
    assert found.path_weight == pytest.approx(float(order.similarities.sum(dtype=np.float64)))
    assert found.coverage == 1.0 and found.largest_repeats == 1


@settings(deadline=None)
@given(st.lists(st.integers(0, 9999), max_size=60))
def test_rows_are_read_alike_from_arrays_and_from_slices(rows):
    vectors = unit_vectors(10_000, 2)
    rows = np.array(rows, np.int64)
    found = take_rows(SlicesOnly(vectors.astype(np.float16)), rows)
    np.testing.assert_array_equal(found, take_rows(vectors.astype(np.float16), rows))
    np.testing.assert_array_equal(found, vectors.astype(np.float16)[rows].astype(np.float32))


def test_adjacent_cosines_across_blocks(monkeypatch):
    from jaxrecipes.neighbors import order as module

    vectors = unit_vectors(50)
    documents = random_order(50, 1)
    expected = [
        float(vectors[a] @ vectors[b]) for a, b in zip(documents, documents[1:], strict=False)
    ]
    np.testing.assert_allclose(adjacent_cosines(documents, vectors), expected, atol=1e-6)
    monkeypatch.setattr(module, "_BLOCK", 7)
    np.testing.assert_allclose(adjacent_cosines(documents, vectors), expected, atol=1e-6)
    assert adjacent_cosines(documents[:1], vectors).shape == (0,)


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ([0, 1, 1, 3], r"1 of 4 are missing \(the first is 2\); 1 are repeated \(the first, 1, oc"),
        ([0, 1, 2], r"1 of 4 are missing \(the first is 3\)"),
        ([0, 1, 2, 3, 3], r"1 are repeated \(the first, 3, occurs 2 times"),
        ([0, 1, 2, 4], r"names document 4; expected 0..3"),
        ([0, 1, 2, -1], r"names document -1"),
    ],
)
def test_what_is_no_permutation_is_told(documents, words):
    check_permutation(an_order([3, 1, 0, 2]), 4)
    with pytest.raises(DataError, match=words):
        check_permutation(an_order(documents), 4)


def test_importing_the_methods_imports_neither_numba_nor_jax():
    program = (
        "import sys, jaxrecipes.neighbors.methods, jaxrecipes.neighbors.order;"
        "print([name for name in ('numba', 'jax') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
