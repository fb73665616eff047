"""Which texts are computed together: batches of a few fixed shapes with little padding."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxrecipes.data.buckets import bucket_length


class Batch(NamedTuple):
    """Texts that are computed together.

    Attributes:
        members: int64 [texts], indices of the texts, at most `rows`.
        rows: Rows of the batch; those after the texts are empty.
        length: Tokens a row.
    """

    members: np.ndarray
    rows: int
    length: int


def plan_batches(
    lengths: np.ndarray, *, longest: int, tokens_per_batch: int, devices: int = 1
) -> list[Batch]:
    """Plans the batches of a number of texts.

    Texts are taken from the longest to the shortest, and a batch is filled with the next ones
    before another shape begins: only the last batch has empty rows.

    Args:
        lengths: int [texts], tokens of each, at least 1.
        longest: Tokens of the longest text that there can be, see `bucket_length`.
        tokens_per_batch: Tokens of a batch, padding included; more only where one row for each
            device is already more.
        devices: The number of rows is a multiple of this.

    Returns:
        Batches that hold every text once. They depend on the lengths alone.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    batches: list[Batch] = []
    start = 0
    while start < len(order):
        length = bucket_length(int(lengths[order[start]]), longest)
        rows = max(tokens_per_batch // (length * devices), 1) * devices
        batches.append(Batch(order[start : start + rows], rows, length))
        start += rows
    return batches
