"""Orders a corpus in partitions: lists divided a shard a piece, a path a partition, then stitched.

The result is that of ``partition.partitioned_path`` with the partitions of
``cluster.partition_centres``. Lists are sorted by partition first, so that a partition reads its
own part of each shard and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxrecipes.durable import hash_values
from jaxrecipes.neighbors.cluster import nearest_centres, partition_centres
from jaxrecipes.neighbors.corpus.search import CorpusLists
from jaxrecipes.neighbors.corpus.vectors import StoredVectors
from jaxrecipes.neighbors.executor import Executor, Work, Worker
from jaxrecipes.neighbors.greedy import Degree, Start
from jaxrecipes.neighbors.order import Order
from jaxrecipes.neighbors.partition import stitch, traverse_partition
from jaxrecipes.neighbors.pieces import load_array, make_piece, piece_facts, save_arrays
from jaxrecipes.neighbors.random_order import derived_seed


def order_corpus(
    lists: CorpusLists,
    vectors: StoredVectors,
    folder: Path,
    *,
    key: str,
    executor: Executor,
    partition_documents: int,
    degree: Degree = "static",
    start: Start = "min_degree",
    seed: int,
) -> Order:
    """Finds the paper's path in each partition and joins the paths.

    Args:
        lists: Of the documents; their shards are the pieces of the division.
        vectors: That they were found with; every worker can read them.
        folder: Where to; every worker can write there.
        key: Hash of what determines lists and vectors.
        executor: Who does the work.
        partition_documents: Wanted size of a partition; sizes vary around it.
        degree: See ``greedy_path``.
        start: See ``greedy_path``.
        seed: Decides partitions and ties.

    Returns:
        Order of all documents, method "path". Memory of this process: 13 bytes a document, twice
        while paths are joined.

    Raises:
        ConfigError: See ``greedy_path``.
        DataError: A vector is not L2-normalised.
    """
    inputs = {
        "key": key,
        "partition_documents": partition_documents,
        "degree": degree,
        "start": start,
        "seed": seed,
        "shard_documents": lists.shard_documents,
    }
    plan = _Plan(lists, vectors, folder, degree, start, seed, hash_values(inputs))

    def find_centres(target: Path) -> dict[str, Any]:
        centres = partition_centres(vectors, documents=partition_documents, seed=seed)
        save_arrays(target, centres=centres)
        return {"partitions": len(centres)}

    make_piece(plan.centres, plan.hash, find_centres)
    width, rows, k = vectors.width, lists.shard_documents, lists.load(0)[1].shape[1]
    divided = executor.run(
        Work("divide", lists.shards, _Divide(plan), memory=rows * (24 * k + 8 * width))
    )
    sizes: dict[int, int] = {}
    for one in divided:
        for label, size in zip(one["labels"], one["sizes"], strict=True):
            sizes[label] = sizes.get(label, 0) + size
    labels = sorted(sizes)
    executor.run(
        Work("paths", len(labels), _Traverse(plan, labels), memory=max(sizes.values()) * 60 * k)
    )
    return stitch([Order.load(plan.path(number)) for number in range(len(labels))], vectors)


@dataclass(frozen=True)
class _Plan:
    """All that shapes the order, and where it grows."""

    lists: CorpusLists
    vectors: StoredVectors
    folder: Path
    degree: Degree
    start: Start
    seed: int
    hash: str

    @property
    def centres(self) -> Path:
        return self.folder / "centres"

    def divided(self, shard: int) -> Path:
        return self.folder / "divided" / f"{shard:06d}"

    def path(self, number: int) -> Path:
        return self.folder / "paths" / f"{number:06d}"


@dataclass(frozen=True)
class _Divide:
    plan: _Plan

    def __call__(self) -> Worker:
        plan = self.plan

        def build(shard: int, target: Path) -> dict[str, Any]:
            first, ids, similarities = plan.lists.load(shard)
            centres = np.asarray(load_array(plan.centres, "centres"))
            found = nearest_centres(plan.vectors, centres, first, first + len(ids))
            by_label = np.argsort(found, kind="stable")
            labels, starts = np.unique(found[by_label], return_index=True)
            bounds = np.append(starts, len(ids))
            save_arrays(
                target,
                members=by_label + first,
                ids=ids[by_label],
                similarities=similarities[by_label],
                labels=labels,
                bounds=bounds,
            )
            return {"labels": labels.tolist(), "sizes": np.diff(bounds).tolist()}

        return lambda shard: piece_facts(
            plan.divided(shard), plan.hash, lambda at: build(shard, at)
        )


@dataclass(frozen=True)
class _Traverse:
    plan: _Plan
    labels: list[int]

    def __call__(self) -> Worker:
        plan = self.plan

        def build(number: int, target: Path) -> dict[str, Any]:
            parts = []
            for shard in range(plan.lists.shards):
                place = plan.divided(shard)
                labels, bounds = load_array(place, "labels"), load_array(place, "bounds")
                at = int(np.searchsorted(labels, self.labels[number]))
                if at < len(labels) and labels[at] == self.labels[number]:
                    own = slice(bounds[at], bounds[at + 1])
                    names = ("ids", "similarities", "members")
                    parts.append([load_array(place, name)[own] for name in names])
            # Shards follow each other, and inside of one the division is stable: ascending.
            ids, similarities, members = (
                np.concatenate(column) for column in zip(*parts, strict=True)
            )
            path = traverse_partition(
                ids,
                similarities,
                members,
                seed=derived_seed(plan.seed, number),
                degree=plan.degree,
                start=plan.start,
            )
            path.save(target)
            return {"documents": len(path), "starts": int(path.starts.sum())}

        return lambda number: piece_facts(
            plan.path(number), plan.hash, lambda at: build(number, at)
        )
