"""Paths through parts of a corpus, found side by side and joined end to end."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.cluster import grid_products, on_grid
from jaxrecipes.neighbors.graph import build_graph, check_lists
from jaxrecipes.neighbors.greedy import Degree, Start, greedy_path
from jaxrecipes.neighbors.order import Order, Vectors
from jaxrecipes.neighbors.random_order import derived_seed


def partitioned_path(
    ids: np.ndarray,
    similarities: np.ndarray,
    labels: np.ndarray,
    vectors: Vectors,
    *,
    seed: int,
    workers: int = 1,
    degree: Degree = "static",
    start: Start = "min_degree",
) -> Order:
    """Traverses each partition on its own and stitches the paths.

    Edges between partitions are not followed, which costs weight: see ``weight_loss``. The path of
    a partition depends on its lists, its number and the seed, so the order is the same for any
    number of workers.

    Args:
        ids: [n, k] int64, nearest neighbours; -1 fills short lists.
        similarities: [n, k] float32.
        labels: [n] integers, partition of each document: k-means (``cluster.nearest_centres``), the
            leaves of an index, or any other.
        vectors: [n, width] L2-normalised; only those of the paths' ends are read.
        seed: Seed of all partitions.
        workers: Threads. The loops run without the interpreter's lock, so threads are as good as
            processes and need no copies.
        degree: See ``greedy_path``.
        start: See ``greedy_path``.

    Returns:
        Order of all n documents, method "path"; each partition begins with a start.

    Raises:
        DataError: There is not one label a document, or the lists are wrong (``build_graph``).
        ConfigError: See ``greedy_path``.
    """
    ids, similarities = check_lists(ids, similarities)
    if labels.shape != (len(ids),):
        raise DataError(
            f"partitions: {labels.shape} labels for {len(ids)} documents; expected one each."
        )
    by_label = np.argsort(labels, kind="stable")
    bounds = np.flatnonzero(np.diff(labels[by_label])) + 1
    partitions = np.split(by_label, bounds)

    def traverse(number: int) -> Order:
        members = partitions[number]
        return traverse_partition(
            ids[members],
            similarities[members],
            members,
            seed=derived_seed(seed, number),
            degree=degree,
            start=start,
        )

    with ThreadPoolExecutor(max_workers=workers) as pool:
        paths = list(pool.map(traverse, range(len(partitions))))
    return stitch(paths, vectors)


def traverse_partition(
    ids: np.ndarray,
    similarities: np.ndarray,
    members: np.ndarray,
    *,
    seed: int,
    degree: Degree = "static",
    start: Start = "min_degree",
) -> Order:
    """Finds the path through one partition. Needs nothing of the others.

    Args:
        ids: [m, k] int64, neighbour lists of the members, as indices into the corpus; neighbours
            outside of the partition are left out.
        similarities: [m, k] float32.
        members: [m] int64, indices of the members in the corpus, ascending.
        seed: Seed of this partition.
        degree: See ``greedy_path``; counts neighbours in the partition.
        start: See ``greedy_path``.

    Returns:
        Order of the members, as indices into the corpus.
    """
    places = np.minimum(np.searchsorted(members, ids), len(members) - 1)
    local = np.where(members[places] == ids, places, -1)
    path = greedy_path(build_graph(local, similarities), seed=seed, degree=degree, start=start)
    return Order(members[path.documents], path.similarities, path.starts, path.method)


def stitch(paths: list[Order], vectors: Vectors) -> Order:
    """Joins paths greedily: after each comes the one with an end most similar to where it stopped.

    Begins with the first path. A path whose last document is the nearer one is read backwards.
    Similarities are compared on the grid of ``cluster.on_grid``, exactly; ties go to the earlier
    path, then to its first document. Time is O(paths^2 x width), memory O(paths x width).

    Args:
        paths: Orders of disjoint documents, none empty.
        vectors: [n, width] L2-normalised, of the corpus.

    Returns:
        One order with all documents; each path still begins with a start and similarity 0.
    """
    ends = on_grid(vectors, np.array([path.documents[[0, -1]] for path in paths]).ravel())
    ends = ends.astype(np.float32)
    unused = np.ones(len(paths), bool)
    joined = [paths[0]]
    unused[0] = False
    tail = ends[1]
    for _ in range(len(paths) - 1):
        near = np.where(np.repeat(unused, 2), grid_products(tail[None], ends)[0], -np.inf)
        best = int(near.argmax())
        number, reverse = divmod(best, 2)
        unused[number] = False
        joined.append(_reversed(paths[number]) if reverse else paths[number])
        tail = ends[2 * number + 1 - reverse]
    return Order(
        np.concatenate([path.documents for path in joined]),
        np.concatenate([path.similarities for path in joined]),
        np.concatenate([path.starts for path in joined]),
        paths[0].method,
    )


def weight_loss(parts: Order, whole: Order) -> float:
    """Returns the share of the whole path's weight that the partitioned path lost.

    Args:
        parts: From ``partitioned_path``.
        whole: From ``greedy_path`` over the graph of all documents.

    Returns:
        1 - weight(parts) / weight(whole); negative where the parts did better, 0 where the whole
        has no weight.
    """
    weight = math.fsum(whole.similarities.tolist())
    return 1 - math.fsum(parts.similarities.tolist()) / weight if weight else 0.0


def cut_weight(ids: np.ndarray, similarities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of the lists' weight that goes to other partitions.

    What ``weight_loss`` depends on, where the whole graph does not fit into memory.

    Args:
        ids: [n, k] int64; -1 fills short lists.
        similarities: [n, k] float32.
        labels: [n] integers.
    """
    valid = ids >= 0
    weights = np.where(valid, similarities, 0).astype(np.float64)
    outside = labels[:, None] != labels[np.maximum(ids, 0)]
    total = weights.sum()
    return float(weights[outside & valid].sum() / total) if total else 0.0


def _reversed(path: Order) -> Order:
    # A join belongs to its later document, which is the earlier one when read backwards.
    return Order(
        path.documents[::-1],
        np.concatenate([[np.float32(0)], path.similarities[:0:-1]]).astype(np.float32),
        np.concatenate([[True], path.starts[:0:-1]]),
        path.method,
    )
