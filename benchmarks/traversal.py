"""The traversal of a million documents: compiled against plain Python, and cut into partitions.

    python benchmarks/traversal.py [--documents 1000000] [--neighbours 10] [--partitions 16]

No embeddings and no search: neighbour lists are drawn so that they look like those of a corpus.
Documents lie in topics of 20 to 200; nine of ten neighbours are of the own topic, where a few
documents are drawn more often than others (hubs), one of ten is anywhere; similarities are uniform
in 0.4..0.9 and fall along a list; indices are shuffled, so that neighbours are far apart in memory.
Partitions are whole topics. Both sides get the same lists and must find the same path: the plain
side is dicts for the graph, a set of visited documents and a heap with lazy deletion. Seconds are
of the processor (both sides have one thread), so that other work on the machine counts less; those
of the partitions are of the clock.
"""

from __future__ import annotations

import argparse
import heapq
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxrecipes.neighbors.graph import build_graph
from jaxrecipes.neighbors.greedy import Degree, greedy_path
from jaxrecipes.neighbors.order import Order
from jaxrecipes.neighbors.partition import cut_weight, partitioned_path, weight_loss
from jaxrecipes.neighbors.random_order import random_priorities

DEGREES: tuple[Degree, ...] = ("static", "remaining")


def draw_lists(count: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ends = np.cumsum(rng.integers(20, 201, size=count // 20 + 1))
    topics = np.searchsorted(ends, np.arange(count), side="right")
    starts = np.concatenate([[0], ends])[topics]
    sizes = np.minimum(ends[topics], count) - starts
    near = starts[:, None] + (rng.random((count, width)) ** 2 * sizes[:, None]).astype(np.int64)
    anywhere = rng.random((count, width)) < 0.1
    lists = np.where(anywhere, rng.integers(0, count, (count, width)), near)
    shuffled = rng.permutation(count)
    ids, topic_of = np.empty_like(lists), np.empty(count, np.int64)
    ids[shuffled], topic_of[shuffled] = shuffled[lists], topics
    similarities = 0.4 + 0.5 * np.sort(rng.random((count, width), np.float32))[:, ::-1]
    return ids, np.ascontiguousarray(similarities, np.float32), topic_of


def plain_graph(ids: list[list[int]], similarities: list[list[float]]) -> list[dict[int, float]]:
    graph: list[dict[int, float]] = [{} for _ in ids]
    for document, (row, weights) in enumerate(zip(ids, similarities, strict=True)):
        for other, weight in zip(row, weights, strict=True):
            if other >= 0 and other != document:
                weight = max(weight, graph[document].get(other, weight))
                graph[document][other] = weight
                graph[other][document] = weight
    return graph


def plain_path(graph: list[dict[int, float]], priorities: list[int], degree: Degree) -> list[int]:
    degrees = [len(edges) for edges in graph]
    heap = [(degrees[i], priorities[i], i) for i in range(len(graph))]
    heapq.heapify(heap)
    visited: set[int] = set()
    path: list[int] = []
    current = -1
    while len(path) < len(graph):
        if current < 0:
            while True:  # lazy deletion: visited documents and outdated degrees
                found, _, current = heapq.heappop(heap)
                if current not in visited and found == degrees[current]:
                    break
        visited.add(current)
        path.append(current)
        best = -1
        heaviest = 0.0
        for other, weight in graph[current].items():
            if other in visited:
                continue
            if degree == "remaining":
                degrees[other] -= 1
                heapq.heappush(heap, (degrees[other], priorities[other], other))
            if best < 0 or weight > heaviest or (weight == heaviest and other < best):
                best, heaviest = other, weight
        current = best
    return path


def timed(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[float, Any]:
    start = time.process_time()
    found = function(*arguments, **options)
    return time.process_time() - start, found


def fastest(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[float, Any]:
    runs = [timed(function, *arguments, **options) for _ in range(3)]
    return min(run[0] for run in runs), runs[-1][1]


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def compile_all() -> float:
    ids, similarities = np.array([[1], [0]]), np.ones((2, 1), np.float32)
    total, graph = timed(build_graph, ids, similarities)
    for degree in DEGREES:
        total += timed(greedy_path, graph, seed=0, degree=degree)[0]
    return total


def partition_rows(
    ids: np.ndarray, similarities: np.ndarray, labels: np.ndarray, whole: Order, table: Table
) -> None:
    angles = np.random.default_rng(1).random(len(ids)) * 2 * np.pi
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    for workers in (1, 2):
        start = time.perf_counter()
        order = partitioned_path(ids, similarities, labels, vectors, seed=0, workers=workers)
        elapsed = time.perf_counter() - start
        cut, loss = cut_weight(ids, similarities, labels), weight_loss(order, whole)
        cells = (str(labels.max() + 1), str(workers), f"{elapsed:.1f}", f"{cut:.3f}", f"{loss:.4f}")
        table.add_row(*cells)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--neighbours", type=int, default=10)
    parser.add_argument("--partitions", type=int, default=16)
    chosen = parser.parse_args()
    console = Console(width=110)
    compiling = compile_all()
    ids, similarities, topics = draw_lists(chosen.documents, chosen.neighbours)
    before = peak_gib()
    graph_seconds, graph = fastest(build_graph, ids, similarities)
    walks = {degree: fastest(greedy_path, graph, seed=0, degree=degree) for degree in DEGREES}
    ours_gib = peak_gib()
    partitions = Table(title="in partitions: build, traverse, stitch")
    for title in ("partitions", "threads", "seconds", "weight cut", "weight lost"):
        partitions.add_column(title, justify="right")
    labels = topics % chosen.partitions
    partition_rows(ids, similarities, labels, walks["static"][1], partitions)
    edges = len(graph.indices) // 2
    del graph

    priorities = random_priorities(chosen.documents, 0).tolist()
    lists, weights = ids.tolist(), similarities.tolist()
    plain_seconds, plain = timed(plain_graph, lists, weights)
    table = Table(title=f"{chosen.documents:,} documents x {chosen.neighbours}, {edges:,} edges")
    for title in ("", "compiled s", "plain Python s", "ratio"):
        table.add_column(title, justify="right")

    def row(name: str, ours: float, theirs: float) -> None:
        table.add_row(name, f"{ours:.2f}", f"{theirs:.1f}", f"{theirs / ours:.0f}")

    row("graph", graph_seconds, plain_seconds)
    for degree in DEGREES:
        ours, order = walks[degree]
        theirs, path = timed(plain_path, plain, priorities, degree)
        if path != order.documents.tolist():
            raise SystemExit(f"the two sides found different paths ({degree})")
        row(f"path, {degree} degree", ours, theirs)
        row("graph and path", graph_seconds + ours, plain_seconds + theirs)
    console.print(table, partitions)
    console.print(f"compiling: {compiling:.1f} s, once a process, not in the table")
    console.print(
        f"peak memory: {before:.2f} GiB with the lists, {ours_gib:.2f} GiB after the compiled "
        f"side, {peak_gib():.2f} GiB after the plain one (its lists of Python objects included)"
    )


if __name__ == "__main__":
    main()
