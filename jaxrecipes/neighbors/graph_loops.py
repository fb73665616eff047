"""The loops of ``graph``, compiled. Imports numba, so it is itself imported where it is used.

Nothing is cached on disk: an installation may be read-only, and compiling takes about a second.
``nogil`` lets partitions be worked on by threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True)
def count_entries(ids):
    """Returns [n + 1] int64, where the entries of each row end when both ends store each edge."""
    count, width = ids.shape
    ends = np.zeros(count + 1, np.int64)
    for row in range(count):
        for column in range(width):
            other = ids[row, column]
            if other >= 0 and other != row:
                ends[row + 1] += 1
                ends[other + 1] += 1
    for row in range(count):
        ends[row + 1] += ends[row]
    return ends


@njit(nogil=True)
def unite(ids, similarity_bits, ends, cursor, entries, indptr):
    """Writes the entries of both ends of each edge, sorts the rows and drops repeated edges.

    An entry is 64 bits, so that sorting needs one comparison: the weight (turned round, so that the
    heaviest is the smallest number), then the neighbour.

    Args:
        ids: [n, k] int64, valid neighbours or -1.
        similarity_bits: [n, k] uint32, the bits of float32 similarities, all finite.
        ends: [n + 1] int64, from ``count_entries``.
        cursor: [n] int64, ``ends[:-1]``, overwritten.
        entries: [ends[n]] uint64, written: the entries of row i start at ``ends[i]``.
        indptr: [n + 1] int64, written: the bounds of rows when each is cut to its first
            ``indptr[i + 1] - indptr[i]`` entries.
    """
    count, width = ids.shape
    shift = np.uint64(32)
    for row in range(count):
        for column in range(width):
            other = ids[row, column]
            if other >= 0 and other != row:
                weight = _descending(similarity_bits[row, column]) << shift
                entries[cursor[row]] = weight | np.uint64(other)
                cursor[row] += 1
                entries[cursor[other]] = weight | np.uint64(row)
                cursor[other] += 1
    last_row = np.full(count, -1, np.int32)  # the row in which a neighbour was last seen
    low = np.uint64(0xFFFFFFFF)
    indptr[0] = 0
    for row in range(count):
        begin, end = ends[row], ends[row + 1]
        _sort(entries, begin, end)
        kept = begin
        for place in range(begin, end):
            entry = entries[place]
            other = np.int64(entry & low)
            if last_row[other] != row:  # the first of a neighbour has the highest weight
                last_row[other] = row
                entries[kept] = entry
                kept += 1
        indptr[row + 1] = indptr[row] + kept - begin


@njit(nogil=True)
def unpack(entries, ends, indptr, indices, weight_bits):
    """Takes the kept entries apart, into indices [edges] int32 and weight_bits [edges] uint32."""
    low = np.uint64(0xFFFFFFFF)
    for row in range(indptr.size - 1):
        gap = ends[row] - indptr[row]
        for place in range(indptr[row], indptr[row + 1]):
            entry = entries[gap + place]
            indices[place] = np.int32(entry & low)
            weight_bits[place] = _ascending(np.uint32(entry >> np.uint64(32)))


@njit(nogil=True)
def look_up(indptr, indices, weights, left, right):
    """Returns [m] float32, the weight of each edge (left, right), 0 where there is none."""
    found = np.zeros(left.size, np.float32)
    for pair in range(left.size):
        row, other = left[pair], right[pair]
        if indptr[row + 1] - indptr[row] > indptr[other + 1] - indptr[other]:
            row, other = other, row
        for place in range(indptr[row], indptr[row + 1]):
            if indices[place] == other:
                found[pair] = weights[place]
                break
    return found


@njit(nogil=True)
def _descending(bits):
    # Integers that order as the floats do, turned round: the highest float has the lowest integer.
    if bits == np.uint32(0x80000000):  # -0.0 and 0.0 are one weight
        bits = np.uint32(0)
    if bits >> np.uint32(31):
        return np.uint64(bits)
    return np.uint64(np.uint32(0x7FFFFFFF) - bits)


@njit(nogil=True)
def _ascending(key):
    if key >> np.uint32(31):
        return key
    return np.uint32(np.uint32(0x7FFFFFFF) - key)


@njit(nogil=True)
def _sort(keys, begin, end):
    # Rows are short, but a hub's can have any length: insertion sort first, heap sort beyond.
    if end - begin <= 64:
        for place in range(begin + 1, end):
            key = keys[place]
            hole = place
            while hole > begin and keys[hole - 1] > key:
                keys[hole] = keys[hole - 1]
                hole -= 1
            keys[hole] = key
        return
    size = end - begin
    for root in range(size // 2 - 1, -1, -1):
        _sift_down(keys, begin, root, size)
    for last in range(size - 1, 0, -1):
        keys[begin], keys[begin + last] = keys[begin + last], keys[begin]
        _sift_down(keys, begin, 0, last)


@njit(nogil=True)
def _sift_down(keys, begin, root, size):
    key = keys[begin + root]
    while True:
        child = 2 * root + 1
        if child >= size:
            break
        if child + 1 < size and keys[begin + child + 1] > keys[begin + child]:
            child += 1
        if keys[begin + child] <= key:
            break
        keys[begin + root] = keys[begin + child]
        root = child
    keys[begin + root] = key
