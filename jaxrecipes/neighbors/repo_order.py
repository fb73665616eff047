"""The order that the official in-context-pretraining repository computes, which is not its paper's.

Written from a description of sort/sort.py at its last commit (3e57a6a), for comparison.
"""

from __future__ import annotations

import numpy as np

from jaxrecipes.neighbors.graph import check_lists

_RANKS = 9  # ranks 1 to 9 of the lists; rank 0 is the document itself
_CLUSTER = 21


def repo_order(ids: np.ndarray, similarities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orders documents as the official code does: chains of at most 21, short ones taken apart.

    1. Chain: from the current document to the first of its nine nearest neighbours (directed) that
       no chain has yet. Where there is none, or the chain has 21 documents, a new chain begins at
       an unseen document. There is no minimum degree, no graph and no weight.
    2. Merge: chains of fewer than 21 are taken apart in the order of their numbers; each document
       goes in front of its nearest neighbour (of the nine) that lies in another chain. What was
       moved into a short chain moves on when its turn comes.
    3. The order is that of the chains that are left, by number.

    Kept as it is: the first chain counts its first document not, so that it grows to 22; ranks
    beyond 9 are never read; a new chain starts at the lowest unseen index, because that is what
    ``set.pop`` gives for a set of small integers in CPython, so there is nothing random.

    Deviations, all where the original fails or where another stage does the work:
    - a name used in the constructor, and the neighbour array read by the merge, are undefined there
      (NameError, AttributeError): here the arrays that the other functions read;
    - the first document is in no chain's register (KeyError when it is a neighbour): here it is;
    - a document whose nine neighbours are all in its own chain ends the merge with an error: here
      it stays, and its chain with it;
    - a list shorter than nine is read as far as it goes (there, every list has 50 entries);
    - rank 0 is taken for the document itself there, which duplicates break: here lists do not
      contain the document;
    - documents are not dropped for resembling the one before (that is done when writing, there):
      duplicates are removed before ordering;
    - embeddings are L2-normalised (see ``embed``), there they are not.

    Args:
        ids: [n, k] int64, nearest neighbours without the document itself; -1 fills short lists.
        similarities: [n, k] float32; checked, but as in the original only the rank counts.

    Returns:
        documents [n] int64, starts [n] bool (first document of each chain that is left).
    """
    ids, _ = check_lists(ids, similarities)
    lists = ids[:, :_RANKS].tolist()
    chain_of, chains = _chains(lists)
    for number in sorted(chains):
        if len(chains[number]) >= _CLUSTER:
            continue
        staying = []
        for document in chains[number]:
            target = next(
                (near for near in lists[document] if near >= 0 and chain_of[near] != number), None
            )
            if target is None:
                staying.append(document)
                continue
            chain = chains[chain_of[target]]
            chain.insert(chain.index(target), document)
            chain_of[document] = chain_of[target]
        chains[number] = staying
    left = [chains[number] for number in sorted(chains) if chains[number]]
    starts = np.zeros(len(lists), bool)
    starts[np.cumsum([0, *map(len, left)])[:-1]] = True
    return np.array([document for chain in left for document in chain], np.int64), starts


def _chains(lists: list[list[int]]) -> tuple[list[int], dict[int, list[int]]]:
    chain_of = [-1] * len(lists)  # -1: unseen
    chains: dict[int, list[int]] = {}
    number, counted, lowest, current = 0, 0, 0, -1
    for step in range(len(lists)):
        following = None
        if step:
            following = next(
                (near for near in lists[current] if near >= 0 and chain_of[near] < 0), None
            )
        if following is None or counted >= _CLUSTER:
            while chain_of[lowest] >= 0:
                lowest += 1
            following = lowest
            number += 1 if step else 0
            counted = 0
        current = following
        chain_of[current] = number
        chains.setdefault(number, []).append(current)
        counted += 1 if step else 0
    return chain_of, chains
