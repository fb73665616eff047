"""Real documents with embeddings that need no model: hashed tf-idf and a truncated SVD."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds


class SlicesOnly:
    """Vectors that can be read by slices only, as embeddings on disk."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.rows = vectors

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> np.ndarray:
        assert isinstance(rows, slice)
        return self.rows[rows]


def newsgroups(shared_data: Path) -> list[str]:
    lines = (
        (shared_data / "newsgroups20" / "documents.jsonl")
        .read_text(encoding="utf-8")
        .strip()
        .split("\n")
    )
    return [f"{entry['title']}\n{entry['text']}" for entry in map(json.loads, lines)]


def embed(texts: list[str], *, width: int = 64, buckets: int = 2**15) -> np.ndarray:
    counts = [
        Counter(zlib.crc32(word.encode()) % buckets for word in re.findall(r"\w+", text.lower()))
        for text in texts
    ]
    rows = np.repeat(np.arange(len(texts)), [len(count) for count in counts])
    columns = np.array([bucket for count in counts for bucket in count])
    values = np.log1p([number for count in counts for number in count.values()])
    values *= np.log(len(texts) / np.bincount(columns, minlength=buckets)[columns])
    table = csr_matrix((values, (rows, columns)), shape=(len(texts), buckets))
    left, scale, _ = svds(table, k=width, random_state=0, v0=np.ones(len(texts)))
    vectors = left * scale
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)


def nearest(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    products = vectors @ vectors.T
    np.fill_diagonal(products, -np.inf)
    ids = np.argsort(-products, axis=1, kind="stable")[:, :count]
    return ids, np.take_along_axis(products, ids, axis=1)
