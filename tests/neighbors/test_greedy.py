from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.errors import ConfigError
from jaxrecipes.neighbors.graph import build_graph
from jaxrecipes.neighbors.greedy import greedy_path
from jaxrecipes.neighbors.order import check_permutation
from tests.neighbors.plain import neighbour_lists, plain_graph, plain_path

VARIANTS = [("static", "min_degree"), ("remaining", "min_degree"), ("static", "random")]


def edges_as_lists(count, edges):
    width = max(sum(i == a for a, _, _ in edges) for i in range(count))
    ids = np.full((count, max(width, 1)), -1)
    similarities = np.zeros(ids.shape, np.float32)
    filled = [0] * count
    for i, j, weight in edges:
        ids[i, filled[i]], similarities[i, filled[i]] = j, weight
        filled[i] += 1
    return ids, similarities


@pytest.mark.parametrize(("degree", "start"), VARIANTS)
@settings(deadline=None)  # the first call compiles
@given(lists=neighbour_lists(), seed=st.integers(0, 2**64 - 1))
def test_the_path_is_the_plain_reference_s(degree, start, lists, seed):
    expected = plain_path(plain_graph(*lists), seed=seed, degree=degree, start=start)
    order = greedy_path(build_graph(*lists), seed=seed, degree=degree, start=start)
    assert order.documents.tolist() == expected[0]
    assert order.similarities.tolist() == expected[1]
    assert order.starts.tolist() == expected[2]
    check_permutation(order, len(lists[0]))


@pytest.mark.parametrize(("degree", "start"), VARIANTS)
def test_the_path_is_the_plain_reference_s_on_a_larger_graph(degree, start):
    rng = np.random.default_rng(5)
    ids = rng.integers(0, 600, (600, 4))
    ids[rng.random((600, 1))[:, 0] < 0.1] = -1
    similarities = (rng.integers(0, 50, (600, 4)) / 50).astype(np.float32)
    expected = plain_path(plain_graph(ids, similarities), seed=3, degree=degree, start=start)
    order = greedy_path(build_graph(ids, similarities), seed=3, degree=degree, start=start)
    assert order.documents.tolist() == expected[0]
    assert order.starts.tolist() == expected[2]


def test_a_chain_by_hand():
    # 3 -.9- 1 -.4- 0 -.7- 4 -.2- 2, both ends have degree 1.
    edges = [(3, 1, 0.9), (1, 0, 0.4), (0, 4, 0.7), (4, 2, 0.2)]
    graph = build_graph(*edges_as_lists(5, edges))
    found = {tuple(greedy_path(graph, seed=seed).documents.tolist()) for seed in range(20)}
    assert found == {(3, 1, 0, 4, 2), (2, 4, 0, 1, 3)}
    order = next(
        order
        for order in (greedy_path(graph, seed=seed) for seed in range(20))
        if order.documents[0] == 3
    )
    np.testing.assert_array_equal(order.similarities, np.float32([0, 0.9, 0.4, 0.7, 0.2]))
    assert order.starts.tolist() == [True, False, False, False, False]


def test_the_heaviest_neighbour_is_taken_and_what_is_left_is_started_anew():
    # A star round 0 with a pair behind 2: from leaf 1 to the hub, on to the heaviest leaf, 2.
    edges = [(0, 1, 0.1), (0, 2, 0.8), (0, 3, 0.5), (2, 4, 0.3)]
    graph = build_graph(*edges_as_lists(5, edges))
    order = next(
        order
        for order in (greedy_path(graph, seed=seed) for seed in range(50))
        if order.documents[0] == 1
    )
    assert order.documents.tolist() == [1, 0, 2, 4, 3]
    assert order.starts.tolist() == [True, False, False, False, True]
    assert order.similarities[-1] == 0
    assert int(order.starts.sum()) - 1 == int((order.similarities[1:] == 0).sum())


def test_isolated_documents_start_first():
    edges = [(0, 1, 0.5), (1, 2, 0.6), (2, 0, 0.7)]
    graph = build_graph(*edges_as_lists(5, edges))
    for seed in range(10):
        for degree in ("static", "remaining"):
            order = greedy_path(graph, seed=seed, degree=degree)
            assert set(order.documents[:2].tolist()) == {3, 4}
            assert order.starts.tolist() == [True, True, True, False, False]


def test_remaining_degree_restarts_where_neighbours_were_used_up():
    # 0-1-2 is walked first; then 4 (degree 2, its neighbour 1 used) goes before 5 and 6 (degree 2).
    edges = [(0, 1, 0.9), (1, 2, 0.8), (1, 4, 0.1), (4, 5, 0.5), (5, 6, 0.4), (6, 3, 0.3)]
    edges += [(3, 5, 0.2), (3, 4, 0.15), (2, 7, 0.7), (7, 0, 0.05)]
    lists = edges_as_lists(8, edges)
    graph, plain = build_graph(*lists), plain_graph(*lists)
    differ = 0
    for seed in range(30):
        remaining = greedy_path(graph, seed=seed, degree="remaining").documents.tolist()
        assert remaining == plain_path(plain, seed=seed, degree="remaining")[0]
        differ += remaining != greedy_path(graph, seed=seed).documents.tolist()
    assert differ


def test_the_seed_decides_between_equal_starts():
    ids = np.full((40, 1), -1)
    graph = build_graph(ids, np.zeros((40, 1), np.float32))
    first = greedy_path(graph, seed=1).documents.tolist()
    assert first == greedy_path(graph, seed=1).documents.tolist()
    assert first != greedy_path(graph, seed=2).documents.tolist()


def test_a_known_order_stays_what_it_is():
    # These numbers may never change: corpora are ordered by them.
    numbers = np.arange(40).reshape(10, 4)
    ids, similarities = (numbers * 7 + 3) % 10, ((numbers * 13) % 17 / 17).astype(np.float32)
    order = greedy_path(build_graph(ids, similarities), seed=2023)
    assert order.documents.tolist() == [0, 7, 3, 4, 9, 6, 2, 1, 8, 5]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"degree": "dynamic"}, "expected static, remaining"),
        ({"start": "first"}, "expected min_degree, random"),
        ({"start": "random", "degree": "remaining"}, "no effect"),
    ],
)
def test_wrong_options_are_refused(options, words):
    graph = build_graph(np.array([[-1]]), np.zeros((1, 1), np.float32))
    with pytest.raises(ConfigError, match=words):
        greedy_path(graph, seed=0, **options)
