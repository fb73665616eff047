"""Log-probabilities of continuations: rows of one shape a bucket, common tokens read once.

Inputs are sorted into buckets by powers of two and put into rows, several to a row, kept apart by
segments, so that there is one program for each bucket. Continuations that differ in their last
token only (the letters of a multiple-choice question) share one pass over their common tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxrecipes.evaluate.head_scores import head_kind, head_subtree, score
from jaxrecipes.evaluate.likelihood import run_decoder
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.execution import ONE_DEVICE
from jaxrecipes.models.stacking import Layout

Tree = dict[str, Any]
# (input tokens, targets): target i of n follows input token -n + i.
Continuation = tuple[tuple[int, ...], Sequence[int]]

_SMALLEST_BUCKET = 32
# Sequences of a bucket are longer than half of it: in a row four times as long, little is empty.
_BUCKETS_A_ROW = 4
_SCORED_TOGETHER = 256


def score_continuations(
    config: ModelConfig,
    params: Tree,
    items: Sequence[Continuation],
    *,
    layout: Layout | None = None,
    batch_tokens: int,
    compute_dtype: Any,
    on_scored: Callable[[int], Any] = lambda count: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores the ends of sequences.

    Args:
        config: The model.
        params: Canonical tree, or the runtime tree of `layout`.
        items: For each continuation the model's input, at least one token, and the targets of its
            last positions.
        layout: Layout of `params`.
        batch_tokens: Tokens of one forward pass, padding included; one row may have more.
        compute_dtype: dtype of activations.
        on_scored: Called after each batch with the number of items scored in it.

    Returns:
        Log-probability float64 [items] in nats, summed over the targets, and bool [items], whether
        each target is ranked first, which greedy decoding then writes.
    """
    inputs: dict[tuple[int, ...], list[int]] = {}
    for index, (tokens, _) in enumerate(items):
        inputs.setdefault(tokens, []).append(index)
    sequences = list(inputs)
    totals, greedy = np.zeros(len(items), np.float64), np.ones(len(items), bool)
    head = head_subtree(config, params)
    lengths = [len(tokens) for tokens in sequences]
    for batch in make_batches(lengths, batch_tokens=batch_tokens):
        where: list[tuple[int, int, int]] = []
        owners: list[int] = []
        scored = 0
        for sequence, row, start in batch.places:
            stop = start + lengths[sequence]
            for index in inputs[sequences[sequence]]:
                targets = items[index][1]
                first = stop - len(targets)
                where += [(row, first + step, target) for step, target in enumerate(targets)]
                owners += [index] * len(targets)
                scored += 1
        states = run_decoder(
            config, compute_dtype, layout, ONE_DEVICE, params, *batch.arrays(sequences)
        )
        nll, first_ranked = _scores(config, head, states, np.asarray(where, np.int32))
        np.add.at(totals, owners, -nll.astype(np.float64))
        np.logical_and.at(greedy, owners, first_ranked)
        on_scored(scored)
    return totals, greedy


@dataclass(frozen=True)
class RowBatch:
    """Where sequences lie in rows of one shape.

    Attributes:
        rows: Number of rows, empty ones included.
        length: Tokens of a row.
        places: (index of the sequence, its row, where in the row it begins).
        lengths: Tokens of each of these sequences.
    """

    rows: int
    length: int
    places: tuple[tuple[int, int, int], ...]
    lengths: tuple[int, ...]

    def arrays(
        self, sequences: Sequence[Sequence[int]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns token ids, segment ids and positions, each int32 [rows, length]."""
        token_ids, segment_ids, positions = np.zeros((3, self.rows, self.length), np.int32)
        used = np.zeros(self.rows, np.int32)
        for (sequence, row, start), length in zip(self.places, self.lengths, strict=True):
            span = slice(start, start + length)
            used[row] += 1
            token_ids[row, span] = sequences[sequence]
            segment_ids[row, span] = used[row]
            positions[row, span] = np.arange(length)
        return token_ids, segment_ids, positions


def make_batches(lengths: Sequence[int], *, batch_tokens: int) -> Iterator[RowBatch]:
    """Sorts sequences into buckets by powers of two and packs each bucket into rows of one length.

    Args:
        lengths: Tokens of each sequence, at least 1.
        batch_tokens: Tokens of a batch; one row may have more.

    Yields:
        Batches, the longest sequences first. All batches of a bucket have one shape.
    """
    buckets: dict[int, list[int]] = {}
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        bucket = max(_SMALLEST_BUCKET, 1 << (lengths[index] - 1).bit_length())
        buckets.setdefault(bucket, []).append(index)
    for bucket, members in buckets.items():
        length = max(bucket, min(_BUCKETS_A_ROW * bucket, batch_tokens))
        rows: list[list[tuple[int, int]]] = []
        end = length
        for index in members:
            if end + lengths[index] > length:
                rows.append([])
                end = 0
            rows[-1].append((index, end))
            end += lengths[index]
        most = max(1, batch_tokens // length)
        # A single batch need not be full; a power of two, for few shapes.
        count = min(most, 1 << (len(rows) - 1).bit_length())
        for first in range(0, len(rows), count):
            places = [
                (index, row, start)
                for row, cells in enumerate(rows[first : first + count])
                for index, start in cells
            ]
            yield RowBatch(
                rows=count,
                length=length,
                places=tuple(places),
                lengths=tuple(lengths[index] for index, _, _ in places),
            )


def _scores(
    config: ModelConfig, head: Tree, states: jax.Array, where: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (row, position, target), int32 [tokens, 3], a fixed number of tokens at a time."""
    at = partial(_score_at, *head_kind(config), head, states)
    parts = np.split(where, range(_SCORED_TOGETHER, len(where), _SCORED_TOGETHER))
    # All parts are on their way before the first is waited for.
    results = [at(*np.pad(part, ((0, _SCORED_TOGETHER - len(part)), (0, 0))).T) for part in parts]
    nll, ranked = (
        np.concatenate([np.asarray(one) for one in side]) for side in zip(*results, strict=True)
    )
    return nll[: len(where)], ranked[: len(where)]


@partial(jax.jit, static_argnums=(0, 1))
def _score_at(
    tied: bool,
    softcap: float | None,
    head: Tree,
    states: jax.Array,
    row: jax.Array,
    position: jax.Array,
    target: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Scores targets after the tokens at (row, position): nll and ranked first, each [tokens]."""
    nll, correct, _ = score(tied, softcap, head, states[row, position], target)
    return nll, correct
