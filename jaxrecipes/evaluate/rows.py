"""What an evaluation reads: packed rows in which every scored token belongs to a document."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrecipes.errors import DataError


@dataclass(frozen=True)
class EvaluationRows:
    """Packed rows with the document of each token.

    Attributes:
        token_ids: int32 [rows, length].
        segment_ids: int32 [rows, length]; 0 is padding.
        positions: int32 [rows, length].
        loss_mask: bool [rows, length]; True where the token itself is a target.
        document_index: int32 [rows, length]; index into `document_ids`, -1 on padding.
        document_ids: Name of each document. One that was split over rows appears once.
    """

    token_ids: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    loss_mask: np.ndarray
    document_index: np.ndarray
    document_ids: tuple[str, ...]

    def scored(self) -> tuple[np.ndarray, np.ndarray]:
        """Finds the positions whose next token is scored.

        Returns:
            (row, position) int64 [tokens] each: the token at `position + 1` is a target and
            belongs to the same segment.
        """
        segments = self.segment_ids
        weights = self.loss_mask[:, 1:] & (segments[:, :-1] == segments[:, 1:])
        row, position = np.nonzero(weights & (segments[:, :-1] != 0))
        return row, position

    def fingerprint(self) -> str:
        """Returns a sha256 over everything that shapes the result of an evaluation."""
        digest = hashlib.sha256("\0".join(self.document_ids).encode())
        for array in (
            self.token_ids,
            self.segment_ids,
            self.positions,
            self.loss_mask,
            self.document_index,
        ):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array, np.int32).tobytes())
        return digest.hexdigest()


def rows_from_prepared(
    prepared: Any, *, document_ids: Sequence[str] | None = None, max_rows: int | None = None
) -> EvaluationRows:
    """Reads the rows of a prepared set.

    Args:
        prepared: Anything with `len()` and integer indexing that gives mappings with `token_ids`,
            `segment_ids`, `positions`, `loss_mask` and `document_index`, each [length], as
            `jaxrecipes.data.open_prepared` does; a list of such mappings is one too.
        document_ids: Names of the documents that `document_index` counts. If None, those of
            `prepared.documents`, or the documents' numbers where there is no such list.
        max_rows: Read that many rows at most, from the first on.

    Returns:
        The rows, with the documents that occur in them, in the order of `document_index`.

    Raises:
        DataError: The set is empty, a row lacks an array, or a document has no name.
    """
    if document_ids is None and hasattr(prepared, "documents"):
        document_ids = [document.id for document in prepared.documents]
    count = len(prepared) if max_rows is None else min(max_rows, len(prepared))
    if count < 1:
        raise DataError("the evaluation set has no rows; expected at least one document in it")
    rows = [prepared[index] for index in range(count)]
    arrays = {}
    for name in ("token_ids", "segment_ids", "positions", "document_index", "loss_mask"):
        for number, row in enumerate(rows):
            if name not in row:
                raise DataError(
                    f"row {number} of the evaluation set has no {name}, it has "
                    f"{', '.join(sorted(row))}; prepare the set again"
                )
        arrays[name] = np.stack([np.asarray(row[name]) for row in rows])
    present, compact = np.unique(arrays["document_index"], return_inverse=True)
    padding = int(present.size > 0 and present[0] < 0)
    numbers = present[padding:]
    if document_ids is not None and numbers.size and numbers[-1] >= len(document_ids):
        raise DataError(
            f"the evaluation set refers to document {int(numbers[-1])}, but names only "
            f"{len(document_ids)} documents; prepare the set again"
        )
    if document_ids is None:
        names = tuple(str(number) for number in numbers.tolist())
    else:
        names = tuple(str(document_ids[number]) for number in numbers.tolist())
    return EvaluationRows(
        token_ids=arrays["token_ids"].astype(np.int32),
        segment_ids=arrays["segment_ids"].astype(np.int32),
        positions=arrays["positions"].astype(np.int32),
        loss_mask=arrays["loss_mask"].astype(bool),
        document_index=(compact.reshape(arrays["document_index"].shape) - padding).astype(np.int32),
        document_ids=names,
    )


def pack_scored(
    sequences: Sequence[tuple[str, Sequence[int], int]], *, length: int
) -> EvaluationRows:
    """Packs sequences of which only the end is scored, for instance a question and one answer.

    Long sequences are placed first, each into the first row with room; segments keep them apart.

    Args:
        sequences: (document id, token ids, index of the first scored token); the index is at
            least 1, since the first token of a sequence cannot be predicted.
        length: Tokens of a row.

    Returns:
        The rows. Documents are in the order of `sequences`.

    Raises:
        DataError: A sequence is longer than a row, or has no scored token.
    """
    if not sequences:
        raise DataError("there are no sequences to score")
    room: list[int] = []
    members: list[list[int]] = []
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index][1]))
    for index in order:
        name, tokens, first = sequences[index]
        if len(tokens) > length:
            raise DataError(f"{name} has {len(tokens)} tokens, a row holds {length}")
        if not 1 <= first < len(tokens):
            raise DataError(
                f"{name}: scoring starts at token {first} of {len(tokens)}; expected at least one "
                "token before it and one token to score"
            )
        place = next((row for row, left in enumerate(room) if left >= len(tokens)), None)
        if place is None:
            place = len(room)
            room.append(length)
            members.append([])
        room[place] -= len(tokens)
        members[place].append(index)
    shape = (len(room), length)
    token_ids, segment_ids, positions = (np.zeros(shape, np.int32) for _ in range(3))
    document_index = np.full(shape, -1, np.int32)
    loss_mask = np.zeros(shape, bool)
    for row, indices in enumerate(members):
        start = 0
        for segment, index in enumerate(indices, 1):
            _, tokens, first = sequences[index]
            span = slice(start, start + len(tokens))
            token_ids[row, span] = tokens
            segment_ids[row, span] = segment
            positions[row, span] = np.arange(len(tokens))
            document_index[row, span] = index
            loss_mask[row, start + first : span.stop] = True
            start = span.stop
    return EvaluationRows(
        token_ids=token_ids,
        segment_ids=segment_ids,
        positions=positions,
        loss_mask=loss_mask,
        document_index=document_index,
        document_ids=tuple(name for name, _, _ in sequences),
    )


def join_rows(parts: Sequence[EvaluationRows]) -> EvaluationRows:
    """Puts several sets of one row length together; documents keep their order.

    Raises:
        DataError: There are no sets.
    """
    if not parts:
        raise DataError("there are no evaluation sets to join")
    offsets = np.cumsum([0, *(len(part.document_ids) for part in parts)])
    return EvaluationRows(
        token_ids=np.concatenate([part.token_ids for part in parts]),
        segment_ids=np.concatenate([part.segment_ids for part in parts]),
        positions=np.concatenate([part.positions for part in parts]),
        loss_mask=np.concatenate([part.loss_mask for part in parts]),
        document_index=np.concatenate(
            [
                np.where(part.document_index >= 0, part.document_index + offset, -1)
                for part, offset in zip(parts, offsets[:-1], strict=True)
            ]
        ).astype(np.int32),
        document_ids=tuple(name for part in parts for name in part.document_ids),
    )
