"""Multiple choice and last words: questions with one right answer, scored by likelihood.

Every (question, choice) pair becomes a short sequence of which the choice is scored, and all of
them are packed into rows: the same evaluation as for documents, `evaluate_set`, gives the sums.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrecipes.errors import DataError
from jaxrecipes.evaluate.bootstrap import Interval, difference_interval, ratio_interval
from jaxrecipes.evaluate.likelihood import DocumentSums, evaluate_set
from jaxrecipes.evaluate.rows import EvaluationRows, pack_scored
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.execution import ONE_DEVICE, Execution
from jaxrecipes.models.stacking import Layout

Encode = Callable[[str], Sequence[int]]
_ROW_STEP = 64


@dataclass(frozen=True)
class ChoiceItem:
    """A question and its candidate answers.

    Attributes:
        id: Name of the item.
        contexts: Text before each choice; the same text for all but partial-evaluation items.
        choices: Candidate texts.
        answer: Index of the right one.
    """

    id: str
    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class LastWordItem:
    """A passage and the text that must follow it."""

    id: str
    context: str
    target: str


@dataclass(frozen=True)
class EncodedItems:
    """Items as packed rows.

    Attributes:
        rows: One document for each (item, choice), in order; or for each passage.
        ids: Name of each item.
        offsets: int64 [items + 1]; the choices of item i are documents offsets[i]:offsets[i + 1].
        answers: int64 [items], index of the right choice; zeros for last words.
        characters: float64 [documents], characters of each choice.
        truncated: Number of sequences whose context was cut on the left to fit.
    """

    rows: EvaluationRows
    ids: tuple[str, ...]
    offsets: np.ndarray
    answers: np.ndarray
    characters: np.ndarray
    truncated: int


@dataclass(frozen=True)
class ChoiceScores:
    """Results item by item, so that two models can be compared on the same items.

    Attributes:
        ids: Name of each item.
        correct: float64 [items], 1 where the right answer has the highest summed log-probability;
            for last words, where every target token is ranked first.
        correct_normalized: float64 [items], the same with log-probability a character (ARC's and
            HellaSwag's acc_norm), or None for last words.
        probability: float64 [items], probability of the right answer: softmax over the choices'
            sums; for last words, the product of the target tokens' probabilities.
        log_probabilities: float64 [documents], sum for each (item, choice) or passage.
        truncated: Number of sequences whose context was cut on the left to fit.
    """

    ids: tuple[str, ...]
    correct: np.ndarray
    correct_normalized: np.ndarray | None
    probability: np.ndarray
    log_probabilities: np.ndarray
    truncated: int

    def accuracy(self, *, seed: int = 0) -> Interval:
        """Returns the share of correct items, with its bootstrap interval by item."""
        return ratio_interval(self.correct, np.ones_like(self.correct), seed=seed)

    def change(self, base: ChoiceScores, *, seed: int = 0) -> Interval:
        """Returns accuracy minus the base's on the same items, paired.

        Raises:
            DataError: The items are not the same.
        """
        if base.ids != self.ids:
            raise DataError(
                f"accuracies can be compared on the same items only; these are {len(self.ids)} "
                f"items from {self.ids[0]!r} on, the base answered {len(base.ids)} from "
                f"{base.ids[0]!r} on"
            )
        return difference_interval(
            self.correct, base.correct, np.ones_like(self.correct), seed=seed
        )


def read_choice_items(
    path: Path, *, prompt: str = "Question: {question}\nAnswer:"
) -> list[ChoiceItem]:
    """Reads multiple-choice items, one JSON object a line.

    Two forms: `{"id", "question", "choices": [...], "answer": index}`, and, where the choices
    differ before the scored text (WinoGrande), `{"id", "contexts": [...], "continuation",
    "answer"}`.

    Args:
        path: The file.
        prompt: Text before a choice, `{question}` replaced; a choice follows after one space.

    Returns:
        The items, in order.

    Raises:
        DataError: The file cannot be read or has no items, or a line is wrong; it names the line.
    """
    items = []
    for where, entry in _json_lines(path):
        name = str(entry.get("id", where))
        if "contexts" in entry:
            contexts = _texts(entry, "contexts", where)
            choices = (" " + _text(entry, "continuation", where).lstrip(),) * len(contexts)
        else:
            context = prompt.replace("{question}", _text(entry, "question", where).strip())
            choices = tuple(" " + choice.strip() for choice in _texts(entry, "choices", where))
            contexts = (context,) * len(choices)
        answer = entry.get("answer")
        if (
            isinstance(answer, bool)
            or not isinstance(answer, int)
            or not 0 <= answer < len(choices)
        ):
            raise DataError(
                f"{where}: answer is {answer!r}; expected the index of the right choice, 0 to "
                f"{len(choices) - 1}"
            )
        items.append(ChoiceItem(name, contexts, choices, answer))
    return items


def read_last_word_items(path: Path) -> list[LastWordItem]:
    """Reads `{"id", "context", "target"}`, one JSON object a line (LAMBADA).

    Args:
        path: The file.

    Returns:
        The items, in order; each target begins with one space.

    Raises:
        DataError: The file cannot be read or has no items, or a line is wrong; it names the line.
    """
    return [
        LastWordItem(
            str(entry.get("id", where)),
            _text(entry, "context", where).rstrip(),
            " " + _text(entry, "target", where).strip(),
        )
        for where, entry in _json_lines(path)
    ]


def encode_choices(
    items: Sequence[ChoiceItem], encode: Encode, *, max_length: int = 1024
) -> EncodedItems:
    """Tokenizes and packs multiple-choice items.

    A choice is scored as the tokens that it adds to its context: the two are tokenized together,
    since tokens may differ where they meet.

    Args:
        items: The items.
        encode: Text to token ids, with the beginning-of-text token where the model has one and
            without an end.
        max_length: Longest sequence in tokens; longer contexts are cut on the left.

    Returns:
        The items as rows.

    Raises:
        DataError: There are no items, or a choice alone is longer than `max_length`.
    """
    if not items:
        raise DataError("there are no multiple-choice items to score")
    sequences, characters, offsets, truncated = [], [], [0], 0
    for item in items:
        for number, (context, choice) in enumerate(zip(item.contexts, item.choices, strict=True)):
            tokens, first, cut = _encode_pair(
                f"{item.id}, choice {number}", context, choice, encode, max_length
            )
            sequences.append((f"{item.id}/{number}", tokens, first))
            characters.append(len(choice.strip()))
            truncated += cut
        offsets.append(len(sequences))
    return EncodedItems(
        rows=pack_scored(sequences, length=_row_length(sequences)),
        ids=tuple(item.id for item in items),
        offsets=np.asarray(offsets),
        answers=np.asarray([item.answer for item in items]),
        characters=np.asarray(characters, np.float64),
        truncated=truncated,
    )


def encode_last_words(
    items: Sequence[LastWordItem], encode: Encode, *, max_length: int = 1024
) -> EncodedItems:
    """Tokenizes and packs last-word items; arguments and errors as in `encode_choices`."""
    if not items:
        raise DataError("there are no last-word items to score")
    encoded = [
        _encode_pair(item.id, item.context, item.target, encode, max_length) for item in items
    ]
    sequences = [
        (item.id, tokens, first) for item, (tokens, first, _) in zip(items, encoded, strict=True)
    ]
    return EncodedItems(
        rows=pack_scored(sequences, length=_row_length(sequences)),
        ids=tuple(item.id for item in items),
        offsets=np.arange(len(items) + 1),
        answers=np.zeros(len(items), np.int64),
        characters=np.asarray([len(item.target.strip()) for item in items], np.float64),
        truncated=sum(cut for _, _, cut in encoded),
    )


def choice_scores(
    config: ModelConfig,
    params: dict[str, Any],
    items: EncodedItems,
    *,
    batch_size: int = 8,
    compute_dtype: Any = jnp.float32,
    layout: Layout | None = None,
    execution: Execution = ONE_DEVICE,
) -> ChoiceScores:
    """Answers multiple-choice items by likelihood.

    Args:
        config: The model.
        params: Canonical tree, or the runtime tree of `layout`.
        items: From `encode_choices`.
        batch_size: Rows of one forward pass.
        compute_dtype: dtype of activations.
        layout: Layout of `params`.
        execution: Devices and attention backend.

    Returns:
        Results by item. Of equally likely choices the first is the answer.
    """
    sums = _sums(config, params, items, batch_size, compute_dtype, layout, execution)
    log_probabilities = -sums.nll
    by_character = log_probabilities / np.maximum(items.characters, 1)
    correct, normalized, probability = [], [], []
    for start, stop, answer in zip(items.offsets, items.offsets[1:], items.answers, strict=False):
        scores = log_probabilities[start:stop]
        correct.append(scores.argmax() == answer)
        normalized.append(by_character[start:stop].argmax() == answer)
        weights = np.exp(scores - scores.max())
        probability.append(weights[answer] / weights.sum())
    return ChoiceScores(
        ids=items.ids,
        correct=np.asarray(correct, np.float64),
        correct_normalized=np.asarray(normalized, np.float64),
        probability=np.asarray(probability),
        log_probabilities=log_probabilities,
        truncated=items.truncated,
    )


def last_word_scores(
    config: ModelConfig,
    params: dict[str, Any],
    items: EncodedItems,
    *,
    batch_size: int = 8,
    compute_dtype: Any = jnp.float32,
    layout: Layout | None = None,
    execution: Execution = ONE_DEVICE,
) -> ChoiceScores:
    """Scores last words: correct where greedy decoding would write the whole target.

    Arguments as in `choice_scores`; `items` come from `encode_last_words`.
    """
    sums = _sums(config, params, items, batch_size, compute_dtype, layout, execution)
    return ChoiceScores(
        ids=items.ids,
        correct=(sums.correct == sums.tokens).astype(np.float64),
        correct_normalized=None,
        probability=np.exp(-sums.nll),
        log_probabilities=-sums.nll,
        truncated=items.truncated,
    )


def _sums(
    config: ModelConfig,
    params: dict[str, Any],
    items: EncodedItems,
    batch_size: int,
    compute_dtype: Any,
    layout: Layout | None,
    execution: Execution,
) -> DocumentSums:
    return evaluate_set(
        config,
        params,
        items.rows,
        batch_size=batch_size,
        compute_dtype=compute_dtype,
        layout=layout,
        execution=execution,
    )


def _encode_pair(
    name: str, context: str, continuation: str, encode: Encode, max_length: int
) -> tuple[list[int], int, int]:
    """Returns token ids, index of the first scored one, and 1 where the context was cut."""
    # Spaces at the end of the context belong to the continuation: a token rarely ends in one.
    stripped = context.rstrip(" ")
    continuation = context[len(stripped) :] + continuation
    tokens = list(encode(stripped + continuation))
    first = len(encode(stripped))
    # A merge across the seam can leave the whole with no token more than the context has.
    first = max(min(first, len(tokens) - 1), 1)
    if len(tokens) < 2:
        raise DataError(f"{name}: context and continuation are {len(tokens)} tokens; expected two")
    scored = len(tokens) - first
    if scored >= max_length:
        raise DataError(
            f"{name} has {scored} tokens to score; with a token of context, expected at most "
            f"{max_length} (max_length)"
        )
    cut = max(0, len(tokens) - max_length)
    return tokens[cut:], first - cut, int(cut > 0)


def _row_length(sequences: Sequence[tuple[str, Sequence[int], int]]) -> int:
    """Returns a row length that fits all: a multiple of 64, so that few shapes are compiled."""
    longest = max(len(tokens) for _, tokens, _ in sequences)
    return max(4 * _ROW_STEP, -(-longest // _ROW_STEP) * _ROW_STEP)


def _json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Reads the objects of a JSONL file with the place of each, "file:line"."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 JSON lines ({error})") from error
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(entry, dict):
            raise DataError(f"{where}: expected a JSON object, found {type(entry).__name__}")
        entries.append((where, entry))
    if not entries:
        raise DataError(f"{path}: no items; expected one JSON object a line")
    return entries


def _text(entry: dict[str, Any], key: str, where: str) -> str:
    """Returns a non-empty string field, or says what is there instead."""
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{where}: expected a non-empty text under {key!r}, found {value!r}; the line has the "
            f"keys {', '.join(map(repr, entry)) or 'none'}"
        )
    return value


def _texts(entry: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    """Returns a field of two or more non-empty strings, or says what is there instead."""
    value = entry.get(key)
    if (
        not isinstance(value, list)
        or len(value) < 2
        or not all(isinstance(text, str) and text.strip() for text in value)
    ):
        raise DataError(
            f"{where}: expected a list of at least two non-empty texts under {key!r}, found "
            f"{value!r}; the line has the keys {', '.join(map(repr, entry)) or 'none'}"
        )
    return tuple(value)
