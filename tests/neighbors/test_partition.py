from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.cluster import assign_clusters
from jaxrecipes.neighbors.graph import build_graph
from jaxrecipes.neighbors.greedy import greedy_path
from jaxrecipes.neighbors.order import Order, check_permutation, order_statistics
from jaxrecipes.neighbors.partition import (
    cut_weight,
    partitioned_path,
    stitch,
    traverse_partition,
    weight_loss,
)
from jaxrecipes.neighbors.random_order import derived_seed
from tests.neighbors.plain import neighbour_lists, plain_graph, plain_path
from tests.neighbors.real import nearest
from tests.neighbors.test_cluster import blobs


def unit_vectors(count):
    return blobs(count, 1, spread=1.0)[0]


@settings(deadline=None)
@given(neighbour_lists(), st.integers(1, 5), st.integers(0, 99))
def test_partitions_are_walked_by_themselves_and_all_documents_occur_once(lists, parts, seed):
    ids, similarities = lists
    count = len(ids)
    labels = np.arange(count) * 7 % parts
    vectors = unit_vectors(count)
    order = partitioned_path(ids, similarities, labels, vectors, seed=seed)
    check_permutation(order, count)
    assert order.starts[0] and not order.similarities[order.starts].any()
    for number, label in enumerate(np.unique(labels)):
        members = np.flatnonzero(labels == label).tolist()
        inside = [[members.index(j) if j in members else -1 for j in ids[i]] for i in members]
        graph = plain_graph(np.array(inside), similarities[members])
        expected = [members[i] for i in plain_path(graph, seed=derived_seed(seed, number))[0]]
        begin = next(i for i, d in enumerate(order.documents.tolist()) if d in members)
        found = order.documents[begin : begin + len(members)].tolist()
        assert found in (expected, expected[::-1])
        assert order.starts[begin]
    # Weights are those of the edges between adjacent documents, also where a path was turned.
    graph = build_graph(ids, similarities)
    plain = plain_graph(ids, similarities)
    for place in np.flatnonzero(~order.starts):
        before, document = order.documents[place - 1 : place + 1].tolist()
        assert order.similarities[place] == np.float32(plain[before][document])
    one = partitioned_path(ids, similarities, np.zeros(count, int), vectors, seed=seed)
    whole = greedy_path(graph, seed=derived_seed(seed, 0))
    np.testing.assert_array_equal(one.documents, whole.documents)


def test_the_order_is_the_same_for_any_number_of_workers():
    vectors, _ = blobs(1200, 40)
    lists = nearest(vectors, 6)
    labels = assign_clusters(vectors, documents=100, seed=0)
    orders = [
        partitioned_path(*lists, labels, vectors, seed=5, workers=workers) for workers in (1, 2, 7)
    ]
    for order in orders[1:]:
        for name in ("documents", "similarities", "starts"):
            np.testing.assert_array_equal(getattr(order, name), getattr(orders[0], name))
    other = partitioned_path(*lists, labels, vectors, seed=6)
    assert other.documents.tolist() != orders[0].documents.tolist()


def test_the_loss_of_weight_is_measured_and_small_for_clusters():
    vectors, _ = blobs(1200, 40)
    lists = nearest(vectors, 6)
    graph = build_graph(*lists)
    whole = greedy_path(graph, seed=0)
    labels = assign_clusters(vectors, documents=200, seed=0)
    random_labels = np.random.default_rng(0).permutation(labels)
    losses, cuts, stitched = [], [], []
    for chosen in (labels, random_labels):
        order = partitioned_path(*lists, chosen, vectors, seed=0)
        losses.append(weight_loss(order, whole))
        cuts.append(cut_weight(*lists, chosen))
        stitched.append(order_statistics(order, vectors, graph).path_weight)
    expected = 1 - float(order.similarities.sum()) / float(whole.similarities.sum())
    assert losses[1] == pytest.approx(expected, abs=1e-6)
    assert losses[0] < 0.1 < 0.3 < losses[1]
    assert cuts[0] < 0.1 < 0.5 < cuts[1]
    assert weight_loss(whole, whole) == 0.0


def test_cut_weight_by_hand():
    ids = np.array([[1, 2], [0, -1], [-1, -1]])
    similarities = np.array([[0.5, 0.25], [0.25, 9], [9, 9]], np.float32)
    assert cut_weight(ids, similarities, np.array([0, 0, 1])) == 0.25
    assert cut_weight(ids, similarities, np.array([0, 0, 0])) == 0.0


def test_paths_are_joined_at_their_most_similar_ends_and_turned_where_needed():
    angles = np.deg2rad([0, 10, 60, 50, 20, 45, 90, 95])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    def part(*documents, weights=()):
        count = len(documents)
        return Order(
            np.array(documents),
            np.array([0, *weights], np.float32),
            np.array([True, *(weight == 0 for weight in weights)], bool)[:count],
            "path",
        )

    paths = [
        part(0, 1, weights=(0.5,)),
        part(6, 7, weights=(0.125,)),
        part(2, 3, 5, 4, weights=(0.25, 0.0, 0.75)),
    ]
    order = stitch(paths, vectors)
    # From 10 degrees to 20, so the third path is turned; it ends at 60, next is 90.
    assert order.documents.tolist() == [0, 1, 4, 5, 3, 2, 6, 7]
    assert order.similarities.tolist() == [0, 0.5, 0, 0.75, 0, 0.25, 0, 0.125]
    assert order.starts.tolist() == [True, False, True, False, True, False, True, False]


def test_a_partition_needs_nothing_but_its_own_rows():
    ids = np.array([[8, 5, -1], [9, 2, 8]])
    order = traverse_partition(
        ids, np.array([[0.5, 0.9, 0], [0.9, 0.8, 0.25]], np.float32), np.array([2, 8]), seed=0
    )
    assert sorted(order.documents.tolist()) == [2, 8]
    assert order.similarities.tolist() == [0, np.float32(0.8)]


def test_labels_have_to_fit():
    with pytest.raises(DataError, match=r"\(2,\) labels for 3 documents"):
        partitioned_path(
            np.full((3, 1), -1), np.zeros((3, 1)), np.zeros(2, int), unit_vectors(3), seed=0
        )
