"""k-means over embeddings, exact in integers, and the order by clusters.

A cluster decides where documents go, so it has to come out the same on every machine. Sums of
floats do not: they depend on the matrix library and its threads. Vectors are therefore rounded to a
grid of 1/2048, where each partial sum of a product of unit vectors is an integer below 2^24 and a
float32 product exact in any order.
"""

from __future__ import annotations

import numpy as np

from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.order import Vectors, take_rows
from jaxrecipes.neighbors.random_order import derived_seed, random_order

_GRID = 2048
_ROWS = 65_536  # vectors converted at a time
_ITERATIONS = 10
_BRANCHES = 64
_SAMPLE = 256  # points a centre that partitions are found with


def on_grid(vectors: Vectors, rows: np.ndarray) -> np.ndarray:
    """Reads vectors and rounds them to the grid.

    Args:
        vectors: [n, width] L2-normalised.
        rows: [m] int64, which to read.

    Returns:
        [m, width] int16, components times 2048.

    Raises:
        DataError: A vector is not L2-normalised (or has a NaN); the message names the row.
    """
    blocks = []
    for start in range(0, len(rows), _ROWS):
        block = take_rows(vectors, rows[start : start + _ROWS])
        lengths = np.sqrt(np.einsum("id,id->i", block, block))
        wrong = np.flatnonzero(~(np.abs(lengths - 1) < 0.01))
        if wrong.size:
            raise DataError(
                f"embeddings: the vector of document {int(rows[start + wrong[0]])} has length "
                f"{lengths[wrong[0]]:.4f}; expected 1. Normalise the embeddings."
            )
        blocks.append(np.rint(block * _GRID).astype(np.int16))
    return np.concatenate(blocks)


def grid_products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns left @ right.T of grid vectors, [a, b] float32, integers and exact."""
    return left.astype(np.float32) @ right.astype(np.float32).T


def k_means(points: np.ndarray, clusters: int, *, seed: int) -> np.ndarray:
    """Spherical k-means (Lloyd, ten iterations, random points as first centres).

    Args:
        points: [m, width] int16, from ``on_grid``.
        clusters: Number of clusters, 1..m. Some can end up empty.
        seed: Decides the first centres.

    Returns:
        [m] int64, cluster of each point; ties go to the lower cluster.
    """
    return _lloyd(points, clusters, seed)[0]


def partition_centres(vectors: Vectors, *, documents: int, seed: int) -> np.ndarray:
    """Finds centres that divide a corpus into partitions of about ``documents`` documents.

    k-means on a sample of 256 documents a centre, so that a corpus that is larger than memory can
    be divided; see ``nearest_centres`` for the division. Memory: 8 bytes a document for the draw,
    ``512 * centres * width`` for the sample.

    Args:
        vectors: [n, width] L2-normalised; the rows of the sample are read.
        documents: Wanted size of a partition; sizes vary around it.
        seed: Decides the sample and the first centres.

    Returns:
        [partitions, width] int16, on the grid.
    """
    wanted = max(round(len(vectors) / documents), 1)
    sample = np.sort(random_order(len(vectors), seed)[: _SAMPLE * wanted])
    points = on_grid(vectors, sample)
    return _lloyd(points, min(wanted, len(points)), derived_seed(seed, 0))[1]


def nearest_centres(
    vectors: Vectors, centres: np.ndarray, first: int = 0, last: int | None = None
) -> np.ndarray:
    """Returns the partition of each document from ``first`` to ``last``, exactly.

    Args:
        vectors: [n, width] L2-normalised, of the corpus.
        centres: From ``partition_centres``.
        first: The first document.
        last: One past the last; None: all.

    Returns:
        [last - first] int64; ties go to the lower centre.
    """
    last = len(vectors) if last is None else last
    labels = np.empty(last - first, np.int64)
    for start in range(first, last, _ROWS):
        stop = min(start + _ROWS, last)
        block = on_grid(vectors, np.arange(start, stop))
        labels[start - first : stop - first] = grid_products(block, centres).argmax(axis=1)
    return labels


def _lloyd(points: np.ndarray, clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cluster of each point, and the centres that came last."""
    centres = points[random_order(len(points), seed)[:clusters]]
    labels = np.full(len(points), -1, np.int64)
    for _ in range(_ITERATIONS):
        before, sums = labels, np.zeros(centres.shape, np.int64)
        labels = np.empty_like(before)
        for start in range(0, len(points), _ROWS):
            block = points[start : start + _ROWS]
            nearest = grid_products(block, centres).argmax(axis=1)
            labels[start : start + _ROWS] = nearest
            order = np.argsort(nearest, kind="stable")
            present, firsts = np.unique(nearest[order], return_index=True)
            sums[present] += np.add.reduceat(block[order], firsts, axis=0, dtype=np.int64)
        if np.array_equal(labels, before):
            break
        centres = _directions(sums, centres)
    return labels, centres


def assign_clusters(vectors: Vectors, *, documents: int, seed: int) -> np.ndarray:
    """Divides a corpus into clusters of about ``documents`` documents.

    Small corpora by one k-means; a part that would need more than 64 clusters is divided into 64
    first, so that the time grows with n log n and not with n times the number of clusters.

    Args:
        vectors: [n, width] L2-normalised; kept in memory as int16.
        documents: Wanted size of a cluster; sizes vary around it.
        seed: Decides the first centres.

    Returns:
        [n] int64, cluster of each document, 0.. without gaps.
    """
    points = on_grid(vectors, np.arange(len(vectors)))
    labels = np.empty(len(points), np.int64)
    waiting, found = [np.arange(len(points))], 0
    while waiting:
        members = waiting.pop()
        wanted = max(round(len(members) / documents), 1)
        parts = [members]
        if wanted > 1:
            near = k_means(
                points[members], min(wanted, _BRANCHES), seed=derived_seed(seed, int(members[0]))
            )
            parts = [members[near == label] for label in np.unique(near)]
            if len(parts) == 1:  # all alike: no k-means can part them
                parts = np.array_split(members, wanted)
                wanted = 1
        if wanted > _BRANCHES:
            waiting.extend(reversed(parts))
            continue
        for part in parts:
            labels[part] = found
            found += 1
    return labels


def cluster_order(labels: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads one cluster after the other, clusters and the documents inside in random order.

    Args:
        labels: [n] int64, cluster of each document.
        seed: Decides both orders.

    Returns:
        documents [n] int64, starts [n] bool (first document of each cluster).
    """
    documents = random_order(len(labels), seed)
    _, members = np.unique(labels, return_inverse=True)
    ranks = random_order(int(members.max(initial=-1)) + 1, derived_seed(seed, 1))
    documents = documents[np.argsort(ranks[members[documents]], kind="stable")]
    starts = np.diff(members[documents], prepend=-1) != 0
    return documents, starts


def _directions(sums: np.ndarray, centres: np.ndarray) -> np.ndarray:
    # Integers up to the square root: lengths are rounded once, the same way everywhere. Sums are
    # first brought to 2^20, so that squares of 4096 components still fit into 64 bits.
    largest = np.abs(sums).max(axis=1, keepdims=True)
    scaled = np.rint(sums / np.maximum(largest, 1) * 2**20).astype(np.int64)
    lengths = np.sqrt((scaled**2).sum(axis=1, keepdims=True).astype(np.float64))
    moved = np.rint(scaled / np.maximum(lengths, 1) * _GRID).astype(np.int16)
    return np.where(largest > 0, moved, centres)
