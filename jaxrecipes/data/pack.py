"""Packing: documents of many lengths into rows of one length, every token exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from jaxrecipes.data.documents import ReadReport
from jaxrecipes.data.rows import Attend, Row
from jaxrecipes.data.tokenize import TokenizedDocument
from jaxrecipes.errors import ConfigError, DataError

Overlong = Literal["error", "drop", "truncate", "split"]
Fit = Literal["best", "fill"]


@dataclass(frozen=True, eq=False)
class PackedRows:
    """The rows that ``pack`` made.

    Attributes:
        token_ids: [tokens] int32, all rows after each other, without padding.
        row_ends: [rows] int64, end of each row in ``token_ids``.
        segments: [segments, 3] int64: index of the document in the input, offset in the document,
            number of tokens.
        segment_ends: [rows] int64, end of each row in ``segments``.
        supervised: [tokens] bool, or None where every token is supervised.
        kept_tokens: [documents] int64, tokens of each input document that are in the rows.
        kept_bytes: [documents] int64, UTF-8 bytes of the text that these tokens stand for.
        dropped: Counts and examples of documents left out, truncated or split.
    """

    token_ids: np.ndarray
    row_ends: np.ndarray
    segments: np.ndarray
    segment_ends: np.ndarray
    supervised: np.ndarray | None
    kept_tokens: np.ndarray
    kept_bytes: np.ndarray
    dropped: ReadReport = field(default_factory=ReadReport)

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.row_ends)

    def __getitem__(self, index: int) -> Row:
        """Returns one row."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start = int(self.row_ends[index - 1]) if index else 0
        first = int(self.segment_ends[index - 1]) if index else 0
        tokens = slice(start, int(self.row_ends[index]))
        return Row(
            self.token_ids[tokens],
            self.segments[first : int(self.segment_ends[index])],
            None if self.supervised is None else self.supervised[tokens],
        )

    def __iter__(self) -> Iterator[Row]:
        """Yields the rows in order."""
        return (self[index] for index in range(len(self)))


def pack(
    documents: Sequence[TokenizedDocument],
    *,
    length: int,
    overlong: Overlong = "error",
    attend: Attend = "document",
    fit: Fit | None = None,
) -> PackedRows:
    """Packs documents into rows of at most ``length`` tokens.

    Args:
        documents: Tokenized documents.
        length: L, tokens a row, at least 3.
        overlong: What happens to a document of more than L tokens: ``error``; ``drop``;
            ``truncate`` keeps its first L tokens; ``split`` cuts it into pieces of L tokens (no
            piece has a single token, because nothing would be left to predict in it).
        attend: Recorded with the rows: may a document see those before it in its row? See
            ``rows.row_arrays``.
        fit: ``best``: best-fit decreasing, documents up to L tokens are never cut (Ding et al.
            2024, "Fewer Truncations Improve Language Modeling", 2404.10830; the default for
            ``attend=document``). ``fill``: documents follow each other in the given order and a row
            ends where it is full, also within a document (the default for ``attend=context``, where
            the order is the method).

    Returns:
        The rows, ordered by their first document; within a row, documents keep their order.

    Raises:
        ConfigError: An option has no valid value.
        DataError: A document is too long and ``overlong`` is ``error``; or no document is left.
    """
    fit = resolve_fit(length=length, overlong=overlong, attend=attend, fit=fit)
    lengths = np.array([len(document.token_ids) for document in documents], dtype=np.int64)
    report = ReadReport()
    kept = _apply_overlong(documents, lengths, length, overlong, report)
    for document in documents:
        for change in document.changes:
            report.drop(change, document.id)
    if not kept.sum():
        raise DataError(
            f"no token is left to pack out of {len(documents)} documents "
            f"({dict(report.dropped) or 'all are empty'}). Raise length (now {length}) or choose "
            "overlong: split."
        )
    if fit == "fill":
        segments, row_of_segment = _fill(kept, length)
    else:
        segments, row_of_segment = _best_fit(kept, length)
    flat = np.concatenate([document.token_ids for document in documents]).astype(np.int32)
    document_starts = np.cumsum(lengths) - lengths
    counts = segments[:, 2]
    total = int(counts.sum())
    if total != int(kept.sum()):  # the invariant everything downstream relies on
        raise AssertionError(f"packing lost tokens: {int(kept.sum())} in, {total} out")
    source = document_starts[segments[:, 0]] + segments[:, 1]
    gather = np.repeat(source - (np.cumsum(counts) - counts), counts) + np.arange(total)
    supervised = None
    if any(document.supervised is not None for document in documents):
        supervised = np.concatenate([_mask(document) for document in documents])[gather]
    segment_ends = np.flatnonzero(np.diff(row_of_segment, append=-1)) + 1
    return PackedRows(
        token_ids=flat[gather],
        row_ends=np.cumsum(counts)[segment_ends - 1],
        segments=segments,
        segment_ends=segment_ends,
        supervised=supervised,
        kept_tokens=kept,
        kept_bytes=np.array(
            [_kept_bytes(document, int(n)) for document, n in zip(documents, kept, strict=True)],
            dtype=np.int64,
        ),
        dropped=report,
    )


def resolve_fit(*, length: int, overlong: str, attend: str, fit: str | None) -> Fit:
    """Checks the options of ``pack`` and returns the fit that ``None`` stands for.

    Raises:
        ConfigError: An option has no valid value; the message lists the valid ones.
    """
    if length < 3:
        raise ConfigError(f"length: {length} tokens a row leave nothing to predict; expected >= 3.")
    for name, value, valid in (
        ("overlong", overlong, get_args(Overlong)),
        ("attend", attend, get_args(Attend)),
        ("fit", fit, (None, *get_args(Fit))),
    ):
        if value not in valid:
            raise ConfigError(
                f"packing.{name}: unknown value {value!r}; expected {', '.join(map(str, valid))}."
            )
    if fit is None:
        return "fill" if attend == "context" else "best"
    return "fill" if fit == "fill" else "best"


def supervised_counts(rows: PackedRows, attend: Attend) -> np.ndarray:
    """Returns [rows] int64, supervised targets a row (first tokens of segments are none)."""
    targets = (
        np.ones(len(rows.token_ids), bool) if rows.supervised is None else rows.supervised.copy()
    )
    ends = rows.row_ends
    starts = np.concatenate([[0], ends[:-1]])
    if attend == "context":
        targets[starts] = False
    else:
        counts = rows.segments[:, 2]
        targets[np.cumsum(counts) - counts] = False
    return np.add.reduceat(targets.astype(np.int64), starts)


def check_supervised(rows: PackedRows, attend: Attend, ids: Sequence[str], first_row: int) -> int:
    """Returns the number of supervised tokens.

    Args:
        rows: Packed rows.
        attend: See ``pack``.
        ids: Id of each input document.
        first_row: Number of the first row, for messages.

    Raises:
        DataError: A row has no supervised token; the message names the row and its documents.
    """
    counts = supervised_counts(rows, attend)
    empty = np.flatnonzero(counts == 0)
    if empty.size:
        row = int(empty[0])
        names = [ids[int(document)] for document in rows[row].segments[:, 0]]
        shown = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
        raise DataError(
            f"row {first_row + row} has no supervised token, so no loss could be taken of it; its "
            f"documents: {shown}. {empty.size} of {len(rows)} rows are like this. Expected at "
            "least one target a row: check the loss mask, leave these documents out, or change "
            "length."
        )
    return int(counts.sum())


def _apply_overlong(
    documents: Sequence[TokenizedDocument],
    lengths: np.ndarray,
    length: int,
    overlong: Overlong,
    report: ReadReport,
) -> np.ndarray:
    long = np.flatnonzero(lengths > length)
    if long.size and overlong == "error":
        middle, high, top = np.percentile(lengths, [50, 90, 100]).astype(int)
        first = int(long[0])
        raise DataError(
            f"document {documents[first].id!r} has {lengths[first]} tokens, more than the row "
            f"length {length}; so have {long.size} of {len(documents)} documents (median "
            f"{middle}, 90 % {high}, longest {top} tokens). Set overlong: split, truncate or "
            "drop, or a larger length."
        )
    kept = lengths.copy()
    reasons = {"drop": "dropped as too long", "truncate": "truncated", "split": "split"}
    for index in long.tolist():
        report.drop(reasons[overlong], documents[index].id)
    if overlong == "drop":
        kept[long] = 0
    elif overlong == "truncate":
        kept[long] = length
    return kept


def _best_fit(kept: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Best-fit decreasing: each piece goes into the fullest row that still holds it."""
    pieces = _pieces(kept, length)
    order = np.argsort(-pieces[:, 2], kind="stable")
    # Rows by free space, and the set of free spaces as the bits of one integer: the smallest space
    # that is large enough is then one shift and one lowest set bit away.
    rows_by_space: list[list[int]] = [[] for _ in range(length + 1)]
    spaces = 0
    row_of_piece = np.zeros(len(pieces), np.int64)
    rows = 0
    for index, size in zip(order.tolist(), pieces[order, 2].tolist(), strict=True):
        large_enough = spaces >> size
        if large_enough:
            space = size + (large_enough & -large_enough).bit_length() - 1
            row = rows_by_space[space].pop()
            if not rows_by_space[space]:
                spaces ^= 1 << space
        else:
            row, space = rows, length
            rows += 1
        row_of_piece[index] = row
        if space > size:
            rows_by_space[space - size].append(row)
            spaces |= 1 << (space - size)
    # Longest-first is the order of placing, not of the data: rows are numbered by their first
    # piece.
    first_piece = np.full(rows, len(pieces), np.int64)
    np.minimum.at(first_piece, row_of_piece, np.arange(len(pieces)))
    number = np.empty(rows, np.int64)
    number[np.argsort(first_piece, kind="stable")] = np.arange(rows)
    row_of_piece = number[row_of_piece]
    by_row = np.argsort(row_of_piece, kind="stable")
    return pieces[by_row], row_of_piece[by_row]


def _pieces(kept: np.ndarray, length: int) -> np.ndarray:
    """Returns [pieces, 3] (document, offset, tokens), documents cut at multiples of length."""
    per_document = -(-kept // length)
    documents = np.repeat(np.arange(len(kept)), per_document)
    first = np.cumsum(per_document) - per_document
    number = np.arange(len(documents)) - np.repeat(first, per_document)
    offset = number * length
    # A last piece of one token would have nothing to predict: it takes one token of the piece
    # before.
    alone = (kept[documents] - offset == 1) & (number > 0)
    offset = offset - alone
    ends = np.minimum(offset + length, kept[documents])
    before_alone = np.append(alone[1:], False)
    tokens = ends - offset - before_alone
    return np.stack([documents, offset, tokens], axis=1).astype(np.int64)


def _fill(kept: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Concatenates and cuts: segments are the stretches between document starts and row starts."""
    total = int(kept.sum())
    row_starts = np.arange(0, total, length)
    if total % length == 1 and total > 1:
        row_starts[-1] -= 1  # a last row of one token would have nothing to predict
    present = np.flatnonzero(kept)
    document_starts = np.cumsum(kept[present]) - kept[present]
    cuts = np.unique(np.concatenate([row_starts, document_starts]))
    place = np.searchsorted(document_starts, cuts, side="right") - 1
    segments = np.stack(
        [present[place], cuts - document_starts[place], np.diff(cuts, append=total)], axis=1
    )
    return segments.astype(np.int64), np.searchsorted(row_starts, cuts, side="right") - 1


def _mask(document: TokenizedDocument) -> np.ndarray:
    if document.supervised is None:
        return np.ones(len(document.token_ids), bool)
    return document.supervised


def _kept_bytes(document: TokenizedDocument, kept: int) -> int:
    if kept == 0:
        return 0
    if kept == len(document.token_ids) or document.byte_ends is None:
        return document.byte_count
    return int(document.byte_ends[kept - 1])
