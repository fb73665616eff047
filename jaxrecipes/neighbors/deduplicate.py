"""Near-duplicates: found among neighbours, one of a group kept, the others named with the reason.

In-context pretraining puts neighbours into one context, so what is nearly the same text twice would
be read twice; without this step the paper's gain is gone (arXiv 2310.10638: perplexity 8.3 against
7.3 with it, 8.2 for documents in random order).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jaxrecipes.errors import ConfigError, DataError
from jaxrecipes.neighbors.lists import Neighbors
from jaxrecipes.neighbors.vectors import Vectors, pair_similarities, read_rows

# The paper names no threshold. On 1,154 sections of real documentation 0.95 removed 27 (2.3%) with
# MiniLM-L6, whose neighbours there are at about 0.7: far above what is merely related.
SIMILARITY = 0.95
# The share of word 5-grams that two texts have in common, of all that they have.
OVERLAP = 0.8
SHINGLE_WORDS = 5
# Texts of neighbours less similar than this are not compared: with four fifths of their shingles in
# common, two texts are not that far apart.
_COMPARED_FROM = 0.8
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd: 2**64 divided by the golden ratio
_KEPT_SHINGLES = 16_384
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Removed:
    """A document that is left out.

    Attributes:
        index: The document.
        kept: The document that is kept in its place.
        similarity: Cosine of the two.
        overlap: Share of their word 5-grams that both have (Jaccard); None without texts.
    """

    index: int
    kept: int
    similarity: float
    overlap: float | None


@dataclass(frozen=True, eq=False)
class Duplicates:
    """What a deduplication decided.

    Attributes:
        kept: [kept] int64, sorted.
        removed: The others, sorted by index.
        groups: Groups of documents that lost at least one.
        similarity_threshold: Cosine from which a pair counts.
        overlap_threshold: Overlap from which a pair counts; None without texts.
    """

    kept: np.ndarray
    removed: tuple[Removed, ...]
    groups: int
    similarity_threshold: float
    overlap_threshold: float | None

    def examples(self, count: int) -> tuple[Removed, ...]:
        """Returns removed documents for a report: those that were nearest to being kept first.

        These show whether the thresholds are right.
        """
        return tuple(sorted(self.removed, key=lambda one: (one.similarity, one.index))[:count])


def find_duplicates(
    neighbors: Neighbors,
    vectors: Vectors,
    lengths: Sequence[int] | np.ndarray,
    *,
    ids: Sequence[str] | None = None,
    texts: Callable[[int], str] | None = None,
    similarity: float = SIMILARITY,
    overlap: float = OVERLAP,
) -> Duplicates:
    """Finds near-duplicates among neighbours and keeps one of each.

    Two documents are near-duplicates if their cosine is at least ``similarity``, or if their texts
    have at least ``overlap`` of their word 5-grams in common. Overlap is the Jaccard index, not
    containment: a short text inside two long ones does not make these two duplicates. Pairs are
    looked for in the neighbour lists, texts are compared where the cosine is at least 0.8.

    Such pairs connect documents into groups, since a list of k neighbours does not name every one
    of many copies. In a group the longest document is kept (of equally long ones that with the
    smallest id) and every member that is a near-duplicate of it is removed; if members remain that
    are not, as in a chain a ~ b ~ c, the same is done with them. So a removed document is always a
    near-duplicate of the one that is named beside it. Nothing depends on the order of the
    documents, given ``ids``.

    Args:
        neighbors: Lists of the documents.
        vectors: [documents, width] that they were found with.
        lengths: [documents], for example tokens.
        ids: Names of the documents that decide ties; without them the index does.
        texts: Returns a document's text; without it only cosines are compared.
        similarity: Cosine from which a pair counts; above 1: never.
        overlap: Overlap from which a pair counts; above 1: never.

    Raises:
        ConfigError: A threshold is not above 0.
        DataError: The arguments are not of one number of documents.
    """
    thresholds = Thresholds(similarity, overlap)
    check_thresholds(thresholds)
    _check(neighbors, vectors, lengths, ids)
    count = len(neighbors)
    shingles = Shingles(texts)
    groups = group_pairs(
        linked_pairs(neighbors.ids, neighbors.similarities, 0, shingles, thresholds)
    )
    name = (lambda document: document) if ids is None else ids.__getitem__
    removed = remove_copies(groups, vectors, lengths, name, shingles, thresholds)
    return gather(removed, count, thresholds, with_texts=texts is not None)


@dataclass(frozen=True)
class Thresholds:
    """From where on two documents are near-duplicates; see ``find_duplicates``."""

    similarity: float
    overlap: float


def check_thresholds(thresholds: Thresholds) -> None:
    """Refuses thresholds that every pair would pass.

    Raises:
        ConfigError: A threshold is not above 0.
    """
    for name in ("similarity", "overlap"):
        value = getattr(thresholds, name)
        if not value > 0:
            raise ConfigError(f"{name} is {value}, expected a threshold above 0.")


def linked_pairs(
    ids: np.ndarray,
    similarities: np.ndarray,
    first: int,
    shingles: Shingles,
    thresholds: Thresholds,
) -> np.ndarray:
    """Returns the pairs in some documents' lists that are near-duplicates.

    Args:
        ids: [documents, k] int64, lists of the documents from ``first`` on.
        similarities: [documents, k] float32.
        first: The first document.
        shingles: Of the documents' texts.
        thresholds: From where on a pair counts.

    Returns:
        [pairs, 2] int64, the lower document first, sorted, each once.
    """
    lowest = thresholds.similarity
    if shingles.texts is not None:
        lowest = min(lowest, _COMPARED_FROM)
    rows, places = np.nonzero((similarities >= lowest) & (ids >= 0))
    others, rows_in_corpus = ids[rows, places], rows + first
    pairs = np.stack(
        [np.minimum(rows_in_corpus, others), np.maximum(rows_in_corpus, others)], axis=1
    )
    pairs, chosen = np.unique(pairs, axis=0, return_index=True)
    linked = similarities[rows, places][chosen] >= thresholds.similarity
    if shingles.texts is not None and thresholds.overlap <= 1:
        for number in np.flatnonzero(~linked):
            common = shingles.overlap(int(pairs[number, 0]), int(pairs[number, 1]))
            linked[number] = common is not None and common >= thresholds.overlap
    return pairs[linked]


def group_pairs(pairs: np.ndarray) -> list[np.ndarray]:
    """Returns the documents that pairs [pairs, 2] connect, group by group, each sorted."""
    if not len(pairs):
        return []
    documents, ends = np.unique(pairs, return_inverse=True)
    ends = ends.reshape(-1, 2)
    links = coo_array(
        (np.ones(len(ends), np.bool_), (ends[:, 0], ends[:, 1])), shape=(len(documents),) * 2
    )
    _, labels = connected_components(links, directed=False)
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    return np.split(documents[order], starts[1:])


def remove_copies(
    groups: Iterable[np.ndarray],
    vectors: Vectors,
    lengths: Sequence[int] | np.ndarray,
    name: Callable[[int], Any],
    shingles: Shingles,
    thresholds: Thresholds,
) -> list[list[Removed]]:
    """Decides who goes in each group; a group needs nothing of the others.

    Args:
        groups: From ``group_pairs``, or some of them.
        vectors: [documents, width] of the corpus.
        lengths: [documents] of the corpus.
        name: Returns what decides between equally long documents.
        shingles: Of the documents' texts.
        thresholds: From where on a pair counts.

    Returns:
        For each group the documents that are removed.
    """
    removed = []
    for group in groups:
        # By length, then by name: the first of a group is kept.
        members = sorted(group.tolist(), key=lambda one: (-int(lengths[one]), name(one), one))
        rows = np.concatenate([read_rows(vectors, one, one + 1) for one in members])
        removed.append(list(_remove(np.array(members), rows, shingles, thresholds)))
    return removed


def gather(
    removed: Iterable[Sequence[Removed]], count: int, thresholds: Thresholds, *, with_texts: bool
) -> Duplicates:
    """Puts together what was decided group by group.

    Args:
        removed: What goes, a sequence a group.
        count: Documents of the corpus.
        thresholds: What was decided by.
        with_texts: Whether texts were compared.
    """
    of_groups = [found for found in removed if found]
    all_removed = sorted((one for found in of_groups for one in found), key=lambda one: one.index)
    stays = np.ones(count, np.bool_)
    stays[[one.index for one in all_removed]] = False
    return Duplicates(
        np.flatnonzero(stays),
        tuple(all_removed),
        len(of_groups),
        thresholds.similarity,
        thresholds.overlap if with_texts else None,
    )


def shingle_hashes(text: str) -> np.ndarray:
    """Returns the hashes of a text's word 5-grams, sorted, without repetition, [shingles] uint64.

    Words are lower-cased runs of letters, digits and underscores; a text of fewer words is one
    shingle, a text without words has none.
    """
    # A word is its CRC-32, a shingle a polynomial in them: both are the same on every machine.
    words = np.array([crc32(word.encode()) for word in _WORD.findall(text.lower())], np.uint64)
    if len(words) == 0:
        return words
    size = min(SHINGLE_WORDS, len(words))
    powers = np.cumprod(np.full(size, _MULTIPLIER, np.uint64))  # modulo 2**64
    shingles = np.lib.stride_tricks.sliding_window_view(words + np.uint64(1), size)
    return np.unique((shingles * powers).sum(axis=1, dtype=np.uint64))


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the share of the entries of two sorted sets that both have; 0 if both are empty."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / max(len(first) + len(second) - common, 1)


class Shingles:
    """The overlaps of documents' texts; a bounded number of documents' shingles is kept."""

    def __init__(self, texts: Callable[[int], str] | None) -> None:
        """`texts` returns a document's text; None: overlaps are not known."""
        self.texts = texts
        self._hashes: dict[int, np.ndarray] = {}

    def overlap(self, first: int, second: int) -> float | None:
        """Returns the overlap of two documents, None without texts."""
        if self.texts is None:
            return None
        return jaccard(self._of(first, self.texts), self._of(second, self.texts))

    def _of(self, document: int, texts: Callable[[int], str]) -> np.ndarray:
        if document not in self._hashes:
            if len(self._hashes) >= _KEPT_SHINGLES:
                self._hashes.clear()
            self._hashes[document] = shingle_hashes(texts(document))
        return self._hashes[document]


def _remove(
    members: np.ndarray, rows: np.ndarray, shingles: Shingles, thresholds: Thresholds
) -> Iterator[Removed]:
    """Yields what goes of one group, whose members come in the order in which they are kept."""
    similarity, overlap = thresholds.similarity, thresholds.overlap
    left = np.arange(len(members))
    while len(left) > 1:
        kept, left = left[0], left[1:]
        cosines = pair_similarities(rows[[kept]], rows, left[None, :])[0]
        stays = np.ones(len(left), np.bool_)
        for number, cosine in enumerate(cosines.tolist()):
            if cosine < min(similarity, _COMPARED_FROM):
                continue
            common = shingles.overlap(int(members[kept]), int(members[left[number]]))
            if cosine >= similarity or (common is not None and common >= overlap):
                stays[number] = False
                yield Removed(int(members[left[number]]), int(members[kept]), cosine, common)
        left = left[stays]


def _check(
    neighbors: Neighbors,
    vectors: Vectors,
    lengths: Sequence[int] | np.ndarray,
    ids: Sequence[str] | None,
) -> None:
    count = len(neighbors)
    for name, found in (("vectors", vectors), ("lengths", lengths), ("ids", ids)):
        if found is not None and len(found) != count:
            raise DataError(
                f"deduplicate: {len(found)} {name}, but neighbours of {count} documents; expected "
                "one a document. Search the neighbours of these documents again."
            )
