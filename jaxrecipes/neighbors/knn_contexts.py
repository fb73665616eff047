"""The paper's kNN baseline: contexts of one document and its neighbours, documents repeat."""

from __future__ import annotations

import numpy as np

from jaxrecipes.neighbors.graph import check_lists
from jaxrecipes.neighbors.random_order import random_order


def knn_contexts(
    ids: np.ndarray,
    similarities: np.ndarray,
    lengths: np.ndarray,
    *,
    context_length: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Puts documents and their nearest neighbours into contexts (arXiv 2310.10638, section 3.1).

    Documents are drawn in random order. Each is followed by its neighbours, nearest first, until
    the context is full or the list ends. Whether a document was used before is not looked at: some
    occur often and others never. Contexts are made until they have as many tokens as the corpus,
    so that comparisons are at equal tokens.

    Args:
        ids: [n, k] int64, nearest neighbours, best first; -1 fills short lists.
        similarities: [n, k] float32; checked only, the lists' order decides.
        lengths: [n] int64, tokens of each document.
        context_length: Tokens of a context.
        seed: Decides which documents are drawn.

    Returns:
        documents [m] int64, with repetitions; starts [m] bool (the documents drawn).
    """
    lists = check_lists(ids, similarities)[0].tolist()
    tokens_of = lengths.tolist()
    documents: list[int] = []
    drawn: list[int] = []
    left = sum(tokens_of)
    # All documents' own tokens would be enough, so there is always one left to draw.
    for document in random_order(len(lists), seed).tolist():
        if left <= 0 and documents:
            break
        drawn.append(len(documents))
        tokens = 0
        for member in (document, *lists[document]):
            if tokens >= context_length or (left <= 0 and tokens):
                break
            if member >= 0 and not (tokens and member == document):
                documents.append(member)
                tokens += tokens_of[member]
                left -= tokens_of[member]
    starts = np.zeros(len(documents), bool)
    starts[drawn] = True
    return np.array(documents, np.int64), starts
