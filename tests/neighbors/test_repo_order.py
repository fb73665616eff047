from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.neighbors.repo_order import repo_order
from tests.neighbors.plain import neighbour_lists


def plain_repo(lists):
    """The description step by step, on the set that the official code takes documents from."""
    seen, unseen = set(), set(range(len(lists)))
    clusters, home = {0: []}, {}
    cluster, length = 0, 0
    current = unseen.pop()
    clusters[0].append(current)
    home[current] = 0
    seen.add(current)
    while unseen:
        near = [k for k in lists[current][:9] if k >= 0 and k not in seen]
        if not near or length >= 21:
            current = unseen.pop()
            cluster, length = cluster + 1, 0
        else:
            current = near[0]
            unseen.remove(current)
        clusters.setdefault(cluster, []).append(current)
        home[current] = cluster
        length += 1
        seen.add(current)
    for cluster, documents in clusters.copy().items():
        if len(documents) < 21:
            for document in list(documents):
                near = [k for k in lists[document][:9] if k >= 0 and home[k] != cluster]
                if near:
                    other = clusters[home[near[0]]]
                    documents.remove(document)
                    other.insert(other.index(near[0]), document)
                    home[document] = home[near[0]]
            if not documents:
                del clusters[cluster]
    return [document for documents in clusters.values() for document in documents]


@pytest.mark.slow
@settings(deadline=None)
@given(neighbour_lists(max_count=80))
def test_it_is_what_the_description_says(lists):
    documents, starts = repo_order(*lists)
    assert documents.tolist() == plain_repo(lists[0].tolist())
    assert starts[0] and sorted(documents.tolist()) == list(range(len(lists[0])))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_it_is_what_the_description_says_with_long_chains(seed):
    rng = np.random.default_rng(seed)
    ids = (np.arange(400)[:, None] + rng.integers(-12, 13, (400, 12))) % 400
    similarities = np.zeros(ids.shape, np.float32)
    documents, starts = repo_order(ids, similarities)
    assert documents.tolist() == plain_repo(ids.tolist())
    assert 1 < starts.sum() < 400 / 15


def chain_lists(count):
    return np.minimum(np.arange(1, count + 1), count - 1)[:, None]


@pytest.mark.parametrize(("count", "sizes"), [(22, [22]), (43, [22, 21]), (64, [22, 21, 21])])
def test_the_first_chain_has_22_documents_and_others_21(count, sizes):
    documents, starts = repo_order(chain_lists(count), np.zeros((count, 1), np.float32))
    assert documents.tolist() == list(range(count))
    assert np.diff([*np.flatnonzero(starts), count]).tolist() == sizes


def test_a_short_chain_goes_in_front_of_its_neighbours():
    # 22 documents in the first chain; 22 and 23 are a short one, near to 5 and to 7.
    ids = np.vstack([chain_lists(22), [[5], [7]]])
    documents, starts = repo_order(ids, np.zeros((24, 1), np.float32))
    assert documents.tolist() == [0, 1, 2, 3, 4, 22, 5, 6, 23, *range(7, 22)]
    assert starts.sum() == 1


def test_a_document_with_neighbours_only_in_its_own_short_chain_stays():
    ids = np.vstack([chain_lists(22), [[23], [22], [3]]])
    documents, starts = repo_order(ids, np.zeros((25, 1), np.float32))
    assert documents.tolist() == [0, 1, 2, 24, *range(3, 22), 22, 23]
    assert np.flatnonzero(starts).tolist() == [0, 23]


def test_only_nine_ranks_are_read():
    ids = np.full((3, 10), -1)
    ids[0, 9] = 2
    assert repo_order(ids, np.zeros((3, 10), np.float32))[0].tolist() == [0, 1, 2]
    ids[0, 8] = 2
    # 0 and 2 are a chain, 1 another; 0 and 1 stay, having nobody elsewhere.
    assert repo_order(ids, np.zeros((3, 10), np.float32))[0].tolist() == [0, 2, 1]
