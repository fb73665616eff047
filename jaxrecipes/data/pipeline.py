"""Prepared sets to batches, on grain: a shuffled, endless stream addressed by step number."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxrecipes.data.store import PreparedSet
from jaxrecipes.errors import ConfigError, DataError

ARRAYS = ("token_ids", "segment_ids", "positions", "loss_mask")


def batches(
    sets: Sequence[tuple[PreparedSet, float]],
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    start_step: int = 0,
    threads: int = 2,
    prefetch: int = 4,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Reads batches for ever, from any step on.

    Each set is shuffled as a whole, anew in every epoch, and the sets are interleaved in proportion
    to their weights. The batch of a step depends on ``sets``, ``seed`` and ``batch_size`` only: not
    on the number of hosts or threads, nor on the steps read before. So the step number is all
    there is to save, and a run resumed on another number of hosts reads the same.

    Args:
        sets: Prepared sets of one row length with their weights: rows drawn in proportion, > 0.
        batch_size: Rows a step, over all hosts.
        seed: Seed of the shuffles.
        rows: The rows of each batch that this host needs; None for all of them.
        start_step: First step to read.
        threads: Threads that read ahead.
        prefetch: Batches read ahead.

    Yields:
        (step, batch): ``token_ids``, ``segment_ids``, ``positions`` int32 and ``loss_mask`` bool,
        each [rows, length], of this host's rows; ``row_ids`` int64 and ``set_ids`` int32, each
        [batch_size], of all rows: where a row is in its set, and which set.

    Raises:
        ConfigError: An argument is out of range.
        DataError: The sets differ in row length or in ``attend``.
    """
    _check(sets, batch_size, rows, start_step)
    import grain  # imports JAX, which nothing else in this package of the data path needs

    streams = []
    for index, (prepared, _) in enumerate(sets):
        numbers = grain.MapDataset.source(range(len(prepared)))
        numbers = numbers.map(lambda row, index=index: (index, row))
        streams.append(numbers.shuffle(seed=_set_seed(seed, index)).repeat())
    stream = (
        streams[0]
        if len(streams) == 1
        else grain.MapDataset.mix(streams, weights=[weight for _, weight in sets])
    )
    own = list(range(batch_size) if rows is None else rows)
    if start_step >= len(stream) // batch_size:
        raise ConfigError(f"start_step: {start_step} is beyond the addressable stream.")

    def load(step: int) -> dict[str, np.ndarray]:
        first = step * batch_size
        places: list[Any] = [stream[first + offset] for offset in range(batch_size)]
        items = [sets[index][0][row] for index, row in (places[offset] for offset in own)]
        batch = {name: np.stack([item[name] for item in items]) for name in ARRAYS}
        batch["row_ids"] = np.array([row for _, row in places], np.int64)
        batch["set_ids"] = np.array([index for index, _ in places], np.int32)
        return batch

    # One element is one whole batch of this host: grain keeps the order of its elements whatever
    # the number of threads, so neither threads nor prefetch can change what a step reads.
    steps = grain.MapDataset.range(start_step, sys.maxsize // batch_size)
    reader = steps.map(load).to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
    )
    return enumerate(iter(reader), start=start_step)


def _set_seed(seed: int, index: int) -> int:
    # grain shuffles epoch e with seed + e: hashing keeps neighbouring seeds and sets from sharing
    # orders.
    digest = hashlib.sha256(f"shuffle {seed} {index}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _check(
    sets: Sequence[tuple[PreparedSet, float]],
    batch_size: int,
    rows: Sequence[int] | None,
    start_step: int,
) -> None:
    if not sets:
        raise ConfigError("batches: no prepared set was given; expected at least one.")
    if batch_size < 1:
        raise ConfigError(f"batch_size: {batch_size} rows; expected at least one.")
    outside = [row for row in rows or () if not 0 <= row < batch_size]
    if outside or rows == []:
        raise ConfigError(
            f"rows: {outside or 'none'} of a batch of {batch_size}; expected numbers from 0 to "
            f"{batch_size - 1}."
        )
    if start_step < 0:
        raise ConfigError(f"start_step: {start_step} is negative; the first step is 0.")
    first = sets[0][0]
    for prepared, weight in sets:
        if not (weight > 0 and np.isfinite(weight)):
            raise ConfigError(
                f"{prepared.folder}: the weight {weight} of a set in a mixture has to be positive "
                "and finite. Leave out a set that is not to be read."
            )
        if len(prepared) == 0:
            raise DataError(f"{prepared.folder}: the set has no rows.")
        for name, value, expected in (
            ("row length", prepared.length, first.length),
            ("attend", prepared.attend, first.attend),
        ):
            if value != expected:
                raise DataError(
                    f"{prepared.folder}: {name} {value}, but {first.folder} has {expected}; the "
                    "sets of a mixture have to agree. Prepare them with the same packing options."
                )
