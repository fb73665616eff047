"""Finds near-duplicates in pieces: pairs a shard of lists, decisions a number of groups.

In between one process connects the pairs into groups: 16 bytes a pair and a few times that while it
works. The result is that of ``deduplicate.find_duplicates``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxrecipes.data.document_file import DocumentFile
from jaxrecipes.durable import hash_values
from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.corpus.search import CorpusLists
from jaxrecipes.neighbors.corpus.vectors import StoredVectors
from jaxrecipes.neighbors.deduplicate import (
    Duplicates,
    Removed,
    Shingles,
    Thresholds,
    check_thresholds,
    gather,
    group_pairs,
    linked_pairs,
    remove_copies,
)
from jaxrecipes.neighbors.executor import Executor, Work, Worker
from jaxrecipes.neighbors.pieces import load_array, make_piece, piece_facts, save_arrays


def deduplicate_corpus(
    lists: CorpusLists,
    vectors: StoredVectors,
    documents: DocumentFile,
    lengths: Path,
    folder: Path,
    *,
    key: str,
    executor: Executor,
    thresholds: Thresholds,
    with_texts: bool,
) -> Duplicates:
    """Finds near-duplicates among neighbours and keeps one of each; see ``find_duplicates``.

    Args:
        lists: Of the documents; their shards are the pieces.
        vectors: That they were found with.
        documents: The documents: ids that decide ties, and texts; every worker can read them.
        lengths: An .npy file, [documents] int64, for example tokens.
        folder: Where to; every worker can write there.
        key: Hash of what determines lists, documents and lengths.
        executor: Who does the work.
        thresholds: From where on a pair counts; one above 1: never.
        with_texts: Compare texts too.

    Raises:
        ConfigError: A threshold is not above 0.
        DataError: The arguments are not of one number of documents.
    """
    check_thresholds(thresholds)
    counts = (lists.count, len(vectors), len(documents), len(np.load(lengths, mmap_mode="r")))
    if len(set(counts)) > 1:
        raise DataError(
            f"{folder}: lists of {counts[0]}, vectors of {counts[1]}, texts of {counts[2]} and "
            f"lengths of {counts[3]} documents; expected one number. Search these documents again."
        )
    plan = _Plan(
        lists,
        vectors,
        documents.folder,
        lengths,
        folder,
        thresholds,
        with_texts,
        hash_values(
            {
                "key": key,
                "similarity": thresholds.similarity,
                "overlap": thresholds.overlap if with_texts else None,
                "shard_documents": lists.shard_documents,
            }
        ),
    )
    executor.run(Work("pairs of copies", lists.shards, _FindPairs(plan)))
    pairs = [load_array(plan.pairs(shard), "pairs") for shard in range(lists.shards)]
    # A pair stands in the lists of both of its documents, which may be of two shards.
    groups = group_pairs(np.unique(np.concatenate(pairs), axis=0))
    bounds = np.cumsum([0, *(len(group) for group in groups)])
    # Pieces of whole groups, about a shard's documents each.
    number = bounds[:-1] // lists.shard_documents
    firsts = np.searchsorted(number, np.unique(number))
    arrays = {
        "members": np.concatenate([np.empty(0, np.int64), *groups]),
        "bounds": bounds,
        "firsts": np.append(firsts, len(groups)),
    }

    def write_groups(target: Path) -> dict[str, Any]:
        save_arrays(target, **arrays)
        return {"groups": len(groups)}

    make_piece(plan.groups, plan.hash, write_groups)
    executor.run(Work("copies", len(firsts), _Decide(plan)))
    removed = [found for piece in range(len(firsts)) for found in _read(plan.removed(piece))]
    return gather(removed, lists.count, thresholds, with_texts=with_texts)


@dataclass(frozen=True)
class _Plan:
    """All that shapes the decisions, and where they grow."""

    lists: CorpusLists
    vectors: StoredVectors
    documents: Path
    lengths: Path
    folder: Path
    thresholds: Thresholds
    with_texts: bool
    hash: str

    def pairs(self, shard: int) -> Path:
        return self.folder / "pairs" / f"{shard:06d}"

    @property
    def groups(self) -> Path:
        return self.folder / "groups"

    def removed(self, piece: int) -> Path:
        return self.folder / "removed" / f"{piece:06d}"

    def shingles(self, documents: DocumentFile) -> Shingles:
        return Shingles(documents.text if self.with_texts else None)


@dataclass(frozen=True)
class _FindPairs:
    plan: _Plan

    def __call__(self) -> Worker:
        plan, documents = self.plan, DocumentFile(self.plan.documents)

        def build(shard: int, target: Path) -> dict[str, Any]:
            first, ids, similarities = plan.lists.load(shard)
            shingles = plan.shingles(documents)
            pairs = linked_pairs(ids, similarities, first, shingles, plan.thresholds)
            save_arrays(target, pairs=pairs)
            return {"pairs": len(pairs)}

        def make(shard: int) -> dict[str, Any]:
            return piece_facts(plan.pairs(shard), plan.hash, lambda at: build(shard, at))

        return make


@dataclass(frozen=True)
class _Decide:
    plan: _Plan

    def __call__(self) -> Worker:
        plan, documents = self.plan, DocumentFile(self.plan.documents)
        lengths = np.load(plan.lengths, mmap_mode="r")
        members, bounds, firsts = (
            load_array(plan.groups, name) for name in ("members", "bounds", "firsts")
        )

        def build(piece: int, target: Path) -> dict[str, Any]:
            groups = [
                members[bounds[group] : bounds[group + 1]]
                for group in range(firsts[piece], firsts[piece + 1])
            ]
            removed = remove_copies(
                groups,
                plan.vectors,
                lengths,
                lambda document: documents[document].id,
                plan.shingles(documents),
                plan.thresholds,
            )
            _write(target, removed)
            return {"groups": len(groups)}

        return lambda piece: piece_facts(
            plan.removed(piece), plan.hash, lambda at: build(piece, at)
        )


def _write(folder: Path, removed: list[list[Removed]]) -> None:
    """Writes removed documents, with the bounds of their groups; an unknown overlap is a NaN."""
    flat = [one for group in removed for one in group]
    overlaps = [np.nan if one.overlap is None else one.overlap for one in flat]
    save_arrays(
        folder,
        index=np.array([one.index for one in flat], np.int64),
        kept=np.array([one.kept for one in flat], np.int64),
        similarity=np.array([one.similarity for one in flat], np.float64),
        overlap=np.array(overlaps, np.float64),
        bounds=np.cumsum([0, *(len(group) for group in removed)]),
    )


def _read(folder: Path) -> Iterator[list[Removed]]:
    names = ("index", "kept", "similarity", "overlap")
    columns = [load_array(folder, name).tolist() for name in names]
    rows = [
        Removed(index, kept, similarity, None if np.isnan(overlap) else overlap)
        for index, kept, similarity, overlap in zip(*columns, strict=True)
    ]
    bounds = load_array(folder, "bounds").tolist()
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        yield rows[start:stop]
