"""splice, knn and bm25_chunk against plain references and by hand."""

from __future__ import annotations

import math
import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.neighbors.bm25 import bm25_chunk_order
from jaxrecipes.neighbors.knn_contexts import knn_contexts
from jaxrecipes.neighbors.random_order import random_order
from jaxrecipes.neighbors.splice import splice_order
from tests.neighbors.plain import neighbour_lists

WORDS = ["red", "green", "blue", "cat", "dog", "hat"]


def groups(documents, starts):
    return [part.tolist() for part in np.split(documents, np.flatnonzero(starts)[1:])]


def plain_splice(lists, lengths, context_length, seed, branches):
    unused = set(range(len(lists)))
    found = []
    for root in random_order(len(lists), seed).tolist():
        if root not in unused:
            continue
        unused.remove(root)
        context, queue = [root], [root]
        while queue and sum(lengths[d] for d in context) < context_length:
            document, queue = queue[0], queue[1:]
            for _ in range(branches):
                near = [d for d in lists[document] if d in unused]
                if near and sum(lengths[d] for d in context) < context_length:
                    unused.remove(near[0])
                    context.append(near[0])
                    queue.append(near[0])
        found.append(context)
    return found


@settings(deadline=None)
@given(neighbour_lists(), st.integers(1, 3), st.integers(1, 60), st.integers(0, 99))
def test_splice_is_the_plain_reference(lists, branches, context_length, seed):
    lengths = np.arange(len(lists[0])) % 7
    found = splice_order(
        *lists, lengths, context_length=context_length, seed=seed, branches=branches
    )
    expected = plain_splice(lists[0].tolist(), lengths.tolist(), context_length, seed, branches)
    assert groups(*found) == expected


def test_splice_with_two_branches_goes_in_breadth():
    ids = np.array([[1, 2], [3, 4], [5, 6], [-1, -1], [-1, -1], [-1, -1], [-1, -1]])
    seed = next(seed for seed in range(99) if random_order(7, seed)[0] == 0)
    similarities, lengths = np.zeros((7, 2), np.float32), np.ones(7, np.int64)
    wide, _ = splice_order(ids, similarities, lengths, context_length=99, seed=seed, branches=2)
    assert wide.tolist() == [0, 1, 2, 3, 4, 5, 6]
    chain, starts = splice_order(ids, similarities, lengths, context_length=99, seed=seed)
    assert groups(chain, starts)[0] == [0, 1, 3]
    short, starts = splice_order(ids, similarities, lengths, context_length=2, seed=seed)
    assert groups(short, starts)[0] == [0, 1]


@settings(deadline=None)
@given(neighbour_lists(), st.integers(1, 60), st.integers(0, 99))
def test_knn_has_the_corpus_s_tokens_and_contexts_of_neighbours(lists, context_length, seed):
    lengths = 1 + np.arange(len(lists[0])) % 7
    documents, starts = knn_contexts(*lists, lengths, context_length=context_length, seed=seed)
    tokens = lengths[documents]
    assert tokens.sum() >= lengths.sum() > tokens[:-1].sum()
    drawn = random_order(len(lists[0]), seed).tolist()
    for number, (root, *near) in enumerate(groups(documents, starts)):
        assert root == drawn[number]
        listed = [d for d in lists[0][root].tolist() if d not in (-1, root)]
        assert near == listed[: len(near)]
        assert lengths[[root, *near[:-1]]].sum() < context_length or not near


def test_knn_repeats_hubs_and_leaves_others_out():
    count = 40
    ids = np.zeros((count, 2), np.int64)
    ids[:, 1], ids[0] = 1, [1, 2]
    ids[1] = [0, 2]
    documents, starts = knn_contexts(
        ids, np.zeros((count, 2), np.float32), np.ones(count, np.int64), context_length=3, seed=0
    )
    occurrences = np.bincount(documents, minlength=count)
    assert occurrences[0] > 10 and (occurrences == 0).sum() > 20
    assert starts.sum() == math.ceil(count / 3)


def plain_bm25(texts, lengths, context_length, size):
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    mean = max(sum(map(len, words)) / len(texts), 1)

    def score(query, document):
        total = 0
        for term in set(words[query]) & set(words[document]):
            holders = sum(term in other for other in words)
            rarity = math.log1p((len(texts) - holders + 0.5) / (holders + 0.5))
            times = words[document].count(term)
            norm = 1.2 * (0.25 + 0.75 * len(words[document]) / mean)
            weight = round(rarity * times * 2.2 / (times + norm) * 2**20)
            total += words[query].count(term) * weight
        return total

    waiting, buffer, found = list(range(len(texts))), [], []
    while waiting or buffer:
        while waiting and len(buffer) < size:
            buffer.append(waiting.pop(0))
        context = [buffer.pop(0)]
        while buffer and sum(lengths[d] for d in context) < context_length:
            best = max(buffer, key=lambda d: (score(context[-1], d), -d))
            buffer.remove(best)
            context.append(best)
        found.append(context)
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), min_size=1, max_size=14),
    st.integers(1, 5),
    st.integers(1, 6),
)
def test_bm25_chunk_is_the_plain_reference(texts, context_length, size):
    lengths = np.ones(len(texts), np.int64)
    found = bm25_chunk_order(
        texts.__getitem__, lengths, context_length=context_length, buffer_documents=size
    )
    assert groups(*found) == plain_bm25(texts, lengths.tolist(), context_length, size)


def test_bm25_chunk_by_hand():
    texts = ["red cat", "blue hat", "a Red, red dog", "green", "the blue cat"]
    documents, starts = bm25_chunk_order(
        texts.__getitem__, np.full(5, 10), context_length=30, buffer_documents=4
    )
    # From 0 the only other with "red"; it shares nothing with 1 and 3, so the lowest; then anew.
    assert groups(documents, starts) == [[0, 2, 1], [3, 4]]
