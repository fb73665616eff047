"""Batches out of several sets of texts: passes an epoch for each, and a share of general text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jaxrecipes.data.text_batches import (
    Arrays,
    TokenizedTexts,
    join_texts,
    pad_texts,
    shuffled_batches,
)
from jaxrecipes.errors import ConfigError, DataError


@dataclass(frozen=True)
class Part:
    """One set of texts of a mixture.

    Attributes:
        texts: The texts, without labels.
        weight: Passes over them in an epoch: 2 reads each text twice, 0.5 half of them, the other
            half in the next epoch.
    """

    texts: TokenizedTexts
    weight: float = 1.0


@dataclass(frozen=True)
class TextMixture:
    """Shuffled batches out of several sets; made by `make_mixture`.

    As in `TextBatches` a batch is a function of seed and step alone. One part of weight 1 without
    replay gives the batches of `TextBatches`.

    Attributes:
        texts: All texts, part after part, those of replay last.
        sizes: Texts of each part.
        counts: Texts of each part that an epoch reads.
        rows: Texts of a batch; the last one of an epoch can have empty rows at its end.
        max_tokens: Longest row.
        pad_token_id: Fills a row.
        seed: Of the order and of what is drawn.
    """

    texts: TokenizedTexts
    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    rows: int
    max_tokens: int
    pad_token_id: int
    seed: int

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        return -(-sum(self.counts) // self.rows)

    def members(self, step: int) -> np.ndarray:
        """Returns which texts batch number `step` holds, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.per_epoch)
        lengths = self.texts.lengths.tobytes()
        return _epoch(lengths, self.sizes, self.counts, self.rows, self.seed, epoch)[place]

    def tokens(self, steps: int) -> int:
        """Counts the tokens of the first steps, padding left out."""
        lengths = self.texts.lengths
        return int(sum(lengths[self.members(step)].sum() for step in range(steps)))

    def batch(self, step: int) -> Arrays:
        """Returns batch number `step`; see `text_batches.pad_texts`."""
        return pad_texts(
            self.texts, self.members(step), self.rows, self.max_tokens, self.pad_token_id
        )


def make_mixture(
    parts: Sequence[Part],
    *,
    replay: Sequence[Part] = (),
    share: float = 0.0,
    rows: int,
    max_tokens: int,
    pad_token_id: int,
    seed: int,
) -> TextMixture:
    """Puts sets of texts together.

    Args:
        parts: What is learned.
        replay: General texts; their weights say how they share `share`.
        share: Share of an epoch's rows that are general texts, in [0, 1).
        rows: Texts of a batch.
        max_tokens: Longest row.
        pad_token_id: Fills a row.
        seed: Of the order and of what is drawn.

    Returns:
        The mixture.

    Raises:
        ConfigError: A number is out of its range, or there is a share and nothing to replay.
        DataError: There are no texts, or one is longer than `max_tokens`.
    """
    if rows < 1:
        raise ConfigError(f"rows is {rows}; a batch needs at least 1")
    if not 0.0 <= share < 1.0:
        raise ConfigError(f"share of replay is {share}; expected 0 or more and less than 1")
    if share and not replay:
        raise ConfigError(f"share of replay is {share}, and there are no texts to replay")
    counts = [max(round(part.weight * len(part.texts)), 1) for part in parts if len(part.texts)]
    if not counts or len(counts) < len(parts):
        raise DataError("a set of texts of the mixture is empty; expected at least one text")
    used = [*parts]
    if share:
        # share = general / (general + learned)
        general = share / (1 - share) * sum(counts)
        weights = [part.weight * len(part.texts) for part in replay]
        counts += [max(round(general * weight / sum(weights)), 1) for weight in weights]
        used += replay
    texts = join_texts([part.texts for part in used])
    if texts.lengths.max() > max_tokens:
        raise DataError(
            f"a text has {texts.lengths.max()} tokens, more than max_tokens ({max_tokens}); "
            "tokenize it with the same limit"
        )
    sizes = tuple(len(part.texts) for part in used)
    return TextMixture(texts, sizes, tuple(counts), rows, max_tokens, pad_token_id, seed)


@lru_cache(maxsize=4)
def _epoch(
    lengths: bytes,
    sizes: tuple[int, ...],
    counts: tuple[int, ...],
    rows: int,
    seed: int,
    epoch: int,
) -> list[np.ndarray]:
    drawn, first = [], 0
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        drawn.append(first + _draw(size, count, number, seed, epoch))
        first += size
    generator = np.random.default_rng([seed, epoch])
    sizes_of_texts = np.frombuffer(lengths, np.int64)
    return shuffled_batches(np.concatenate(drawn), sizes_of_texts, rows, generator)


def _draw(size: int, count: int, number: int, seed: int, epoch: int) -> np.ndarray:
    """Takes the next `count` of endless shuffled passes over a part."""
    if count % size == 0:  # whole passes: nothing to draw
        return np.tile(np.arange(size), count // size)
    first, last = epoch * count, (epoch + 1) * count
    passes = [
        np.random.default_rng([seed, number, one]).permutation(size)
        for one in range(first // size, -(-last // size))
    ]
    start = first - (first // size) * size
    return np.concatenate(passes)[start : start + count]
