"""Padded batches of whole texts, one a row: for encoders, and heads on decoders.

A batch is a function of the seed and the number of the step alone, so that a run that goes on at a
step reads what it would have read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from tokenizers import Encoding, Tokenizer

from jaxrecipes.data.buckets import bucket_length
from jaxrecipes.errors import ConfigError, DataError

Arrays = dict[str, np.ndarray]
# Texts of so many batches are sorted by length together: little padding, and still random.
_POOL = 16


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts as token ids, special tokens included.

    Attributes:
        token_ids: int32 [tokens] of each.
        type_ids: int32 [tokens] of each: 1 in the second text of a pair where the tokenizer says
            so.
        word_ids: int32 [tokens] of each: equal for the pieces of a word, which stand side by side.
        labels: int32 [texts]; None where there are none.
    """

    token_ids: tuple[np.ndarray, ...]
    type_ids: tuple[np.ndarray, ...]
    word_ids: tuple[np.ndarray, ...]
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        """Returns the number of texts."""
        return len(self.token_ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 [texts]."""
        return np.array([len(ids) for ids in self.token_ids], np.int64)

    def chosen(self, places: Sequence[int]) -> TokenizedTexts:
        """Returns some of the texts, in the order of their places, without labels."""
        return TokenizedTexts(
            tuple(self.token_ids[place] for place in places),
            tuple(self.type_ids[place] for place in places),
            tuple(self.word_ids[place] for place in places),
        )

    def labelled(self, labels: Sequence[int]) -> TokenizedTexts:
        """Returns the same texts with labels.

        Raises:
            DataError: There are not as many labels as texts.
        """
        if len(labels) != len(self):
            raise DataError(f"{len(labels)} labels for {len(self)} texts")
        return replace(self, labels=np.array(labels, np.int32))


def tokenize_texts(
    tokenizer: Tokenizer,
    texts: Sequence[tuple[str, ...]],
    *,
    max_tokens: int,
    split_long: bool = False,
    types: bool = True,
    end_token_id: int | None = None,
) -> TokenizedTexts:
    """Tokenizes texts, or pairs of texts.

    Args:
        tokenizer: The model's, `encoder.tokenizer.backend_tokenizer`; it is copied.
        texts: One or two strings each.
        max_tokens: Longest row, special tokens included.
        split_long: What is longer becomes several rows, for pretraining on unlabelled text; without
            it the end is cut, of the longer text of a pair first.
        types: Keep the types; without them all are 0, for a model that has no second type.
        end_token_id: Put behind the last token of each text, so that a decoder learns where texts
            end; None for nothing.

    Returns:
        The texts in order.

    Raises:
        DataError: A text has no tokens.
    """
    tokenizer = Tokenizer.from_str(tokenizer.to_str())  # truncation is a state of it
    tokenizer.enable_truncation(max_tokens - (end_token_id is not None))
    tokenizer.no_padding()
    inputs = [text[0] if len(text) == 1 else text for text in texts]
    rows: list[_Row] = []
    for number, encoding in enumerate(tokenizer.encode_batch(inputs)):
        if not encoding.ids:
            raise DataError(f"text {number + 1} ({texts[number][0][:40]!r}) has no tokens")
        pieces = [encoding, *encoding.overflowing] if split_long else [encoding]
        of_text = [_row(piece, types) for piece in pieces]
        if end_token_id is not None:
            of_text[-1] = _with_end(of_text[-1], end_token_id)
        rows += of_text
    return TokenizedTexts(
        tuple(row[0] for row in rows), tuple(row[1] for row in rows), tuple(row[2] for row in rows)
    )


# Token ids, types and words of one row.
_Row = tuple[np.ndarray, np.ndarray, np.ndarray]


def _row(encoding: Encoding, types: bool) -> _Row:
    type_ids = np.array(encoding.type_ids, np.int32) * types
    return np.array(encoding.ids, np.int32), type_ids, _words(encoding)


def _with_end(row: _Row, end_token_id: int) -> _Row:
    """Puts a token behind a row, a word of its own."""
    ends = (end_token_id, row[1][-1], row[2][-1] + 1)
    token_ids, type_ids, word_ids = (
        np.append(column, np.int32(end)) for column, end in zip(row, ends, strict=True)
    )
    return token_ids, type_ids, word_ids


def join_texts(parts: Sequence[TokenizedTexts]) -> TokenizedTexts:
    """Puts texts without labels behind each other."""
    return TokenizedTexts(
        tuple(ids for part in parts for ids in part.token_ids),
        tuple(ids for part in parts for ids in part.type_ids),
        tuple(ids for part in parts for ids in part.word_ids),
    )


def _words(encoding: Encoding) -> np.ndarray:
    """Numbers words; the library starts at 0 again in the second text, special tokens have none."""
    marks = list(zip(encoding.sequence_ids, encoding.word_ids, strict=True))
    starts = [
        number == 0 or mark[1] is None or mark != marks[number - 1]
        for number, mark in enumerate(marks)
    ]
    return np.cumsum(starts).astype(np.int32)


@dataclass(frozen=True)
class TextBatches:
    """Shuffled batches of texts of similar length, for any number of epochs.

    Attributes:
        texts: The texts.
        rows: Rows of a batch; the last one of an epoch can have empty ones at its end.
        max_tokens: Longest row, see `buckets.bucket_length`.
        pad_token_id: Fills a row.
        seed: Of the order, which is another one in every epoch.
    """

    texts: TokenizedTexts
    rows: int
    max_tokens: int
    pad_token_id: int
    seed: int

    def __post_init__(self) -> None:
        """Refuses what makes no batches.

        Raises:
            ConfigError: `rows` is less than 1.
            DataError: There are no texts, or one is longer than `max_tokens`.
        """
        if self.rows < 1:
            raise ConfigError(f"rows is {self.rows}; a batch needs at least 1")
        if not len(self.texts):
            raise DataError("there are no texts to make batches of")
        if self.texts.lengths.max() > self.max_tokens:
            raise DataError(
                f"a text has {self.texts.lengths.max()} tokens, more than max_tokens "
                f"({self.max_tokens}); tokenize it with the same limit"
            )

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch, in which every text occurs once."""
        return -(-len(self.texts) // self.rows)

    def members(self, step: int) -> np.ndarray:
        """Returns which texts batch number `step` holds, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.per_epoch)
        return _epoch(self.texts.lengths.tobytes(), self.rows, self.seed, epoch)[place]

    def batch(self, step: int) -> Arrays:
        """Returns batch number `step`; see `pad_texts`."""
        return pad_texts(
            self.texts, self.members(step), self.rows, self.max_tokens, self.pad_token_id
        )


@lru_cache(maxsize=4)
def _epoch(lengths: bytes, rows: int, seed: int, epoch: int) -> list[np.ndarray]:
    sizes = np.frombuffer(lengths, np.int64)
    generator = np.random.default_rng([seed, epoch])
    return shuffled_batches(np.arange(len(sizes)), sizes, rows, generator)


def shuffled_batches(
    members: np.ndarray, sizes: np.ndarray, rows: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Cuts texts into batches of similar length, in a random order.

    Args:
        members: int [members], which texts; one can occur more than once.
        sizes: int [texts], tokens of every text.
        rows: Texts of a batch.
        generator: Draws the order.

    Returns:
        int [at most `rows`] each; every member is in one.
    """
    order = members[generator.permutation(len(members))]
    batches: list[np.ndarray] = []
    for start in range(0, len(order), rows * _POOL):
        pool = order[start : start + rows * _POOL]
        pool = pool[np.argsort(sizes[pool], kind="stable")]
        batches += [pool[at : at + rows] for at in range(0, len(pool), rows)]
    return [batches[place] for place in generator.permutation(len(batches))]


def pad_texts(
    texts: TokenizedTexts, members: np.ndarray, rows: int, max_tokens: int, pad_token_id: int
) -> Arrays:
    """Puts texts in rows.

    Args:
        texts: The texts.
        members: int [at most `rows`], which of them.
        rows: Rows of the batch; those after the texts are empty.
        max_tokens: See `buckets.bucket_length`.
        pad_token_id: Fills a row.

    Returns:
        `token_ids`, `segment_ids` (1, and 0 for padding), `positions`, `type_ids` and `word_ids`,
        int32 [rows, length], and where texts have them `labels`, int32 [rows, 1].
    """
    length = bucket_length(int(texts.lengths[members].max()), max_tokens)
    batch = {
        name: np.zeros((rows, length), np.int32)
        for name in ("token_ids", "segment_ids", "positions", "type_ids", "word_ids")
    }
    batch["token_ids"] += pad_token_id
    for row, member in enumerate(members.tolist()):
        size = len(texts.token_ids[member])
        batch["token_ids"][row, :size] = texts.token_ids[member]
        batch["segment_ids"][row, :size] = 1
        batch["positions"][row, :size] = np.arange(size)
        batch["type_ids"][row, :size] = texts.type_ids[member]
        batch["word_ids"][row, :size] = texts.word_ids[member]
    if texts.labels is not None:
        batch["labels"] = np.zeros((rows, 1), np.int32)
        batch["labels"][: len(members), 0] = texts.labels[members]
    return batch


def texts_by_length(
    texts: TokenizedTexts, rows: int, max_tokens: int, pad_token_id: int
) -> Iterator[tuple[np.ndarray, Arrays]]:
    """Yields every text once, for evaluation: which texts, and their batch (see `pad_texts`)."""
    order = np.argsort(texts.lengths, kind="stable")
    for start in range(0, len(order), rows):
        members = order[start : start + rows]
        yield members, pad_texts(texts, members, rows, max_tokens, pad_token_id)
