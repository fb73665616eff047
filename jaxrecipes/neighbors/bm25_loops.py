"""The loop of ``bm25``, compiled. See ``graph_loops`` for why it is a file of its own."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True)
def walk(indptr, terms, counts, impacts, lengths, vocabulary, context_length, buffer_documents):
    """Fills contexts from a buffer, each next document by its score for the one before.

    Args:
        indptr: [n + 1] int64.
        terms: [entries] int32, different terms of each document.
        counts: [entries] int64, how often the term occurs: its weight in a query.
        impacts: [entries] int64, what the term adds to the document's score, in integers.
        lengths: [n] int64, tokens of each document.
        vocabulary: Number of terms.
        context_length: Tokens of a context.
        buffer_documents: Documents to choose from.

    Returns:
        documents [n] int64, starts [n] bool.
    """
    count = indptr.size - 1
    documents = np.empty(count, np.int64)
    starts = np.zeros(count, np.bool_)
    query = np.zeros(vocabulary, np.int64)
    buffer = np.empty(min(buffer_documents, count), np.int64)
    size, arrived, done = 0, 0, 0
    while done < count:
        while size < buffer.size and arrived < count:
            buffer[size] = arrived
            size += 1
            arrived += 1
        starts[done] = True
        tokens = 0
        chosen = 0  # a context starts with the first of the buffer
        while True:
            current = buffer[chosen]
            for place in range(chosen + 1, size):
                buffer[place - 1] = buffer[place]
            size -= 1
            documents[done] = current
            done += 1
            tokens += lengths[current]
            if tokens >= context_length or size == 0:
                break
            for entry in range(indptr[current], indptr[current + 1]):
                query[terms[entry]] = counts[entry]
            chosen = 0  # without a common term: the first of the buffer
            highest = np.int64(0)
            for place in range(size):
                score = np.int64(0)
                for entry in range(indptr[buffer[place]], indptr[buffer[place] + 1]):
                    score += query[terms[entry]] * impacts[entry]
                if score > highest:
                    highest = score
                    chosen = place
            for entry in range(indptr[current], indptr[current + 1]):
                query[terms[entry]] = 0
    return documents, starts
