"""The graph of documents: two are joined where one is among the other's nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxrecipes.errors import DataError


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected weighted graph in compressed rows. Each edge stands in the rows of both ends.

    Attributes:
        indptr: [n + 1] int64, the edges of document i are ``indptr[i]:indptr[i + 1]``.
        indices: [2 x edges] int32, the other end. A row is sorted by weight, highest first, then by
            index.
        weights: [2 x edges] float32, cosine similarity.
    """

    indptr: np.ndarray
    indices: np.ndarray
    weights: np.ndarray

    @property
    def count(self) -> int:
        """Number of documents."""
        return len(self.indptr) - 1

    @property
    def degrees(self) -> np.ndarray:
        """[n] int64, number of edges of each document."""
        return np.diff(self.indptr)


def build_graph(ids: np.ndarray, similarities: np.ndarray) -> Graph:
    """Joins documents i and j where j is in the list of i or i in the list of j.

    This is the graph of In-Context Pretraining (arXiv 2310.10638, section 2.2). Where the two lists
    (or two entries of one list) give different weights to an edge, the highest counts. A document
    in its own list is no edge.

    Time is O(E log E) at worst (rows are sorted), memory O(n + E).

    Args:
        ids: [n, k] integers, the nearest neighbours of each document; -1 fills short lists.
        similarities: [n, k] floats, their cosine similarities; not read where the id is -1.

    Returns:
        The graph; the same input gives the same bytes on every machine.

    Raises:
        DataError: The shapes differ, an id is no document, or a similarity is not finite.
    """
    ids, similarities = check_lists(ids, similarities)
    from jaxrecipes.neighbors import graph_loops  # numba takes a second to import

    ends = graph_loops.count_entries(ids)
    # Large arrays are made here and not in the loops: NumPy asks for large pages, numba does not.
    entries, indptr = np.empty(ends[-1], np.uint64), np.empty(len(ends), np.int64)
    bits = similarities.view(np.uint32)
    graph_loops.unite(ids, bits, ends, ends[:-1].copy(), entries, indptr)
    indices, weights = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    graph_loops.unpack(entries, ends, indptr, indices, weights.view(np.uint32))
    return Graph(indptr, indices, weights)


def edge_weights(graph: Graph, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the weight of each pair's edge, 0 where the two are not joined.

    Args:
        graph: n documents.
        left: [m] int64, documents.
        right: [m] int64, documents.

    Returns:
        [m] float32.
    """
    from jaxrecipes.neighbors import graph_loops

    left, right = (np.ascontiguousarray(side, np.int64) for side in (left, right))
    return graph_loops.look_up(graph.indptr, graph.indices, graph.weights, left, right)


def check_lists(ids: np.ndarray, similarities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checks neighbour lists and returns them as contiguous int64 and float32 arrays.

    Raises:
        DataError: See ``build_graph``; the message names the first wrong row.
    """
    ids, similarities = np.asarray(ids), np.asarray(similarities)
    if ids.ndim != 2 or ids.shape != similarities.shape:
        raise DataError(
            f"neighbour lists: ids have shape {ids.shape}, similarities {similarities.shape}; "
            "expected both [documents, neighbours]."
        )
    if not np.issubdtype(ids.dtype, np.integer):
        raise DataError(f"neighbour lists: ids are {ids.dtype}; expected integers.")
    count = len(ids)
    if count >= 2**31:
        raise DataError(
            f"neighbour lists: {count} documents in one graph; expected fewer than 2^31. Order the "
            "corpus in partitions (neighbors/partition.py)."
        )
    wrong = (ids < -1) | (ids >= count)
    if wrong.any():
        row, column = (int(place) for place in np.argwhere(wrong)[0])
        raise DataError(
            f"neighbour lists: row {row} names document {int(ids[row, column])} in column "
            f"{column}; expected 0..{count - 1}, or -1 where a list is short. Were lists and "
            "documents made of the same corpus?"
        )
    wrong = (ids >= 0) & ~np.isfinite(similarities)
    if wrong.any():
        row, column = (int(place) for place in np.argwhere(wrong)[0])
        raise DataError(
            f"neighbour lists: the similarity of row {row} to document {int(ids[row, column])} is "
            f"{similarities[row, column]}; expected a finite cosine. Check the embeddings."
        )
    return np.ascontiguousarray(ids, np.int64), np.ascontiguousarray(similarities, np.float32)
