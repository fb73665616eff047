"""Neighbour search: ours (exact, ScaNN) against faiss and hnswlib, on vectors like embeddings.

    pip install -e '.[benchmarks]'
    python benchmarks/neighbors.py [--rows 100000] [--queries 20000] [--markdown FILE]

Every side builds its index and answers the same queries (rows of the corpus, k = 10 others) on all
cores, in a process of its own, one after the other. Recall is the share of the exact neighbours
found, judged by similarity. Memory is the peak beyond that of libraries and vectors.

Vectors (see `make_vectors`): every row is a blend of three topics out of rows/50, one strong and
two weak, with popularity like rank**-0.5; of something that all rows share; and of noise of its
own; with a spectrum like rank**-0.35, in a random rotation, of unit length. At 100,000 x 384 the
mean cosine of two rows is 0.19, of a row and its nearest 0.71, of its 10th 0.66, and the
participation ratio of the spectrum is 105. Topics overlap on purpose: when every row has one topic
only, a search of a thirtieth of the partitions finds everything.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

K = 10
WIDTH = 384
SMALL = 2000
# A side takes the vectors and returns its settings in words and what searches them:
# queries [queries, width] -> ids [queries, K + 1], each query's own row among them.
Side = Callable[[np.ndarray], tuple[str, Callable[[np.ndarray], np.ndarray]]]


def make_vectors(count: int, width: int, seed: int) -> np.ndarray:
    """Makes [count, width] float32 rows of unit length; see the top of the file."""
    generator = np.random.default_rng(seed)
    spectrum = np.arange(1, width + 1) ** -0.35
    rotation, _ = np.linalg.qr(generator.standard_normal((width, width)))
    basis = (spectrum[:, None] * rotation / np.linalg.norm(spectrum)).astype(np.float32)
    topics = generator.standard_normal((max(count // 50, 10), width), np.float32)
    popularity = np.arange(1, len(topics) + 1) ** -0.5
    popularity /= popularity.sum()
    shared = 0.5 * generator.standard_normal(width).astype(np.float32)
    vectors = np.empty((count, width), np.float32)
    for start in range(0, count, 10_000):
        rows = min(10_000, count - start)
        mixed = shared + 0.6 * generator.standard_normal((rows, width), np.float32)
        for weight in (0.8, 0.4, 0.2):
            mixed += weight * topics[generator.choice(len(topics), rows, p=popularity)]
        mixed = mixed @ basis
        vectors[start : start + rows] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return vectors


def ours(name: str) -> Side:
    def build(vectors: np.ndarray) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
        from jaxrecipes.neighbors.scann_index import ScannIndex
        from jaxrecipes.neighbors.search import build_index, search_queries

        index = build_index(vectors, K + 1, index=name)  # type: ignore[arg-type]
        settings = "all rows"
        if isinstance(index, ScannIndex):
            options = index.options
            settings = f"{options.leaves_to_search} of {options.leaves} leaves"
        return settings, lambda queries: search_queries(index, queries, K + 1)[0]

    return build


def faiss_flat(vectors: np.ndarray) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return "all rows", lambda queries: index.search(queries, K + 1)[1]


def faiss_hnsw(vectors: np.ndarray) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    import faiss

    index = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    index.add(vectors)
    index.hnsw.efSearch = 64
    return "M 16, ef 100/64", lambda queries: index.search(queries, K + 1)[1]


def faiss_ivf(vectors: np.ndarray) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    import faiss

    leaves = round(len(vectors) ** 0.5)
    quantizer = faiss.IndexFlatIP(vectors.shape[1])
    index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], leaves, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    index.nprobe = round(0.2 * leaves)
    return f"{index.nprobe} of {leaves} lists", lambda queries: index.search(queries, K + 1)[1]


def hnswlib_hnsw(vectors: np.ndarray) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    import hnswlib

    index = hnswlib.Index("ip", vectors.shape[1])
    index.init_index(len(vectors), ef_construction=100, M=16, random_seed=0)
    index.add_items(vectors)
    index.set_ef(64)
    return "M 16, ef 100/64", lambda queries: index.knn_query(queries, K + 1)[0]


SIDES: dict[str, tuple[str, Side]] = {
    "ours, exact": ("jax", ours("exact")),
    "ours, ScaNN": ("scann", ours("scann")),
    "faiss, flat": ("faiss-cpu", faiss_flat),
    "faiss, IVF flat": ("faiss-cpu", faiss_ivf),
    "faiss, HNSW": ("faiss-cpu", faiss_hnsw),
    "hnswlib": ("hnswlib", hnswlib_hnsw),
}


def measure(name: str, folder: Path) -> dict[str, Any]:
    """One side, in this process; writes the ids that it found."""
    vectors, rows = np.load(folder / "vectors.npy"), np.load(folder / "queries.npy")
    # Imports, compilers and thread pools are no part of what is compared.
    SIDES[name][1](vectors[:SMALL])[1](vectors[:SMALL])
    with Peak() as peak:
        began = time.perf_counter()
        settings, search = SIDES[name][1](vectors)
        build = time.perf_counter() - began
        search(vectors[rows[:SMALL]])
        queries = vectors[rows]
        began = time.perf_counter()
        ids = np.asarray(search(queries), dtype=np.int64)
        seconds = time.perf_counter() - began
    np.save(folder / f"{list(SIDES).index(name)}.npy", ids)
    return {"settings": settings, "build": build, "search": seconds, "memory": peak.bytes}


class Peak:
    """Growth of the resident memory, looked at every 20 ms.

    The system's own peak would say less: a new process inherits it from its parent.
    """

    def __enter__(self) -> Peak:
        """Starts to look."""
        import psutil

        self._process, self._stop = psutil.Process(), threading.Event()
        self._before, self.bytes = self._process.memory_info().rss, 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._before)

    def __exit__(self, *_: object) -> None:
        """Stops looking."""
        self._stop.set()
        self._thread.join()


def score(folder: Path, ids: np.ndarray, exact: np.ndarray) -> float:
    """Recall of the K others; the row itself does not count, wherever it stands."""
    from jaxrecipes.neighbors.vectors import pair_similarities, recall, sort_neighbors

    vectors, rows = np.load(folder / "vectors.npy"), np.load(folder / "queries.npy")

    def values(found: np.ndarray) -> np.ndarray:
        others = np.where(found == rows[:, None], -1, found)
        cosines = pair_similarities(vectors[rows], vectors, others)
        return sort_neighbors(others, cosines)[1][:, :K]

    return recall(values(ids), values(exact))


def run(options: argparse.Namespace) -> list[list[str]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "vectors.npy", make_vectors(options.rows, WIDTH, 0))
        drawn = np.random.default_rng(1).permutation(options.rows)[: options.queries]
        np.save(folder / "queries.npy", drawn)
        rows, base, exact = [], None, None
        for number, (side, (package, _)) in enumerate(SIDES.items()):
            command = [sys.executable, __file__, "--side", side, "--folder", name]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                rows.append([side, f"not run: {reason}", "", "", "", "", "", ""])
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            ids = np.load(folder / f"{number}.npy")
            rate = len(drawn) / found["search"]
            whole = found["build"] + options.rows / rate
            exact = ids if exact is None else exact
            base = whole if base is None else base
            rows.append(
                [
                    f"{side} ({importlib.metadata.version(package)})",
                    found["settings"],
                    f"{score(folder, ids, exact):.4f}",
                    f"{found['build']:.1f}",
                    f"{rate:,.0f}",
                    f"{whole:.0f}",
                    f"{base / whole:.2f}",
                    f"{found['memory'] / 2**20:,.0f}",
                ]
            )
            print(f"{side}: {found}", file=sys.stderr)
        return rows


TITLES = ("index", "searches", f"recall@{K}", "build s", "queries/s", "build + all rows s")
TITLES = (*TITLES, "speed to ours, exact", "memory MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=20_000, help="rows that are searched")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.folder)))
        return
    rows = run(options)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    title = f"{options.rows:,} x {WIDTH}, {options.queries:,} queries, {cores} cores"
    table = Table(title=title)
    for name in TITLES:
        table.add_column(name, justify="left" if name in TITLES[:2] else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=130).print(table)
    if options.markdown:
        lines = [TITLES, ["---"] * len(TITLES), *rows]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        options.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
