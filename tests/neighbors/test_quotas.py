"""Quotas are exact, and what is chosen is the nearest to the centres."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.quotas import exact_quotas, pick, rank_at_random, rank_by_cluster

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=25).filter(any)


@settings(max_examples=300, deadline=None)
@given(sizes, st.data())
def test_quotas_add_up_and_leave_no_cluster_out(sizes, data):
    present, members = sum(size > 0 for size in sizes), sum(sizes)
    total = data.draw(st.integers(present, members))
    quotas = exact_quotas(sizes, total)
    assert sum(quotas) == total
    for size, quota in zip(sizes, quotas, strict=True):
        assert (1 if size else 0) <= quota <= size
    exact = [total * size / members for size in sizes]
    if min(share for share in exact if share) >= 1:
        # Without the floor it is the largest remainder: never a whole one away.
        assert all(abs(quota - share) < 1 for quota, share in zip(quotas, exact, strict=True))


def test_by_hand_and_where_rounding_fails():
    assert exact_quotas([50, 30, 20], 10) == [5, 3, 2]
    # round() would give 1 + 1 + 1 = 3 of 4 and 3 + 3 + 3 + 3 = 12 of 10.
    assert sum(exact_quotas([33, 33, 34], 4)) == 4
    assert sorted(exact_quotas([25, 25, 25, 25], 10)) == [2, 2, 3, 3]
    # The floor of one is paid by the largest.
    assert exact_quotas([97, 1, 1, 1], 4) == [1, 1, 1, 1]
    assert exact_quotas([90, 5, 5], 10) == [8, 1, 1]
    for total in (0, 1, 11):
        with pytest.raises(DataError, match="expected a total"):
            exact_quotas([8, 2], total)


clusters = st.lists(st.integers(0, 8), min_size=1, max_size=6).filter(any)


@settings(max_examples=300, deadline=None)
@given(clusters, st.integers(0, 60), st.data())
def test_a_choice_has_its_size_and_nothing_rejected(sizes, total, data):
    numbers = iter(range(sum(sizes)))
    ranked = [[next(numbers) for _ in range(size)] for size in sizes]
    rejected = data.draw(st.sets(st.integers(0, sum(sizes) - 1)))
    chosen = pick(ranked, total, rejected)
    assert len(chosen) == len(set(chosen)) == min(total, sum(sizes) - len(rejected))
    assert not set(chosen) & rejected
    for members in ranked:
        # Of each cluster the first that can be used: a rejected one is filled by the next.
        usable = [one for one in members if one not in rejected]
        own = [one for one in chosen if one in members]
        assert own == usable[: len(own)]


@given(clusters, st.integers(1, 20), st.data())
def test_rejecting_keeps_those_that_were_chosen_before(sizes, total, data):
    """So that what was refined is not thrown away, as long as its cluster has enough."""
    numbers = iter(range(sum(sizes)))
    ranked = [[next(numbers) for _ in range(size)] for size in sizes]
    before = pick(ranked, total)
    if not before:
        return
    bad = data.draw(st.sampled_from(before))
    after = pick(ranked, total, {bad})
    assert set(before) - {bad} <= set(after)


def test_clusters_are_found_and_the_nearest_comes_first():
    generator = np.random.default_rng(0)
    centres = np.eye(8)[:3]
    groups = np.repeat([0, 1, 2], [20, 10, 5])
    spread = generator.normal(0, 1, (35, 8)) * np.tile(np.linspace(0.01, 0.2, 5), 7)[:, None]
    vectors = centres[groups] + spread
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    ranked = rank_by_cluster(vectors, 3, seed=1)
    assert sorted(one for members in ranked for one in members) == list(range(35))
    for members in ranked:
        centre = vectors[members].sum(axis=0)
        near = vectors[members] @ centre / np.linalg.norm(centre)
        assert np.all(np.diff(near) < 2e-3)  # up to the grid
    # With as many clusters as vectors, or more, each is alone or with its equals.
    assert sum(map(len, rank_by_cluster(vectors[:4], 9, seed=0))) == 4
    assert sum(map(len, rank_by_cluster(np.repeat(vectors[:1], 5, axis=0), 3, seed=0))) == 5


def test_random_order_is_one_cluster():
    (ranked,) = rank_at_random(30, seed=0)
    assert sorted(ranked) == list(range(30)) and ranked != list(range(30))
    assert rank_at_random(30, seed=0) == [ranked] != rank_at_random(30, seed=1)
