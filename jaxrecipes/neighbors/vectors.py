"""What a search reads: rows of unit length, checked before anything else sees them.

ScaNN ends the process when a vector holds a NaN, and a vector that is not of unit length makes an
inner product something else than a cosine. So every row is looked at once, block by block.
"""

from __future__ import annotations

from typing import Any, Protocol

import numba
import numpy as np

from jaxrecipes.errors import DataError

# A unit vector stored in bfloat16 (8 bits of precision) is off by 2**-9 at most; in float16 less.
NORM_TOLERANCE = 2e-3
READ_ROWS = 16_384


class Vectors(Protocol):
    """Rows of numbers: an array, a memory map, or anything with a length and slices."""

    def __len__(self) -> int:
        """Returns the number of rows."""
        ...

    def __getitem__(self, rows: slice, /) -> Any:
        """Returns the rows [stop - start, width] of a slice."""
        ...


def read_rows(vectors: Vectors, start: int, stop: int) -> np.ndarray:
    """Returns rows [stop - start, width] as contiguous float32; float32 is not copied."""
    return np.ascontiguousarray(vectors[start:stop], dtype=np.float32)


def check_vectors(
    vectors: Vectors, *, width: int | None = None, what: str = "vectors", first: int = 0
) -> int:
    """Reads every row once and refuses what cannot be searched.

    Args:
        vectors: [rows, width] of any float dtype.
        width: The width that the rows must have; any where it is None.
        what: What the rows are, for the message.
        first: Number of the first row, where they are a part of something.

    Returns:
        The width.

    Raises:
        DataError: There are no rows or they are not a matrix; the width is another; a row holds a
            NaN or an infinity, is zero, or is not of unit length. The message names the first.
    """
    count = len(vectors)
    if count == 0:
        raise DataError(f"{what}: there are no rows; expected at least one vector.")
    for start in range(0, count, READ_ROWS):
        stop = min(start + READ_ROWS, count)
        rows = read_rows(vectors, start, stop)
        if rows.ndim != 2 or len(rows) != stop - start or rows.shape[1] == 0:
            raise DataError(
                f"{what}: rows {start} to {stop - 1} have the shape {list(rows.shape)}; expected "
                f"[{stop - start}, width]: one vector a row."
            )
        if width is None:
            width = rows.shape[1]
        if rows.shape[1] != width:
            raise DataError(
                f"{what}: row {start} has {rows.shape[1]} numbers, expected {width}. Embed "
                "everything with one encoder."
            )
        norms = np.sqrt(np.einsum("rw,rw->r", rows, rows))
        # A NaN or an infinity in a row shows in its norm; written so that NaN counts as wrong.
        wrong = np.flatnonzero(~(np.abs(norms - 1.0) <= NORM_TOLERANCE))
        if len(wrong):
            raise DataError(_complaint(what, first + start + int(wrong[0]), rows[wrong[0]]))
    assert width is not None
    return width


def pair_similarities(queries: np.ndarray, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Returns the inner products of queries with the rows that ``ids`` names.

    Products and sums are float64, one after the other, and rounded to float32 at the end: a pair
    has one similarity, whichever of the two is the query, whichever index found it, in whichever
    block, on whichever machine. So copies of one vector tie exactly, and graphs are symmetric.

    Args:
        queries: [queries, width] float32.
        rows: [rows, width] float32.
        ids: [queries, count] int64, positions in ``rows``; -1 where there is none.

    Returns:
        [queries, count] float32; -inf where there is no id.
    """
    return _pair_similarities(queries, rows, ids)


@numba.njit(nogil=True)
def _pair_similarities(queries: Any, rows: Any, ids: Any) -> Any:
    similarities = np.empty(ids.shape, np.float32)
    for query in range(ids.shape[0]):
        for place in range(ids.shape[1]):
            row = ids[query, place]
            total = np.float64(0.0)
            if row < 0:
                total = -np.inf
            else:
                for column in range(queries.shape[1]):
                    total += np.float64(queries[query, column]) * np.float64(rows[row, column])
            similarities[query, place] = total
    return similarities


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Returns the share of the exact neighbours that were found, judged by similarity.

    A neighbour counts where it is as similar as the last exact one: of several copies of one
    document any will do.

    Args:
        found: [queries, count] float32 similarities; -inf where nothing was found.
        exact: [queries, count] float32 similarities of the exact neighbours, largest first.
    """
    wanted = np.isfinite(exact)
    last = np.where(wanted, exact, np.inf).min(axis=1, keepdims=True)
    # An exact search in float32 may swap rows that are closer than this.
    return float((found >= last - 1e-6).sum() / max(int(wanted.sum()), 1))


def sort_neighbors(ids: np.ndarray, similarities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorts each row by similarity, largest first, then by id; missing ones (-1, -inf) go last.

    Args:
        ids: [rows, count] int64.
        similarities: [rows, count] float32.
    """
    order = np.lexsort((ids, -similarities), axis=-1)
    return np.take_along_axis(ids, order, 1), np.take_along_axis(similarities, order, 1)


def _complaint(what: str, row: int, vector: np.ndarray) -> str:
    if not np.isfinite(vector).all():
        kind = "a NaN" if np.isnan(vector).any() else "an infinity"
        return (
            f"{what}: row {row} holds {kind} (at column "
            f"{int(np.flatnonzero(~np.isfinite(vector))[0])}); expected finite numbers. Embed that "
            "document again, with compute dtype float32 if it comes back."
        )
    if not vector.any():
        return (
            f"{what}: row {row} is all zeros, so it is like nothing. The document may be empty: "
            "leave it out, or embed it again."
        )
    return (
        f"{what}: row {row} has the length {float(np.linalg.norm(vector)):.4f}; expected 1 within "
        f"{NORM_TOLERANCE}. Divide every vector by its length."
    )
