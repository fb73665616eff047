"""Vectors whose inner products are exact in float32, so that ties are ties on every machine."""

from __future__ import annotations

import numpy as np


def exact_unit_vectors(count: int, seed: int, *, width: int = 8) -> np.ndarray:
    """Rows with four entries of +-1/2: of length 1, inner products multiples of 1/4, many equal."""
    generator = np.random.default_rng(seed)
    rows = np.zeros((count, width), np.float32)
    for row in rows:
        row[generator.permutation(width)[:4]] = generator.choice([-0.5, 0.5], 4)
    return rows


def unit_vectors(count: int, seed: int, *, width: int = 16, clusters: int = 0) -> np.ndarray:
    """Random rows of length 1, around as many centres where clusters are asked for."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((count, width), np.float32)
    if clusters:
        centres = 2 * generator.standard_normal((clusters, width), np.float32)
        rows += centres[generator.integers(0, clusters, count)]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def brute_force(queries: np.ndarray, rows: np.ndarray, k: int, own: np.ndarray | None = None):
    """Ids and similarities by float64 products of everything, sorted by (similarity, id)."""
    products = queries.astype(np.float64) @ rows.T.astype(np.float64)
    ids = np.full((len(queries), k), -1, np.int64)
    values = np.full((len(queries), k), -np.inf, np.float32)
    for query, line in enumerate(products):
        others = [row for row in range(len(rows)) if own is None or row != own[query]]
        best = sorted(others, key=lambda row: (-line[row], row))[:k]
        ids[query, : len(best)] = best
        values[query, : len(best)] = line[best]
    return ids, values
