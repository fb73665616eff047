"""A row's queries spread over devices, each of which has the keys and values of the whole row."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from jaxrecipes.errors import ConfigError


@dataclass(frozen=True)
class QueryShard:
    """Which part of the row the queries are, where keys and values are the whole row.

    Contiguous parts are unequal work under a causal mask: of `count` devices the last one computes
    `2 - 1/count` times the average, and the others wait for it. With `zigzag` the row is cut into
    twice as many chunks and every part is one chunk from the front and one from the back, which is
    equal work (`zigzag_order`; keys and values are given in the row's natural order all the same).
    For a sliding window contiguous parts are balanced already.

    Attributes:
        index: Position of this part in the row; inside `jax.shard_map`
            `jax.lax.axis_index(axis_name)`. It may be traced.
        count: Number of equal parts.
        zigzag: The queries are chunks `index` and `2 * count - 1 - index` of `2 * count`.
    """

    index: int | jax.Array
    count: int
    zigzag: bool = False


def zigzag_order(length: int, count: int) -> np.ndarray:
    """Returns the order in which a row is laid out over devices, so that each has equal work.

    Args:
        length: Tokens of a row.
        count: Devices that share a row.

    Returns:
        int32 [length]: `array[:, zigzag_order(length, count)]` cut into `count` equal parts gives
        device i the chunks i and `2 * count - 1 - i`; indexing with its `argsort` undoes it.

    Raises:
        ConfigError: The row does not divide into `2 * count` chunks.
    """
    if length % (2 * count):
        raise ConfigError(
            f"rows of {length} tokens do not divide into the {2 * count} chunks that balance a "
            f"context axis of {count} devices; make data.length a multiple of {2 * count}"
        )
    chunks = np.arange(length, dtype=np.int32).reshape(2 * count, -1)
    pairs = [(chunks[part], chunks[2 * count - 1 - part]) for part in range(count)]
    return np.concatenate([chunk for pair in pairs for chunk in pair])


def check_queries(backend: str, query_length: int, key_length: int, count: int) -> None:
    """Makes sure that a kernel's queries are a row, or an equal part of one.

    Args:
        backend: Name of the attention backend, for the message.
        query_length: Queries of one device.
        key_length: Keys of the row.
        count: Devices that share a row.

    Raises:
        ConfigError: They are not.
    """
    if query_length * count != key_length:
        part = "the row" if count == 1 else f"1/{count} of the row"
        raise ConfigError(
            f"model.attention: {backend} needs queries that are {part} of keys, got {query_length} "
            f"queries and {key_length} keys; decoding with a cache uses the reference backend"
        )
