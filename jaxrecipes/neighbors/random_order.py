"""Seeded random order, the same on every machine and with every version of NumPy.

NumPy promises stable bit streams but not stable ``permutation``s; an order of documents is kept for
the life of a corpus, so its randomness is computed here, in integers.
"""

from __future__ import annotations

import numpy as np

_STEP = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio, the step of SplitMix64
_MASK = (1 << 64) - 1


def random_priorities(count: int, seed: int) -> np.ndarray:
    """Gives each of ``count`` documents a random number that depends on its index and the seed.

    SplitMix64 (Steele, Lea and Flood, 2014) started at a hash of the seed. It never repeats a value
    within 2^64 steps, so priorities are distinct and sorting by them has no ties.

    Args:
        count: n, number of documents.
        seed: Any integer.

    Returns:
        [n] uint64.
    """
    start = int(_mix(np.array([(seed + _STEP) & _MASK], np.uint64))[0])
    steps = np.arange(1, count + 1, dtype=np.uint64)
    return _mix(np.uint64(start) + steps * np.uint64(_STEP))


def random_order(count: int, seed: int) -> np.ndarray:
    """Returns the documents 0..count-1 in a random order, [count] int64."""
    return np.argsort(random_priorities(count, seed), kind="stable").astype(np.int64)


def derived_seed(seed: int, part: int) -> int:
    """Returns the seed of one part (a partition, a cluster), independent of the other parts."""
    return int(random_priorities(1, (seed & _MASK) ^ int(random_priorities(1, part)[0]))[0])


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
