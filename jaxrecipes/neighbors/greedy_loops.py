"""The loops of ``greedy``, compiled. See ``graph_loops`` for why they are a file of their own."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True)
def heaviest_neighbors(indptr, indices, width):
    """Returns [n, width] int32, the first neighbours of each row; -1 fills short rows."""
    count = indptr.size - 1
    heaviest = np.full((count, width), -1, np.int32)
    for row in range(count):
        begin = indptr[row]
        for column in range(min(width, indptr[row + 1] - begin)):
            heaviest[row, column] = indices[begin + column]
    return heaviest


@njit(nogil=True)
def walk(indptr, indices, heaviest, start_order):
    """Walks to the heaviest unvisited neighbour; restarts at the next unvisited of a fixed order.

    A step waits for memory: the row of the next document is anywhere. A table of equal rows needs
    one access where compressed rows need two, and eight neighbours of a row are half a cache line;
    most steps look no further. (A million documents with 10 neighbours: 0.19 s instead of 0.32.)

    Args:
        indptr: [n + 1] int64.
        indices: [edges] int32, rows sorted by weight.
        heaviest: [n, width] int32, from ``heaviest_neighbors``.
        start_order: [n] int64, all documents.

    Returns:
        documents [n] int64, and edges [n] int64: the place in ``indices`` of the edge that led to
        each; -1 for starts.
    """
    count, width = heaviest.shape
    documents = np.empty(count, np.int64)
    edges = np.full(count, -1, np.int64)
    visited = np.zeros(count, np.bool_)
    cursor = 0
    current = np.int64(-1)
    for step in range(count):
        following = np.int64(-1)
        if current >= 0:
            for column in range(width):
                other = heaviest[current, column]
                if other >= 0 and not visited[other]:
                    following = np.int64(other)
                    edges[step] = column
                    break
            if following < 0 and heaviest[current, width - 1] >= 0:
                for edge in range(indptr[current] + width, indptr[current + 1]):
                    if not visited[indices[edge]]:
                        following = np.int64(indices[edge])
                        edges[step] = edge - indptr[current]
                        break
        if following < 0:
            while visited[start_order[cursor]]:
                cursor += 1
            following = start_order[cursor]
        visited[following] = True
        documents[step] = following
        current = following
    # These accesses do not wait for each other, unlike those of the loop above.
    for step in range(1, count):
        if edges[step] >= 0:
            edges[step] += indptr[documents[step - 1]]
    return documents, edges


@njit(nogil=True)
def walk_remaining(indptr, indices, weights, heap, keys, places):
    """As ``walk``, but restarts where the fewest *unvisited* neighbours are left.

    The unvisited documents stand in a binary heap by their keys: unvisited neighbours in the upper
    32 bits, rank among equals in the lower. Visiting one takes it out and lets each unvisited
    neighbour rise: O((n + E) log n), memory O(n).

    Args:
        indptr: [n + 1] int64.
        indices: [edges] int32, rows sorted by weight.
        weights: [edges] float32.
        heap: [n] int32, documents sorted by key: a heap as it stands. Overwritten.
        keys: [n] uint64, key of each document. Overwritten.
        places: [n] int32, place of each document in the heap. Overwritten; -1 is visited.

    Returns:
        documents [n] int64, similarities [n] float32, starts [n] bool.
    """
    count = heap.size
    documents = np.empty(count, np.int64)
    similarities = np.zeros(count, np.float32)
    starts = np.zeros(count, np.bool_)
    one = np.uint64(1) << np.uint64(32)
    size = count
    current = np.int64(-1)
    weight = np.float32(0)
    for step in range(count):
        if current < 0:
            current = np.int64(heap[0])
            starts[step] = True
        else:
            similarities[step] = weight
        documents[step] = current
        size -= 1
        _remove(heap, places, keys, current, size)
        following = np.int64(-1)
        for edge in range(indptr[current], indptr[current + 1]):
            other = indices[edge]
            if places[other] >= 0:
                if following < 0:
                    following = np.int64(other)
                    weight = weights[edge]
                keys[other] -= one
                _rise(heap, places, keys, places[other])
        current = following
    return documents, similarities, starts


@njit(nogil=True)
def _remove(heap, places, keys, document, size):
    # The last of the heap fills the gap; `size` does not count it any more.
    gap = places[document]
    places[document] = -1
    last = heap[size]
    if last == document:
        return
    heap[gap] = last
    places[last] = gap
    _rise(heap, places, keys, gap)
    _sink(heap, places, keys, places[last], size)


@njit(nogil=True)
def _rise(heap, places, keys, place):
    document = heap[place]
    key = keys[document]
    while place > 0:
        parent = (place - 1) // 2
        if keys[heap[parent]] <= key:
            break
        heap[place] = heap[parent]
        places[heap[place]] = place
        place = parent
    heap[place] = document
    places[document] = place


@njit(nogil=True)
def _sink(heap, places, keys, place, size):
    document = heap[place]
    key = keys[document]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and keys[heap[child + 1]] < keys[heap[child]]:
            child += 1
        if keys[heap[child]] >= key:
            break
        heap[place] = heap[child]
        places[heap[place]] = place
        place = child
    heap[place] = document
    places[document] = place
