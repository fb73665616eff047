"""The k most similar documents of every document, by whichever index suits, recall measured.

Every row is checked first, candidates come from the index, and their similarities are computed
again in one way for all indexes (``pair_similarities``), so that lists from different indexes,
blocks and shards can be compared and merged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Literal, Protocol, get_args

import numpy as np

from jaxrecipes.errors import ConfigError, DataError
from jaxrecipes.neighbors.exact import ROW_BLOCK, ExactIndex
from jaxrecipes.neighbors.lists import Neighbors
from jaxrecipes.neighbors.scann_index import (
    INSTALL,
    ScannIndex,
    ScannOptions,
    make_options,
    missing_scann,
    require_scann,
)
from jaxrecipes.neighbors.vectors import (
    Vectors,
    check_vectors,
    pair_similarities,
    read_rows,
    recall,
    sort_neighbors,
)

IndexName = Literal["auto", "exact", "scann"]
# On two busy cores ScaNN, building included, took as long as an exact search at 20,000 rows (5 s
# against 10 s at 10,000, 88 against 44 at 40,000, 124 against 76 at 60,000). Up to here an exact
# search costs about a minute more, and is the same every time, which ScaNN is not.
SCANN_FROM = 50_000
QUERY_ROWS = 8192


class Index(Protocol):
    """Something that finds candidates; ``ExactIndex`` and ``ScannIndex`` are."""

    rows: np.ndarray

    @property
    def name(self) -> str:
        """Returns what it is called in reports."""
        ...

    def search(self, queries: np.ndarray, count: int) -> np.ndarray:
        """Returns ids [queries, count] int64, -1 where there are fewer."""
        ...


def find_neighbors(
    vectors: Vectors,
    k: int,
    *,
    index: IndexName = "auto",
    scann: Mapping[str, Any] | None = None,
    recall_floor: float = 0.95,
    recall_sample: int = 1000,
    shard_rows: int | None = None,
    seed: int = 0,
    log: Callable[[str], None] | None = None,
) -> Neighbors:
    """Finds the k nearest other documents of every document.

    A document is never its own neighbour: it is left out by its id, also where copies of it are as
    similar and stand before it. Corpora that do not fit into memory are searched a shard after the
    other; the lists are those of one index (exactly for ``exact``). Memory: ``4 * shard_rows *
    width`` bytes for a shard's rows, what its index needs (see ``ExactIndex`` and ``ScannIndex``),
    and ``12 * documents * k`` for the result.

    Args:
        vectors: [documents, width], rows of unit length, any float dtype.
        k: Neighbours a document.
        index: ``exact``; ``scann``; ``auto``: ScaNN from 50,000 rows a shard on where it is
            installed.
        scann: Parameters of ScaNN by name (``ScannOptions``); what is left out is chosen from the
            number of rows, and ``leaves_to_search`` by the recall on the sample.
        recall_floor: Smallest recall that is accepted.
        recall_sample: Documents whose neighbours are searched exactly too, to measure recall.
        shard_rows: Rows of a shard, rounded up to whole blocks of 16,384; None: one shard.
        seed: Chooses the sample.
        log: Called with a line at each step.

    Returns:
        The lists, with the recall that was measured.

    Raises:
        ConfigError: An option is wrong, or ScaNN was asked for and is missing.
        DataError: A row cannot be searched (see ``check_vectors``), or the recall is below the
            floor.
    """
    began = time.perf_counter()
    say = log if log is not None else _silent
    check_search(k, recall_floor, recall_sample, shard_rows)
    options = make_options(scann or {})
    check_vectors(vectors)
    count = len(vectors)
    shard = whole_blocks(shard_rows, count)
    chosen = choose_index(index, shard, say)
    lists = BestLists(count, k)
    sample = draw_sample(count, recall_sample, seed)
    measured = RecallSample(vectors, sample, k) if chosen == "scann" else None
    build_seconds, used = 0.0, {}
    for start in range(0, count, shard):
        stop = min(start + shard, count)
        rows = read_rows(vectors, start, stop)
        build_began = time.perf_counter()
        built = build_over(chosen, rows, k + 1, options)
        build_seconds += time.perf_counter() - build_began
        if measured is not None and isinstance(built, ScannIndex):
            built, found, true = measured.search(built, start, options, recall_floor)
            measured.take(found, true)
            used = asdict(built.options)
            if stop == count:
                measured.judge(recall_floor, built.options, say)
        say(
            f"{chosen} index of rows {start} to {stop - 1}: built, "
            f"{time.perf_counter() - build_began:.1f} s"
        )
        for first, ids, similarities in others(built, start, vectors, 0, k):
            lists.merge(first, ids, similarities)
    seconds = time.perf_counter() - began
    say(f"{k} neighbours of {count} documents: {seconds:.1f} s, {count / seconds:.0f} documents/s")
    return Neighbors(
        lists.ids,
        lists.similarities,
        chosen,
        1.0 if measured is None else measured.recall,
        0 if measured is None else len(sample),
        seconds,
        build_seconds,
        used,
    )


def build_index(
    vectors: Vectors,
    k: int,
    *,
    index: IndexName = "auto",
    scann: Mapping[str, Any] | None = None,
    recall_floor: float = 0.95,
    recall_sample: int = 1000,
    seed: int = 0,
    log: Callable[[str], None] | None = None,
) -> Index:
    """Builds an index over a pool that other texts are searched in; see ``search_queries``.

    Args:
        vectors: [rows, width], rows of unit length; read into memory.
        k: Neighbours that will be asked for.
        index: As in ``find_neighbors``, like all that follow; the recall is that of the pool's own
            rows, a row's neighbours being others.
        scann: Parameters of ScaNN.
        recall_floor: Smallest recall that is accepted.
        recall_sample: Rows that are searched exactly too.
        seed: Chooses the sample.
        log: Called with a line at each step.

    Raises:
        ConfigError: An option is wrong, or ScaNN was asked for and is missing.
        DataError: A row cannot be searched (see ``check_vectors``), or the recall is below the
            floor.
    """
    say = log if log is not None else _silent
    check_search(k, recall_floor, recall_sample, None)
    options = make_options(scann or {})
    check_vectors(vectors, what="the pool's vectors")
    count = len(vectors)
    built = build_over(choose_index(index, count, say), read_rows(vectors, 0, count), k, options)
    if isinstance(built, ScannIndex):
        sample = RecallSample(vectors, draw_sample(count, recall_sample, seed), k)
        built, found, true = sample.search(built, 0, options, recall_floor)
        sample.take(found, true)
        sample.judge(recall_floor, built.options, say)
    return built


def search_queries(index: Index, queries: Vectors, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of an index that are most similar to queries from elsewhere.

    Args:
        index: From ``build_index``.
        queries: [queries, width], rows of unit length.
        k: Neighbours a query.

    Returns:
        (ids [queries, k] int64, similarities [queries, k] float32), sorted by similarity, then by
        id; -1 and -inf where there are fewer rows.

    Raises:
        ConfigError: k is below 1.
        DataError: A query cannot be searched, or is of another width than the index.
    """
    if k < 1:
        raise ConfigError(f"k is {k}, expected at least 1.")
    check_vectors(queries, width=index.rows.shape[1], what="queries")
    lists = BestLists(len(queries), k)
    for first in range(0, len(queries), QUERY_ROWS):
        last = min(first + QUERY_ROWS, len(queries))
        lists.merge(first, *_search(index, read_rows(queries, first, last), k, 0))
    return lists.ids, lists.similarities


def choose_index(index: IndexName, rows: int, log: Callable[[str], None]) -> str:
    """Decides what searches, and says so where it is not what the size asks for.

    Raises:
        ConfigError: The name is unknown, or ScaNN was asked for and is missing.
    """
    if index not in get_args(IndexName):
        raise ConfigError(f"index: {index!r}; expected {', '.join(get_args(IndexName))}.")
    if index == "scann":
        require_scann()
    if index != "auto":
        return index
    if rows < SCANN_FROM:
        return "exact"
    reason = missing_scann()
    if reason:
        log(
            f"index: exact, although there are {rows} rows: {reason}. On Linux `{INSTALL}` makes "
            "this faster."
        )
        return "exact"
    return "scann"


def whole_blocks(rows: int | None, count: int) -> int:
    """Returns the rows of a shard: whole blocks of an exact search, at most ``count``.

    So a pair is multiplied at the same place of a block with any shards.

    Args:
        rows: What was asked for; None: all in one.
        count: Rows of the corpus.
    """
    return count if rows is None else min(count, -(-rows // ROW_BLOCK) * ROW_BLOCK)


def draw_sample(count: int, wanted: int, seed: int) -> np.ndarray:
    """Draws documents to measure recall on, sorted."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:wanted])


def build_over(name: str, rows: np.ndarray, count: int, options: ScannOptions) -> Index:
    """Builds an index over checked rows; ``name`` is what ``choose_index`` returned."""
    if name == "exact":
        return ExactIndex(rows)
    return ScannIndex.build(rows, count=count, options=options)


def others(
    index: Index, start: int, queries: Vectors, first: int, k: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Searches documents in the index of a shard, each without itself.

    Args:
        index: Over the shard's rows.
        start: The first document of the shard.
        queries: [queries, width], vectors of the documents from ``first`` on.
        first: The first document that is searched, a multiple of 8192 for the same numbers as in
            one search of everything.
        k: Neighbours.

    Yields:
        (first document of a block, ids [block, k + 1], similarities [block, k + 1]); a document's
        own place holds -1 and -inf.
    """
    for block in range(0, len(queries), QUERY_ROWS):
        stop = min(block + QUERY_ROWS, len(queries))
        ids, similarities = _search(index, read_rows(queries, block, stop), k + 1, start)
        own = np.arange(first + block, first + stop)
        yield first + block, *_without(ids, similarities, own)


class BestLists:
    """The best neighbours so far, a row a query; the order of merging does not matter.

    Attributes:
        ids: [queries, k] int64, -1 where there is none.
        similarities: [queries, k] float32, -inf where there is none.
    """

    def __init__(self, queries: int, k: int) -> None:
        """Starts with empty lists."""
        self.ids = np.full((queries, k), -1, np.int64)
        self.similarities = np.full((queries, k), -np.inf, np.float32)

    def merge(self, first: int, ids: np.ndarray, similarities: np.ndarray) -> None:
        """Takes in candidates of the queries from ``first`` on."""
        block = slice(first, first + len(ids))
        k = self.ids.shape[1]
        both, values = sort_neighbors(
            np.concatenate([self.ids[block], ids], axis=1),
            np.concatenate([self.similarities[block], similarities], axis=1),
        )
        self.ids[block], self.similarities[block] = both[:, :k], values[:, :k]


# Candidates: ids and similarities.
Candidates = tuple[np.ndarray, np.ndarray]


class RecallSample:
    """Documents that are searched twice, to know what an index misses."""

    def __init__(self, vectors: Vectors, documents: np.ndarray, k: int) -> None:
        """Reads the vectors of the sample; ``documents`` comes from ``draw_sample``."""
        self.documents = documents
        self.queries = np.concatenate([read_rows(vectors, row, row + 1) for row in documents])
        self.k = k
        self.found = BestLists(len(documents), k)
        self.exact = BestLists(len(documents), k)

    @property
    def recall(self) -> float:
        """The recall of the lists so far."""
        return recall(self.found.similarities, self.exact.similarities)

    def search(
        self, index: ScannIndex, start: int, options: ScannOptions, floor: float
    ) -> tuple[ScannIndex, Candidates, Candidates]:
        """Searches a shard both ways.

        Args:
            index: Over the shard's rows.
            start: The first document of the shard.
            options: What the user chose.
            floor: Smallest recall that is accepted.

        Returns:
            The index, searching enough partitions; what it found; what there is to find.
        """
        ids, similarities = self._search(ExactIndex(index.rows), start)
        if not options.leaves_to_search:
            exact_values = sort_neighbors(ids, similarities)[1][:, : self.k]
            # Half of what the floor allows to miss: the sample is a sample.
            target = (1 + floor) / 2
            index = index.widen(
                lambda wider: recall(self._values(wider, start), exact_values) >= target
            )
        return index, self._search(index, start), (ids, similarities)

    def take(self, found: Candidates, exact: Candidates) -> None:
        """Takes in what ``search`` returned for a shard."""
        self.found.merge(0, *found)
        self.exact.merge(0, *exact)

    def judge(self, floor: float, options: ScannOptions, say: Callable[[str], None]) -> None:
        """Says what the recall is, and stops where it is too low."""
        line = f"recall@{self.k} of ScaNN on {len(self.documents)} documents: {self.recall:.4f}"
        if self.recall < floor:
            raise DataError(
                f"{line}, below the floor of {floor}. Raise leaves_to_search (it is "
                f"{options.leaves_to_search} of {options.leaves}) or rescore ({options.rescore}), "
                "or use index: exact; or lower the floor, if such a graph is good enough."
            )
        say(f"{line} (searching {options.leaves_to_search} of {options.leaves} leaves)")

    def _search(self, index: Index, start: int) -> Candidates:
        return _without(*_search(index, self.queries, self.k + 1, start), self.documents)

    def _values(self, index: Index, start: int) -> np.ndarray:
        return sort_neighbors(*self._search(index, start))[1][:, : self.k]


def _search(
    index: Index, queries: np.ndarray, count: int, offset: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns candidates of a shard: ids in the corpus and their similarities."""
    ids = index.search(queries, count)
    similarities = pair_similarities(queries, index.rows, ids)
    return np.where(ids < 0, -1, ids + offset), similarities


def _without(
    ids: np.ndarray, similarities: np.ndarray, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Takes each query's own document out of its candidates."""
    is_own = ids == own[:, None]
    return np.where(is_own, -1, ids), np.where(is_own, -np.float32(np.inf), similarities)


def check_search(k: int, recall_floor: float, recall_sample: int, shard_rows: int | None) -> None:
    """Refuses options that no search can have.

    Raises:
        ConfigError: The message names the option and what is expected.
    """
    if k < 1:
        raise ConfigError(f"k is {k}, expected at least 1.")
    if not 0 <= recall_floor <= 1:
        raise ConfigError(f"recall_floor is {recall_floor}, expected 0 to 1.")
    if recall_sample < 1:
        raise ConfigError(f"recall_sample is {recall_sample}, expected at least 1.")
    if shard_rows is not None and shard_rows < 1:
        raise ConfigError(f"shard_rows is {shard_rows}, expected at least 1.")


def _silent(_: str) -> None:
    pass
