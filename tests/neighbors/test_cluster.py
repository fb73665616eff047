from __future__ import annotations

import numpy as np
import pytest

from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.cluster import (
    assign_clusters,
    cluster_order,
    grid_products,
    k_means,
    on_grid,
)
from tests.neighbors.real import SlicesOnly


def blobs(count, groups, width=16, spread=0.1, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.arange(count) % groups
    vectors = rng.normal(size=(groups, width))[truth] + spread * rng.normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), truth


def test_products_on_the_grid_are_exact_whatever_the_order_of_summation():
    points = on_grid(blobs(300, 3, width=768)[0], np.arange(300))
    exact = points.astype(np.int64) @ points.astype(np.int64).T
    np.testing.assert_array_equal(grid_products(points, points), exact)
    shuffled = np.random.default_rng(0).permutation(768)
    np.testing.assert_array_equal(grid_products(points[:, shuffled], points[:, shuffled]), exact)
    # Also where every partial sum is as large as it can be.
    worst = on_grid(np.full((1, 1), 1, np.float32), np.array([0]))
    assert grid_products(worst, worst) == 2048**2 < 2**24


def test_k_means_improves_on_its_first_centres_and_ends_at_nearest_ones():
    vectors, _ = blobs(600, 6)
    points = on_grid(vectors, np.arange(600))
    labels = k_means(points, 6, seed=0)

    def quality(labels):
        means = [vectors[labels == label].mean(axis=0) for label in np.unique(labels)]
        return sum(
            np.linalg.norm(mean) * (labels == label).sum()
            for mean, label in zip(means, np.unique(labels), strict=True)
        )

    assert quality(labels) > 1.3 * quality(np.random.default_rng(0).integers(0, 6, 600))
    np.testing.assert_array_equal(labels, k_means(points, 6, seed=0))
    assert k_means(points, 1, seed=0).tolist() == [0] * 600


def test_clusters_keep_what_is_alike_together_and_have_about_the_wanted_size():
    vectors, truth = blobs(1000, 20, spread=0.02)
    labels = assign_clusters(vectors, documents=50, seed=1)
    assert set(labels.tolist()) == set(range(labels.max() + 1))
    assert 8 <= labels.max() + 1 <= 20
    whole = sum(len(set(labels[truth == group].tolist())) == 1 for group in range(20))
    assert whole >= 15
    np.testing.assert_array_equal(
        labels, assign_clusters(SlicesOnly(vectors), documents=50, seed=1)
    )
    assert assign_clusters(vectors, documents=50, seed=2).tolist() != labels.tolist()


def test_many_clusters_are_found_in_levels():
    vectors, _ = blobs(3000, 300)
    labels = assign_clusters(vectors, documents=10, seed=0)
    sizes = np.bincount(labels)
    assert 150 < len(sizes) < 400 and sizes.min() > 0


def test_documents_that_are_all_alike_are_divided_too():
    vectors = np.zeros((1000, 4), np.float32)
    vectors[:, 0] = 1
    sizes = np.bincount(assign_clusters(vectors, documents=10, seed=0))
    assert sizes.tolist() == [10] * 100


def test_clusters_are_read_one_after_the_other():
    labels = np.array([7, 7, 3, 3, 3, 9, 7, 9])
    found = set()
    for seed in range(40):
        documents, starts = cluster_order(labels, seed=seed)
        parts = [part.tolist() for part in np.split(documents, np.flatnonzero(starts)[1:])]
        assert starts[0] and starts.sum() == 3
        assert sorted(map(sorted, parts)) == [[0, 1, 6], [2, 3, 4], [5, 7]]
        found.add(tuple(documents.tolist()))
    assert len(found) > 25


@pytest.mark.parametrize(("row", "words"), [([2, 0], "length 2.0"), ([np.nan, 0], "length nan")])
def test_vectors_of_another_length_are_refused(row, words):
    vectors = np.array([[1, 0], [0, 1], row], np.float32)
    with pytest.raises(DataError, match=f"document 2 has {words}"):
        assign_clusters(vectors, documents=1, seed=0)
