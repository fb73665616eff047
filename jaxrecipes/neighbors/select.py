"""kNN selection: the texts of a pool that are most like a task's, and a random control.

Don't Stop Pretraining (arXiv 2004.10964, section 4.2: kNN-TAPT) continues pretraining on the
neighbours of a task's texts in a domain; RAND-TAPT, its control, on as many texts drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.deduplicate import SIMILARITY, Duplicates, find_duplicates
from jaxrecipes.neighbors.search import Index, find_neighbors, search_queries
from jaxrecipes.neighbors.vectors import Vectors

# Near-duplicates of one text are removed in one go where there are no more of them than this.
_DUPLICATE_NEIGHBORS = 32


@dataclass(frozen=True, eq=False)
class Selection:
    """What was selected from a pool.

    Attributes:
        selected: [selected] int64, sorted rows of the pool.
        control: [selected] int64, sorted rows drawn from the rest of the pool.
        neighbors: [queries, k] int64, the neighbours of each text of the task; -1: none.
        similarities: [queries, k] float32.
        found: Different rows among the neighbours, before near-duplicates went.
        duplicates: The near-duplicates that went; indices are rows of the pool.
    """

    selected: np.ndarray
    control: np.ndarray
    neighbors: np.ndarray
    similarities: np.ndarray
    found: int
    duplicates: Duplicates


def select_neighbors(
    pool: Index,
    queries: Vectors,
    k: int,
    *,
    lengths: np.ndarray | None = None,
    similarity: float = SIMILARITY,
    seed: int = 0,
) -> Selection:
    """Selects the k nearest rows of a pool for each text of a task, each row once.

    Args:
        pool: Index over the pool, from ``build_index``.
        queries: [texts, width], the task's texts, rows of unit length.
        k: Neighbours a text.
        lengths: [rows of the pool]; of near-duplicates the longest is kept, otherwise the first.
        similarity: Cosine from which two selected rows are near-duplicates; above 1: never.
        seed: Draws the control.

    Returns:
        The union of the neighbours without near-duplicates, and as many rows drawn from those that
        were not found; the same for the same seed.

    Raises:
        ConfigError: k is below 1, or the threshold not above 0.
        DataError: A query cannot be searched; or the rest of the pool is too small for a control.
    """
    ids, similarities = search_queries(pool, queries, k)
    found = np.unique(ids[ids >= 0])
    vectors = np.ascontiguousarray(pool.rows[found])
    nearest = find_neighbors(vectors, min(_DUPLICATE_NEIGHBORS, max(len(found) - 1, 1)))
    duplicates = _in_pool(
        find_duplicates(
            nearest,
            vectors,
            np.ones(len(found), np.int64) if lengths is None else np.asarray(lengths)[found],
            similarity=similarity,
        ),
        found,
    )
    rest = np.setdiff1d(np.arange(len(pool.rows)), found)
    if len(rest) < len(duplicates.kept):
        raise DataError(
            f"kNN selection: {len(found)} of the pool's {len(pool.rows)} rows are neighbours of "
            f"the task, {len(rest)} are left; a random control needs {len(duplicates.kept)}. Take "
            f"a larger pool, or a smaller k than {k}."
        )
    control = np.random.default_rng(seed).permutation(rest)[: len(duplicates.kept)]
    return Selection(duplicates.kept, np.sort(control), ids, similarities, len(found), duplicates)


def _in_pool(duplicates: Duplicates, rows: np.ndarray) -> Duplicates:
    """Renames the documents of a deduplication to the rows of the pool that they are."""
    return replace(
        duplicates,
        kept=rows[duplicates.kept],
        removed=tuple(
            replace(one, index=int(rows[one.index]), kept=int(rows[one.kept]))
            for one in duplicates.removed
        ),
    )
