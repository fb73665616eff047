"""A diverse choice of a given size: clusters, an exact quota for each, the nearest to its centre.

The code of SSR (arXiv 2403.01244) takes round(M * n_c / N) of cluster c. These do not add up to M
(of 200 in 20 clusters, to 196 .. 205), and where M is near the number of clusters some get nothing.
Here quotas are by largest remainder, with a floor of one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.cluster import k_means, on_grid


def exact_quotas(sizes: Sequence[int], total: int) -> list[int]:
    """Divides a total among clusters in proportion to their sizes.

    Args:
        sizes: Members of each cluster, 0 or more.
        total: From the number of clusters that have members to the number of members.

    Returns:
        A quota for each cluster: at least 1 where there is a member, at most its size; their sum is
        `total`.

    Raises:
        DataError: The total is out of its range.
    """
    members, present = sum(sizes), sum(size > 0 for size in sizes)
    if not present <= total <= members:
        raise DataError(
            f"{total} of {members} members in {present} clusters; expected a total from the number "
            "of clusters to the number of members"
        )
    exact = [total * size / members if members else 0.0 for size in sizes]
    quotas = [total * size // members if members else 0 for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda c: (quotas[c] - exact[c], c))
    for cluster in by_remainder[: total - sum(quotas)]:
        quotas[cluster] += 1
    for cluster, size in enumerate(sizes):
        if size and not quotas[cluster]:
            # From the one that can spare it best: furthest above its exact share.
            richest = max(
                (c for c in range(len(sizes)) if quotas[c] > 1),
                key=lambda c: (quotas[c] - exact[c], quotas[c], -c),
            )
            quotas[richest] -= 1
            quotas[cluster] = 1
    return quotas


def rank_by_cluster(vectors: np.ndarray, clusters: int, *, seed: int) -> list[list[int]]:
    """Clusters vectors, and orders the members of each cluster.

    Args:
        vectors: float [n, width], of length one, n at least 1.
        clusters: Wanted number; fewer where there are fewer vectors, or equal ones.
        seed: Decides the first centres of k-means.

    Returns:
        Members of each cluster that has some, the nearest to the centre first.
    """
    points = on_grid(vectors, np.arange(len(vectors)))
    labels = k_means(points, min(clusters, len(points)), seed=seed)
    ranked = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        centre = points[members].sum(axis=0, dtype=np.int64)
        near = points[members].astype(np.int64) @ centre
        ranked.append([int(one) for one in members[np.argsort(-near, kind="stable")]])
    return ranked


def rank_at_random(count: int, *, seed: int) -> list[list[int]]:
    """Returns all of so many members as one cluster in random order."""
    return [[int(one) for one in np.random.default_rng(seed).permutation(count)]]


def pick(ranked: Sequence[Sequence[int]], total: int, rejected: Collection[int] = ()) -> list[int]:
    """Chooses members by quota, the first of each cluster, without those that were rejected.

    Where a rejected member leaves a gap, the next of its cluster fills it; a cluster that has none
    left passes what is missing to the others.

    Args:
        ranked: Members of each cluster in the order in which they are wanted.
        total: How many; fewer are returned where fewer are left.
        rejected: Members that cannot be used.

    Returns:
        The choice, cluster by cluster.
    """
    refused = set(rejected)
    left = [[one for one in members if one not in refused] for members in ranked]
    wanted = min(total, sum(map(len, left)))
    sizes = [len(members) for members in ranked]
    if wanted < sum(size > 0 for size in sizes):
        # Fewer than clusters: one each of the largest.
        order = sorted(range(len(sizes)), key=lambda c: (-sizes[c], c))
        quotas = [0] * len(sizes)
        for cluster in order[:wanted]:
            quotas[cluster] = 1
    else:
        quotas = exact_quotas(sizes, wanted)
    quotas = [min(quota, len(members)) for quota, members in zip(quotas, left, strict=True)]
    while (missing := wanted - sum(quotas)) > 0:
        spare = [c for c in range(len(left)) if len(left[c]) > quotas[c]]
        for cluster in spare[:missing]:
            quotas[cluster] += 1
    return [one for quota, members in zip(quotas, left, strict=True) for one in members[:quota]]
