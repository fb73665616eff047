"""Neighbour lists: what a search found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The most similar documents of every document, itself left out.

    Attributes:
        ids: [documents, k] int64, by similarity (largest first), then by id; -1 where there are
            fewer than k others.
        similarities: [documents, k] float32, cosines; -inf where the id is -1.
        index: What searched: ``exact`` or ``scann``.
        recall: Share of the exact neighbours that were found, on a sample; 1 for ``exact``.
        recall_sample: Documents of that sample; 0 for ``exact``, which it would compare with
            itself.
        seconds: Time of the search; ``build_seconds`` of it for building the index.
        build_seconds: Time of building the index.
        options: Parameters of the index.
    """

    ids: np.ndarray
    similarities: np.ndarray
    index: str
    recall: float
    recall_sample: int
    seconds: float
    build_seconds: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Returns the number of documents."""
        return len(self.ids)
