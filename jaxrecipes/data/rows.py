"""A row of packed tokens: its segments, the arrays a model reads, and its bytes on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Attend = Literal["document", "context"]
SEGMENT_FIELDS = ("document", "offset", "tokens")


@dataclass(frozen=True, eq=False)
class Row:
    """One packed row without its padding.

    Attributes:
        token_ids: [n] unsigned integers, n <= length.
        segments: [s, 3] int64, a run of one document each, in order: index of the document, offset
            of the first token in the document, number of tokens. They tile the n tokens.
        supervised: [n] bool, or None where the documents supervise every token.
    """

    token_ids: np.ndarray
    segments: np.ndarray
    supervised: np.ndarray | None = None


def row_arrays(row: Row, *, length: int, attend: Attend) -> dict[str, np.ndarray]:
    """Expands a row to the fixed-length arrays that a model reads.

    Args:
        row: The row.
        length: L, tokens a row.
        attend: ``document``: every segment has its own segment id and its positions start at 0.
            ``context``: the whole row is one segment, so that documents see those before them.

    Returns:
        ``token_ids`` [L] int32, padded with 0; ``segment_ids`` [L] int32, from 1, 0 = padding;
        ``positions`` [L] int32; ``loss_mask`` [L] bool, True where the token is a supervised target
        (never the first token of a segment: nothing predicts it); ``document_index`` [L] int32,
        line in ``documents.jsonl``, -1 = padding.
    """
    count = len(row.token_ids)
    tokens = row.segments[:, 2]
    starts = np.cumsum(tokens) - tokens
    token_ids = np.zeros(length, np.int32)
    segment_ids = np.zeros(length, np.int32)
    positions = np.zeros(length, np.int32)
    loss_mask = np.zeros(length, bool)
    document_index = np.full(length, -1, np.int32)
    token_ids[:count] = row.token_ids
    document_index[:count] = np.repeat(row.segments[:, 0], tokens)
    loss_mask[:count] = True if row.supervised is None else row.supervised
    if attend == "context":
        segment_ids[:count] = 1
        positions[:count] = np.arange(count)
        loss_mask[:1] = False
    else:
        segment_ids[:count] = np.repeat(np.arange(1, len(tokens) + 1), tokens)
        positions[:count] = np.arange(count) - np.repeat(starts, tokens)
        loss_mask[starts] = False
    return {
        "token_ids": token_ids,
        "segment_ids": segment_ids,
        "positions": positions,
        "loss_mask": loss_mask,
        "document_index": document_index,
    }


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest unsigned little-endian type that holds every id of a vocabulary."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def encode_row(row: Row, dtype: np.dtype) -> bytes:
    """Returns the record of a row.

    Little-endian: u4 segments, u4 tokens, u4 1 if a loss mask follows, u4 0; segments x 3 x i8; the
    tokens in ``dtype``; the loss mask, one bit a token (``numpy.packbits``).
    """
    header = np.array(
        [len(row.segments), len(row.token_ids), row.supervised is not None, 0], dtype="<u4"
    )
    parts = [
        header.tobytes(),
        row.segments.astype("<i8").tobytes(),
        row.token_ids.astype(dtype).tobytes(),
    ]
    if row.supervised is not None:
        parts.append(np.packbits(row.supervised).tobytes())
    return b"".join(parts)


def decode_row(record: bytes, dtype: np.dtype) -> Row:
    """Reads a record written by ``encode_row``.

    Raises:
        ValueError: The record's size does not agree with its header.
    """
    if len(record) < 16:
        raise ValueError(f"a record of {len(record)} bytes has no header")
    segments, count, masked, _ = (int(value) for value in np.frombuffer(record, "<u4", 4))
    tokens_at = 16 + 24 * segments
    mask_at = tokens_at + dtype.itemsize * count
    if len(record) != mask_at + (-(-count // 8) if masked else 0):
        raise ValueError(f"a record of {len(record)} bytes does not fit its header")
    supervised = None
    if masked:
        bits = np.frombuffer(record, np.uint8, offset=mask_at)
        supervised = np.unpackbits(bits, count=count).astype(bool)
    return Row(
        np.frombuffer(record, dtype, count, offset=tokens_at),
        np.frombuffer(record, "<i8", 3 * segments, offset=16).reshape(segments, 3),
        supervised,
    )
