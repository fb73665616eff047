from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.graph import build_graph, edge_weights
from tests.neighbors.plain import neighbour_lists, plain_graph


def rows(graph):
    bounds = zip(graph.indptr[:-1], graph.indptr[1:], strict=True)
    return [
        list(zip(graph.indices[a:b].tolist(), graph.weights[a:b].tolist(), strict=True))
        for a, b in bounds
    ]


@settings(deadline=None)  # the first call compiles
@given(neighbour_lists())
def test_the_graph_is_the_sorted_union_of_both_directions(lists):
    expected = plain_graph(*lists)
    graph = build_graph(*lists)
    assert rows(graph) == [
        sorted(edges.items(), key=lambda edge: (-edge[1], edge[0])) for edges in expected
    ]
    assert graph.indptr.dtype == np.int64
    assert (graph.indices.dtype, graph.weights.dtype) == (np.int32, np.float32)
    assert graph.count == len(lists[0])
    assert graph.degrees.tolist() == [len(edges) for edges in expected]


def test_a_hub_with_a_long_row_is_sorted_too():
    count = 3000
    ids = np.zeros((count, 1), np.int64)
    similarities = np.random.default_rng(0).normal(size=(count, 1)).astype(np.float32)
    graph = build_graph(ids, similarities)
    hub = rows(graph)[0]
    assert hub == sorted(
        ((i, float(similarities[i, 0])) for i in range(1, count)),
        key=lambda edge: (-edge[1], edge[0]),
    )
    assert rows(graph)[5] == [(0, float(similarities[5, 0]))]


def test_negative_and_zero_weights_keep_their_place():
    ids = np.array([[1, 2, 3, 4], [-1] * 4, [-1] * 4, [-1] * 4, [-1] * 4])
    similarities = np.zeros((5, 4), np.float32)
    similarities[0] = [-0.5, -0.0, 0.25, 0.0]
    graph = build_graph(ids, similarities)
    assert rows(graph)[0] == [(3, 0.25), (2, 0.0), (4, 0.0), (1, -0.5)]


@settings(deadline=None)  # the first call compiles
@given(neighbour_lists())
def test_edge_weights_finds_every_edge_and_nothing_else(lists):
    expected = plain_graph(*lists)
    count = len(expected)
    left, right = (side.ravel() for side in np.indices((count, count)))
    found = edge_weights(build_graph(*lists), left, right).reshape(count, count)
    for i in range(count):
        for j in range(count):
            assert found[i, j] == expected[i].get(j, 0.0)


def test_padding_is_not_read():
    ids = np.array([[1, -1], [-1, -1]])
    similarities = np.array([[0.5, -np.inf], [np.nan, -np.inf]], np.float32)
    assert rows(build_graph(ids, similarities)) == [[(1, 0.5)], [(0, 0.5)]]


@pytest.mark.parametrize(
    ("ids", "similarities", "words"),
    [
        ([[1], [2]], [[0.5], [0.5]], "row 1 names document 2"),
        ([[1], [-2]], [[0.5], [0.5]], "row 1 names document -2"),
        ([[1], [0]], [[0.5], [np.nan]], "row 1 to document 0 is nan"),
        ([[1], [0]], [[0.5], [np.inf]], "row 1 to document 0 is inf"),
        ([[1], [0]], [[0.5, 0.1], [0.5, 0.1]], r"shape \(2, 1\), similarities \(2, 2\)"),
        ([[1.0], [0.0]], [[0.5], [0.5]], "ids are float64"),
    ],
)
def test_wrong_lists_are_refused(ids, similarities, words):
    with pytest.raises(DataError, match=words):
        build_graph(np.array(ids), np.array(similarities, np.float32))
