"""Searches a corpus in pieces: an index a shard of rows, a search for each shard of queries in it.

Three stages, the first for ScaNN only: *index*, a shard of rows a piece; *search*, a shard of
queries in one index a piece; *merge*, a shard of queries a piece. Lists are those of
``search.find_neighbors``: exactly for an exact search, as far as an index finds them otherwise.
Indexes and lists of single indexes are removed when the merged lists are there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxrecipes.durable import hash_values
from jaxrecipes.neighbors.corpus.vectors import StoredVectors
from jaxrecipes.neighbors.exact import ExactIndex
from jaxrecipes.neighbors.executor import Executor, Work, Worker
from jaxrecipes.neighbors.lists import Neighbors
from jaxrecipes.neighbors.pieces import (
    Piece,
    load_array,
    make_piece,
    open_piece,
    piece_facts,
    save_arrays,
)
from jaxrecipes.neighbors.scann_index import ScannIndex, ScannOptions, make_options
from jaxrecipes.neighbors.search import (
    QUERY_ROWS,
    BestLists,
    Index,
    IndexName,
    RecallSample,
    build_over,
    check_search,
    choose_index,
    draw_sample,
    others,
    whole_blocks,
)
from jaxrecipes.neighbors.vectors import check_vectors, read_rows


@dataclass(frozen=True)
class CorpusLists:
    """The most similar documents of every document, in shards on disk.

    Attributes:
        folder: Where they are.
        count: Documents.
        shard_documents: Documents of a shard.
        facts: What is told of the search: ``index``, ``recall``, ``recall_sample``, ``seconds``,
            ``build_seconds``, ``options``, as in ``Neighbors``.
    """

    folder: Path
    count: int
    shard_documents: int
    facts: Mapping[str, Any]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.count // self.shard_documents)

    def load(self, shard: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Returns a shard: its first document, ids [m, k] int64, similarities [m, k] float32."""
        place = self.folder / "lists" / f"{shard:06d}"
        return (
            shard * self.shard_documents,
            load_array(place, "ids"),
            load_array(place, "similarities"),
        )

    def neighbors(self) -> Neighbors:
        """Reads all lists: 12 bytes a neighbour."""
        loaded = [self.load(shard) for shard in range(self.shards)]
        return Neighbors(
            np.concatenate([ids for _, ids, _ in loaded]),
            np.concatenate([similarities for _, _, similarities in loaded]),
            **self.facts,
        )


def search_corpus(
    vectors: StoredVectors,
    k: int,
    folder: Path,
    *,
    key: str,
    executor: Executor,
    shard_documents: int,
    index_documents: int | None = None,
    index: IndexName = "auto",
    scann: Mapping[str, Any] | None = None,
    recall_floor: float = 0.95,
    recall_sample: int = 1000,
    seed: int = 0,
    log: Callable[[str], None],
) -> CorpusLists:
    """Finds the k nearest other documents of every document.

    Args:
        vectors: [documents, width], rows of unit length; every worker can read them.
        k: Neighbours a document.
        folder: Where to; every worker can write there.
        key: Hash of what determines the vectors.
        executor: Who does the work.
        shard_documents: Documents that are searched together, rounded up to whole blocks of 8192.
        index_documents: Rows of an index, rounded up to whole blocks of 16,384; None: all.
        index: As in ``find_neighbors``, like all that follow.
        scann: Parameters of ScaNN by name.
        recall_floor: Smallest recall that is accepted.
        recall_sample: Documents whose neighbours are searched exactly too.
        seed: Chooses the sample.
        log: Called with a line at each step.

    Raises:
        ConfigError: An option is wrong, or ScaNN was asked for and is missing.
        DataError: A row cannot be searched, or the recall is below the floor.
    """
    began = time.monotonic()
    check_search(k, recall_floor, recall_sample, index_documents)
    count = len(vectors)
    rows = whole_blocks(index_documents, count)
    queries = min(-(-shard_documents // QUERY_ROWS) * QUERY_ROWS, count)
    plan = _Plan(
        vectors=vectors,
        folder=folder,
        k=k,
        rows=rows,
        queries=queries,
        index=choose_index(index, rows, log),
        scann=make_options(scann or {}),
        recall_floor=recall_floor,
        sample=recall_sample,
        seed=seed,
        key=key,
    )
    missing = [
        shard
        for shard in range(-(-count // queries))
        if not isinstance(open_piece(plan.merged(shard), plan.hash), Piece)
    ]
    summary = open_piece(folder / "summary", plan.hash)
    if not missing and isinstance(summary, Piece):
        return CorpusLists(folder, count, queries, summary.facts)
    indexed = _index(plan, executor, log) if plan.index == "scann" else _EXACT
    if missing:
        pairs = [(row, query) for row in range(plan.indexes) for query in missing]
        executor.run(
            Work(
                "search",
                len(pairs),
                _Search(plan, pairs),
                memory=plan.memory,
                accelerator=plan.index == "exact",
                keeps=True,
            )
        )
        executor.run(Work("merge", len(missing), _Merge(plan, missing), memory=24 * queries * k))
    seconds = time.monotonic() - began
    facts = {**indexed, "index": plan.index, "seconds": seconds}
    make_piece(folder / "summary", plan.hash, lambda _: facts, log)
    for name in ("index", "found"):
        shutil.rmtree(folder / name, ignore_errors=True)
    log(f"{k} neighbours of {count} documents: {seconds:.1f} s")
    return CorpusLists(folder, count, queries, facts)


_EXACT = {"recall": 1.0, "recall_sample": 0, "build_seconds": 0.0, "options": {}}


@dataclass(frozen=True)
class _Plan:
    """All that shapes the lists, and where they grow."""

    vectors: StoredVectors
    folder: Path
    k: int
    rows: int
    queries: int
    index: str
    scann: ScannOptions
    recall_floor: float
    sample: int
    seed: int
    key: str

    @property
    def hash(self) -> str:
        names = ("k", "rows", "queries", "index", "recall_floor", "sample", "seed", "key")
        plain = {name: getattr(self, name) for name in names}
        return hash_values({**plain, "scann": asdict(self.scann)})

    @property
    def indexes(self) -> int:
        return -(-len(self.vectors) // self.rows)

    @property
    def memory(self) -> int:
        # ScannIndex and ExactIndex say what they hold beside the rows.
        numbers = self.rows * self.vectors.width
        return int(12.5 * numbers if self.index == "scann" else 8 * numbers + 2**28)

    def merged(self, query_shard: int) -> Path:
        return self.folder / "lists" / f"{query_shard:06d}"

    def found(self, row_shard: int, query_shard: int) -> Path:
        return self.folder / "found" / f"{query_shard:06d}-{row_shard:06d}"

    def indexed(self, row_shard: int) -> Path:
        return self.folder / "index" / f"{row_shard:06d}"

    def row_range(self, row_shard: int) -> tuple[int, int]:
        return row_shard * self.rows, min((row_shard + 1) * self.rows, len(self.vectors))

    def query_range(self, query_shard: int) -> tuple[int, int]:
        start = query_shard * self.queries
        return start, min(start + self.queries, len(self.vectors))

    def recall_sample(self) -> RecallSample:
        documents = draw_sample(len(self.vectors), self.sample, self.seed)
        return RecallSample(self.vectors, documents, self.k)

    def read(self, start: int, stop: int) -> np.ndarray:
        rows = read_rows(self.vectors, start, stop)
        check_vectors(rows, first=start)
        return rows


def _index(plan: _Plan, executor: Executor, log: Callable[[str], None]) -> dict[str, Any]:
    """Builds the indexes and judges them; returns what is told of them."""
    built = executor.run(Work("index", plan.indexes, _BuildIndex(plan), memory=plan.memory))
    sample = plan.recall_sample()
    for shard in range(plan.indexes):
        arrays = [load_array(plan.indexed(shard), name) for name in _SAMPLE_ARRAYS]
        sample.take((arrays[0], arrays[1]), (arrays[2], arrays[3]))
    options = built[-1]["options"]
    sample.judge(plan.recall_floor, ScannOptions(**options), log)
    return {
        "recall": sample.recall,
        "recall_sample": len(sample.documents),
        "build_seconds": sum(one["seconds"] for one in built),
        "options": options,
    }


_SAMPLE_ARRAYS = ("found_ids", "found_similarities", "true_ids", "true_similarities")


@dataclass(frozen=True)
class _BuildIndex:
    plan: _Plan

    def __call__(self) -> Worker:
        plan = self.plan

        def build(shard: int, target: Path) -> dict[str, Any]:
            began = time.monotonic()
            start, stop = plan.row_range(shard)
            built = build_over("scann", plan.read(start, stop), plan.k + 1, plan.scann)
            assert isinstance(built, ScannIndex)
            built, found, true = plan.recall_sample().search(
                built, start, plan.scann, plan.recall_floor
            )
            built.save(target / "scann")
            save_arrays(target, **dict(zip(_SAMPLE_ARRAYS, (*found, *true), strict=True)))
            return {"options": asdict(built.options), "seconds": time.monotonic() - began}

        return lambda shard: piece_facts(
            plan.indexed(shard), plan.hash, lambda at: build(shard, at)
        )


@dataclass(frozen=True)
class _Search:
    plan: _Plan
    pairs: list[tuple[int, int]]

    def __call__(self) -> Worker:
        plan = self.plan
        # The index that was used last: the pieces of one index follow each other.
        opened: dict[int, Index] = {}

        def index_of(shard: int) -> Index:
            if shard not in opened:
                opened.clear()
                if plan.index == "scann":
                    opened[shard] = ScannIndex.load(plan.indexed(shard) / "scann")
                else:
                    opened[shard] = ExactIndex(plan.read(*plan.row_range(shard)))
            return opened[shard]

        def build(row_shard: int, query_shard: int, target: Path) -> dict[str, Any]:
            first, last = plan.query_range(query_shard)
            lists = BestLists(last - first, plan.k)
            index, start = index_of(row_shard), plan.row_range(row_shard)[0]
            queries = plan.read(first, last)
            for block, *found in others(index, start, queries, first, plan.k):
                lists.merge(block - first, *found)
            save_arrays(target, ids=lists.ids, similarities=lists.similarities)
            return {}

        def make(piece: int) -> dict[str, Any]:
            pair = self.pairs[piece]
            return piece_facts(plan.found(*pair), plan.hash, lambda at: build(*pair, at))

        return make


@dataclass(frozen=True)
class _Merge:
    plan: _Plan
    shards: list[int]

    def __call__(self) -> Worker:
        plan = self.plan

        def build(shard: int, target: Path) -> dict[str, Any]:
            first, last = plan.query_range(shard)
            lists = BestLists(last - first, plan.k)
            for row_shard in range(plan.indexes):
                place = plan.found(row_shard, shard)
                lists.merge(0, load_array(place, "ids"), load_array(place, "similarities"))
            save_arrays(target, ids=lists.ids, similarities=lists.similarities)
            return {}

        def make(piece: int) -> dict[str, Any]:
            shard = self.shards[piece]
            return piece_facts(plan.merged(shard), plan.hash, lambda at: build(shard, at))

        return make
