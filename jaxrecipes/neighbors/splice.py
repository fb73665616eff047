"""SPLiCe: contexts grown from random documents by retrieval."""

from __future__ import annotations

from collections import deque

import numpy as np

from jaxrecipes.neighbors.graph import check_lists
from jaxrecipes.neighbors.random_order import random_order


def splice_order(
    ids: np.ndarray,
    similarities: np.ndarray,
    lengths: np.ndarray,
    *,
    context_length: int,
    seed: int,
    branches: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Orders documents by breadth-first retrieval (SPLiCe, arXiv 2312.17296, algorithm 1).

    A context starts at a random unused document. The front of the queue retrieves its nearest
    unused documents, which join the context and the queue, until the context is full. With one
    branch, the paper's default, this is a chain of nearest unused neighbours.

    Deviations: retrieval sees the k neighbours of the lists, not the whole corpus, so that a queue
    can run empty; the next random document then starts a new group. The last document of a context
    is not trimmed: its remaining tokens open the next row, so that no token is lost.

    Args:
        ids: [n, k] int64, nearest neighbours, best first; -1 fills short lists.
        similarities: [n, k] float32; checked only, the lists' order decides.
        lengths: [n] int64, tokens of each document.
        context_length: Tokens of a context.
        seed: Decides the roots.
        branches: Documents that each document retrieves.

    Returns:
        documents [n] int64, starts [n] bool (roots).
    """
    lists = check_lists(ids, similarities)[0].tolist()
    tokens_of = lengths.tolist()
    used = [False] * len(lists)
    documents: list[int] = []
    roots: list[int] = []
    for root in random_order(len(lists), seed).tolist():
        if used[root]:
            continue
        used[root] = True
        roots.append(len(documents))
        documents.append(root)
        tokens, queue = tokens_of[root], deque([root])
        while queue and tokens < context_length:
            retrieved = 0
            for near in lists[queue.popleft()]:
                if retrieved == branches or tokens >= context_length:
                    break
                if near >= 0 and not used[near]:
                    used[near] = True
                    documents.append(near)
                    queue.append(near)
                    tokens += tokens_of[near]
                    retrieved += 1
    starts = np.zeros(len(documents), bool)
    starts[roots] = True
    return np.array(documents, np.int64), starts
