"""The order in which documents are read, and what can be said about it."""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.graph import Graph, edge_weights

_ARRAYS = ("documents", "similarities", "starts")
_FILE = "order.npz"
_BLOCK = 262_144  # documents whose vectors are in memory at a time
_WINDOW = 4096  # rows read at once where single rows cannot be


class Vectors(Protocol):
    """Rows of L2-normalised embeddings: an array, a memory map, or anything with slices."""

    def __len__(self) -> int:
        """Returns the number of rows."""
        ...

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Returns the rows [stop - start, width] of a slice."""
        ...


@runtime_checkable
class SingleRows(Protocol):
    """Vectors of which single rows can be read."""

    def take_rows(self, rows: np.ndarray) -> np.ndarray:
        """Returns float32 [m, width] of rows [m] int64, in any order."""
        ...


@dataclass(frozen=True, eq=False)
class Order:
    """Documents in reading order.

    Attributes:
        documents: [m] int64, index of each document in the corpus.
        similarities: [m] float32, cosine similarity to the document before; 0 at a start, and
            where the method was given nothing to know it from.
        starts: [m] bool, True where the document was not chosen for the one before: the first, a
            new start of the path, the first of a group.
        method: Name of the method, see ``methods.METHODS``.
    """

    documents: np.ndarray
    similarities: np.ndarray
    starts: np.ndarray
    method: str

    def __len__(self) -> int:
        """Returns the number of places."""
        return len(self.documents)

    def save(self, folder: str | Path) -> None:
        """Writes ``order.npz`` into a folder (made complete by the stage that asks for it)."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        np.savez(Path(folder) / _FILE, method=np.array(self.method), **arrays)

    @classmethod
    def load(cls, folder: str | Path) -> Order:
        """Reads an order that ``save`` wrote.

        Raises:
            DataError: The file is missing or damaged (it holds checksums).
        """
        path = Path(folder) / _FILE
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(*(file[name] for name in _ARRAYS), method=str(file["method"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{path}: no order can be read from it ({error}). Remove {path.parent}, it is "
                "made again."
            ) from None


@dataclass(frozen=True)
class OrderStatistics:
    """Figures to compare orders of one corpus by.

    Attributes:
        method: Name of the method.
        places: m, length of the order.
        coverage: Share of the corpus's documents that occur.
        largest_repeats: Times that the most frequent document occurs.
        starts: Documents not chosen for the one before, the first included.
        path_weight: Sum of the weights of the graph's edges between adjacent documents, 0 where
            there is no edge: what the paper's path maximises.
        mean_path_weight: The same per pair of adjacent documents.
        mean_adjacent_cosine: Mean cosine similarity of all pairs of adjacent documents, starts
            included.
    """

    method: str
    places: int
    coverage: float
    largest_repeats: int
    starts: int
    path_weight: float
    mean_path_weight: float
    mean_adjacent_cosine: float

    def to_json(self) -> dict[str, Any]:
        """Returns the figures by name."""
        return asdict(self)


def order_statistics(order: Order, vectors: Vectors, graph: Graph) -> OrderStatistics:
    """Computes the figures of an order.

    Args:
        order: m places, documents of a corpus of n.
        vectors: [n, width] L2-normalised embeddings.
        graph: The graph of the n documents.
    """
    occurrences = np.bincount(order.documents, minlength=graph.count)
    pairs = max(len(order) - 1, 1)
    weights = edge_weights(graph, order.documents[:-1], order.documents[1:])
    weight = math.fsum(weights.tolist())
    cosine = math.fsum(adjacent_cosines(order.documents, vectors).tolist()) / pairs
    return OrderStatistics(
        method=order.method,
        places=len(order),
        coverage=float((occurrences > 0).mean()),
        largest_repeats=int(occurrences.max(initial=0)),
        starts=int(order.starts.sum()),
        path_weight=weight,
        mean_path_weight=weight / pairs,
        mean_adjacent_cosine=cosine,
    )


def adjacent_cosines(documents: np.ndarray, vectors: Vectors) -> np.ndarray:
    """Returns the cosine similarity of each document to the one before it.

    Args:
        documents: [m] int64.
        vectors: [n, width] L2-normalised; read in blocks, rows in ascending order.

    Returns:
        [m - 1] float32 (empty for m < 2).
    """
    found = np.empty(max(len(documents) - 1, 0), np.float32)
    for start in range(0, len(found), _BLOCK):
        block = documents[start : start + _BLOCK + 1]
        rows, places = np.unique(block, return_inverse=True)
        block_vectors = take_rows(vectors, rows)
        found[start : start + len(block) - 1] = np.einsum(
            "id,id->i", block_vectors[places[:-1]], block_vectors[places[1:]]
        )
    return found


def take_rows(vectors: Vectors, rows: np.ndarray) -> np.ndarray:
    """Reads single rows. What has slices only is read in windows, those that hold a wanted row.

    Args:
        vectors: [n, width].
        rows: [m] int64, in any order.

    Returns:
        [m, width] float32.
    """
    if isinstance(vectors, np.ndarray):
        return np.asarray(vectors[rows], np.float32)
    if isinstance(vectors, SingleRows):
        return vectors.take_rows(rows)
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    found = np.empty((len(rows), vectors[0:1].shape[1]), np.float32)
    for window in np.unique(ascending // _WINDOW).tolist():
        start = window * _WINDOW
        stop = min(start + _WINDOW, len(vectors))
        inside = slice(*np.searchsorted(ascending, [start, stop]).tolist())
        found[order[inside]] = vectors[start:stop][ascending[inside] - start]
    return found


def check_permutation(order: Order, count: int) -> None:
    """Checks that every document of a corpus occurs exactly once.

    Args:
        order: Any order.
        count: n, documents of the corpus.

    Raises:
        DataError: It does not; the message gives the first missing and the first repeated document.
    """
    documents = order.documents
    outside = documents[(documents < 0) | (documents >= count)]
    if outside.size:
        raise DataError(
            f"the order ({order.method}) names document {int(outside[0])}; expected "
            f"0..{count - 1}. Was it made for another corpus?"
        )
    occurrences = np.bincount(documents, minlength=count)
    missing, repeated = np.flatnonzero(occurrences == 0), np.flatnonzero(occurrences > 1)
    if missing.size or repeated.size:
        found = []
        if missing.size:
            found.append(f"{missing.size} of {count} are missing (the first is {missing[0]})")
        if repeated.size:
            found.append(
                f"{repeated.size} are repeated (the first, {repeated[0]}, occurs "
                f"{occurrences[repeated[0]]} times)"
            )
        raise DataError(
            f"the order ({order.method}) does not name every document exactly once: "
            f"{'; '.join(found)}. Only the method knn repeats documents; make the order again."
        )
