"""Near-duplicates: which pairs count, what is kept, and that order decides nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.errors import ConfigError, DataError
from jaxrecipes.neighbors.deduplicate import (
    Duplicates,
    Removed,
    find_duplicates,
    jaccard,
    shingle_hashes,
)
from jaxrecipes.neighbors.search import find_neighbors
from tests.neighbors.vectors import unit_vectors


def at_angles(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def corpus_with_copies(seed: int, count: int = 40) -> np.ndarray:
    """Vectors in groups that are near each other, and some that are alone."""
    generator = np.random.default_rng(seed)
    centres = unit_vectors(count // 4, seed, width=12)
    rows = centres[generator.integers(0, len(centres), count)]
    rows = rows + 0.05 * generator.standard_normal((count, 12), np.float32)
    rows[::9] = unit_vectors(len(rows[::9]), seed + 1, width=12)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_keeps_the_longest_and_names_the_others() -> None:
    vectors = at_angles(0, 90, 1, 180, 2)
    found = find_duplicates(find_neighbors(vectors, 3), vectors, [5, 9, 7, 1, 6])
    assert found.kept.tolist() == [1, 2, 3]
    assert [(one.index, one.kept) for one in found.removed] == [(0, 2), (4, 2)]
    assert found.removed[0].similarity == pytest.approx(np.cos(np.deg2rad(1)), abs=1e-6)
    assert found.removed[0].overlap is None and found.groups == 1


def test_ties_go_to_the_smallest_id_or_else_the_first() -> None:
    vectors = at_angles(0, 1, 2)
    lists = find_neighbors(vectors, 2)
    assert find_duplicates(lists, vectors, [3, 3, 3]).kept.tolist() == [0]
    assert find_duplicates(lists, vectors, [3, 3, 3], ids=["c", "a", "b"]).kept.tolist() == [1]


def test_the_ends_of_a_chain_are_both_kept() -> None:
    # 15 degrees apart is a cosine of 0.966, 30 degrees 0.866: the ends are not near-duplicates.
    vectors = at_angles(0, 15, 30)
    found = find_duplicates(find_neighbors(vectors, 2), vectors, [9, 5, 7])
    assert found.kept.tolist() == [0, 2]
    assert [(one.index, one.kept) for one in found.removed] == [(1, 0)]


def test_more_copies_than_neighbours_leave_one() -> None:
    vectors = np.repeat(unit_vectors(1, 0), 50, axis=0)
    found = find_duplicates(find_neighbors(vectors, 3), vectors, np.arange(50))
    assert found.kept.tolist() == [49] and len(found.removed) == 49


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), length=st.integers(1, 4))
def test_what_holds_and_that_order_decides_nothing(seed: int, length: int) -> None:
    vectors = corpus_with_copies(seed)
    count = len(vectors)
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, length + 1, count)
    ids = [f"document {number}" for number in generator.permutation(count)]
    k = count - 1

    def survivors(order: np.ndarray) -> tuple[set[str], Duplicates]:
        rows, names = vectors[order], [ids[one] for one in order]
        found = find_duplicates(find_neighbors(rows, k), rows, lengths[order], ids=names)
        return {names[one] for one in found.kept}, found

    kept, found = survivors(np.arange(count))
    assert survivors(generator.permutation(count))[0] == kept
    removed = [one.index for one in found.removed]
    assert sorted([*found.kept.tolist(), *removed]) == list(range(count))
    assert removed, "the corpus has near-duplicates"
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    for one in found.removed:
        assert cosines[one.index, one.kept] >= 0.95 - 1e-6
        assert one.kept in found.kept
        assert lengths[one.kept] >= lengths[one.index]
    among = cosines[np.ix_(found.kept, found.kept)] - 2 * np.eye(len(found.kept))
    assert (among < 0.95 + 1e-6).all()


def words(start: int, stop: int) -> str:
    return " ".join(f"word{number}" for number in range(start, stop))


def test_texts_that_overlap_are_duplicates_below_the_similarity() -> None:
    vectors = at_angles(0, 25, 50)  # neighbours at 0.906
    texts = [words(0, 100), words(4, 104), words(300, 400)]
    lists = find_neighbors(vectors, 2)
    assert not find_duplicates(lists, vectors, [3, 2, 1]).removed
    found = find_duplicates(lists, vectors, [3, 2, 1], texts=texts.__getitem__)
    assert [(one.index, one.kept) for one in found.removed] == [(1, 0)]
    assert found.removed[0].overlap == pytest.approx(92 / 100)
    assert found.overlap_threshold == 0.8
    higher = find_duplicates(lists, vectors, [3, 2, 1], texts=texts.__getitem__, overlap=0.95)
    assert not higher.removed


def test_texts_of_what_is_not_similar_are_not_read() -> None:
    vectors = at_angles(0, 60, 120)

    def unread(index: int) -> str:
        raise AssertionError(f"text {index} was read")

    assert not find_duplicates(find_neighbors(vectors, 2), vectors, [1, 1, 1], texts=unread).removed


def test_both_measures_are_reported() -> None:
    vectors = at_angles(0, 1)
    texts = ["The cat sat on the mat today", "the cat, sat on: the mat tonight"]
    found = find_duplicates(find_neighbors(vectors, 1), vectors, [2, 1], texts=texts.__getitem__)
    assert found.removed[0].overlap == pytest.approx(2 / 4)
    assert found.removed[0].similarity > 0.99


def test_shingles_equal_sets_of_five_words() -> None:
    first, second = words(0, 30) + " " + words(0, 30), words(10, 50)

    def plain(text: str) -> set[tuple[str, ...]]:
        parts = text.split()
        return {tuple(parts[start : start + 5]) for start in range(len(parts) - 4)}

    one, other = plain(first), plain(second)
    assert len(shingle_hashes(first)) == len(one)
    expected = len(one & other) / len(one | other)
    assert jaccard(shingle_hashes(first), shingle_hashes(second)) == pytest.approx(expected)
    assert jaccard(shingle_hashes("a b"), shingle_hashes("A, B!")) == 1
    assert jaccard(shingle_hashes("a b"), shingle_hashes("b a")) == 0
    assert jaccard(shingle_hashes(""), shingle_hashes(" ...")) == 0


def test_examples_are_the_doubtful_ones() -> None:
    removed = tuple(Removed(number, 0, 0.99 - number / 100, None) for number in range(1, 4))
    found = Duplicates(np.array([0]), removed, 1, 0.95, None)
    assert [one.index for one in found.examples(2)] == [3, 2]


def test_refuses_what_does_not_fit() -> None:
    vectors = unit_vectors(4, 0)
    lists = find_neighbors(vectors, 2)
    with pytest.raises(ConfigError, match="similarity is 0"):
        find_duplicates(lists, vectors, [1] * 4, similarity=0)
    with pytest.raises(ConfigError, match="overlap is -1"):
        find_duplicates(lists, vectors, [1] * 4, overlap=-1)
    with pytest.raises(DataError, match="3 lengths, but neighbours of 4 documents"):
        find_duplicates(lists, vectors, [1] * 3)


def test_copies_in_real_text_are_found_and_nothing_else_is(shared_data: Path) -> None:
    texts = [
        json.loads(line)["text"]
        for line in next((shared_data / "agnews").glob("*.jsonl")).open(encoding="utf-8")
    ][:200]
    texts += [texts[7] + " Read more online.", texts[30].upper()]
    vectors = np.repeat(unit_vectors(1, 0), len(texts), axis=0)  # every pair is compared by text
    found = find_duplicates(
        find_neighbors(vectors, len(texts) - 1),
        vectors,
        [len(text) for text in texts],
        texts=texts.__getitem__,
        similarity=1.5,
    )
    pairs = {(one.index, one.kept) for one in found.removed}
    assert (7, 200) in pairs and (201, 30) in pairs
