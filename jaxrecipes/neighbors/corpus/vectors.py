"""The vectors of a corpus by their place on disk, so that they can be named to another machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from jaxrecipes.neighbors.embeddings import Embeddings, map_embeddings


@dataclass(frozen=True)
class StoredVectors:
    """Vectors of documents, or of some of them. What is sent elsewhere is the two paths.

    Attributes:
        folder: Embeddings; see ``embeddings``.
        kept: An .npy file with the rows that count, int64, ascending; None: all.
    """

    folder: Path
    kept: Path | None = None

    def __len__(self) -> int:
        """Returns the number of documents."""
        return self._embeddings.count if self._rows is None else len(self._rows)

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self._embeddings.width

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Returns float32 [rows, width] of a slice without a step."""
        if self._rows is None:
            return self._embeddings[rows]
        return self._embeddings.take_rows(np.asarray(self._rows[rows]))

    def take_rows(self, rows: np.ndarray) -> np.ndarray:
        """Returns float32 [m, width] of rows [m] int64, in any order."""
        return self._embeddings.take_rows(rows if self._rows is None else self._rows[rows])

    def __reduce__(self) -> tuple[type[StoredVectors], tuple[Path, Path | None]]:
        """Leaves out what is open."""
        return StoredVectors, (self.folder, self.kept)

    @cached_property
    def _embeddings(self) -> Embeddings:
        return map_embeddings(self.folder)

    @cached_property
    def _rows(self) -> np.ndarray | None:
        return None if self.kept is None else np.load(self.kept)
