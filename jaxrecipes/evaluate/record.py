"""One evaluation of one arm as a JSON record, a line of `evaluations.jsonl`.

A record::

    {"step": 40, "tokens": 40960, "seconds": 3.1,
     "learn": {"loss": I, "bits_per_byte": I | null, "perplexity": I, "kl": I | null,
               "change": I | null, "token_accuracy": I, "documents": 61, "scored_tokens": 2950},
     "keep": the same | null,
     "choices": {"accuracy": I, "accuracy_normalized": I | null, "probability": I,
                 "change": I | null, "items": 164, "truncated": 0} | null,
     "last_words": the same | null,
     "context": {"alone": I, "after_random": I, "after_related": I, "gain": I,
                 "gain_over_none": I, "documents": 61, "scored_tokens": 2950} | null,
     "document_sums": {"learn": {"tokens": [...], "nll": [...], "base_nll": [...] | null,
                                 "kl": [...] | null}, "keep": ...}}

with `I` = {"value": x, "low": x | null, "high": x | null}: a 95 % bootstrap interval over
documents (or items). `change` is measured minus base, paired by document; `kl` is
KL(base || model) in nats a token.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrecipes.errors import DataError
from jaxrecipes.evaluate.bootstrap import ratio_interval
from jaxrecipes.evaluate.choices import (
    ChoiceScores,
    EncodedItems,
    choice_scores,
    last_word_scores,
)
from jaxrecipes.evaluate.context_gain import ContextPairs, context_block
from jaxrecipes.evaluate.likelihood import (
    BaseCache,
    DocumentSums,
    base_cache,
    base_sums,
    evaluate_set,
)
from jaxrecipes.evaluate.rows import EvaluationRows
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.execution import ONE_DEVICE, Execution
from jaxrecipes.models.stacking import Layout

Tree = dict[str, Any]
Record = dict[str, Any]
_SETS = ("learn", "keep")
_ITEMS = ("choices", "last_words")


@dataclass(frozen=True)
class EvaluationSuite:
    """Everything that is measured at each evaluation of each arm, with the base's own results.

    Attributes:
        rows: Rows of the sets "learn" and, if there is one, "keep".
        bases: What KL needs of the base model, by set.
        choices: Multiple-choice items, or None.
        last_words: Last-word items, or None.
        context: Documents behind related and other contexts, or None.
        base_choices: The base's scores on `choices`, or None.
        base_last_words: The base's scores on `last_words`, or None.
        base_context: The base's block of `context`, or None.
        token_bytes: int32 [vocab_size] for bits per byte, or None.
        batch_size: Rows of one forward pass.
        compute_dtype: dtype of activations.
        chunk: Tokens whose logits exist at the same time.
        seed: Seed of the bootstrap.
        execution: Devices and attention backend.
    """

    rows: Mapping[str, EvaluationRows]
    bases: Mapping[str, BaseCache]
    choices: EncodedItems | None
    last_words: EncodedItems | None
    context: ContextPairs | None
    base_choices: ChoiceScores | None
    base_last_words: ChoiceScores | None
    base_context: dict[str, Any] | None
    token_bytes: np.ndarray | None
    batch_size: int
    compute_dtype: Any
    chunk: int
    seed: int
    execution: Execution


def build_suite(
    config: ModelConfig,
    base_params: Tree,
    *,
    learn: EvaluationRows,
    keep: EvaluationRows | None = None,
    choices: EncodedItems | None = None,
    last_words: EncodedItems | None = None,
    context: ContextPairs | None = None,
    token_bytes: np.ndarray | None = None,
    batch_size: int = 8,
    compute_dtype: Any = jnp.float32,
    layout: Layout | None = None,
    chunk: int = 512,
    seed: int = 0,
    execution: Execution = ONE_DEVICE,
) -> EvaluationSuite:
    """Runs the base model once over all that will be measured.

    Args:
        config: The base model.
        base_params: Its parameters, canonical or in `layout`.
        learn: Held-out rows of what is taught.
        keep: Rows of what must not be forgotten.
        choices: Multiple-choice items, from `encode_choices`.
        last_words: Last-word items, from `encode_last_words`.
        context: Documents behind their contexts, from `pair_documents`.
        token_bytes: From `token_byte_lengths`.
        batch_size: Rows of one forward pass.
        compute_dtype: dtype of activations.
        layout: Layout of `base_params`.
        chunk: Tokens whose logits exist at the same time.
        seed: Seed of the bootstrap.
        execution: Devices and attention backend, of the arms' evaluations too.

    Returns:
        The suite; share it between arms.

    Raises:
        DataError: See `evaluate_set`.
    """
    rows = {"learn": learn} | ({} if keep is None else {"keep": keep})
    forward = {
        "batch_size": batch_size,
        "compute_dtype": compute_dtype,
        "layout": layout,
        "execution": execution,
    }
    return EvaluationSuite(
        rows=rows,
        bases={
            name: base_cache(config, base_params, one, chunk=chunk, **forward)
            for name, one in rows.items()
        },
        choices=choices,
        last_words=last_words,
        context=context,
        base_choices=(
            None if choices is None else choice_scores(config, base_params, choices, **forward)
        ),
        base_last_words=(
            None
            if last_words is None
            else last_word_scores(config, base_params, last_words, **forward)
        ),
        base_context=(
            None
            if context is None
            else context_block(config, base_params, context, seed=seed, chunk=chunk, **forward)
        ),
        token_bytes=token_bytes,
        batch_size=batch_size,
        compute_dtype=compute_dtype,
        chunk=chunk,
        seed=seed,
        execution=execution,
    )


def base_record(suite: EvaluationSuite) -> Record:
    """Returns the record of the base itself, at step 0, from what the suite knows already."""
    started = time.perf_counter()
    record: Record = {"step": 0, "tokens": 0}
    document_sums = {}
    for name in _SETS:
        record[name] = None
        if name in suite.rows:
            sums = base_sums(suite.rows[name], suite.bases[name], suite.token_bytes)
            record[name] = set_block(sums, seed=suite.seed)
            document_sums[name] = _sums_block(sums)
    for name, scores in zip(_ITEMS, (suite.base_choices, suite.base_last_words), strict=True):
        record[name] = None if scores is None else choices_block(scores, scores, seed=suite.seed)
    record["context"] = suite.base_context
    record["document_sums"] = document_sums
    record["seconds"] = round(time.perf_counter() - started, 3)
    return record


def evaluate_arm(
    suite: EvaluationSuite,
    config: ModelConfig,
    params: Tree,
    *,
    step: int,
    tokens: int,
    layout: Layout | None = None,
) -> Record:
    """Measures an arm.

    Args:
        suite: From `build_suite`.
        config: The arm's model.
        params: Its parameters, trainable and frozen combined; canonical or in `layout`.
        step: Optimizer steps done.
        tokens: Supervised tokens trained on.
        layout: Layout of `params`.

    Returns:
        The record described in this module's docstring.
    """
    started = time.perf_counter()
    record: Record = {"step": int(step), "tokens": int(tokens)}
    document_sums = {}
    forward = {
        "batch_size": suite.batch_size,
        "compute_dtype": suite.compute_dtype,
        "layout": layout,
        "execution": suite.execution,
    }
    for name in _SETS:
        if name not in suite.rows:
            record[name] = None
            continue
        sums = evaluate_set(
            config,
            params,
            suite.rows[name],
            base=suite.bases[name],
            token_bytes=suite.token_bytes,
            chunk=suite.chunk,
            **forward,
        )
        record[name] = set_block(sums, seed=suite.seed)
        document_sums[name] = _sums_block(sums)
    scored = (
        ("choices", choice_scores, suite.choices, suite.base_choices),
        ("last_words", last_word_scores, suite.last_words, suite.base_last_words),
    )
    for name, score, items, base in scored:
        record[name] = None
        if items is not None:
            scores = score(config, params, items, **forward)
            record[name] = choices_block(scores, base, seed=suite.seed)
    record["context"] = None
    if suite.context is not None:
        options = {"seed": suite.seed, "chunk": suite.chunk, **forward}
        record["context"] = context_block(config, params, suite.context, **options)
    record["document_sums"] = document_sums
    record["seconds"] = round(time.perf_counter() - started, 3)
    return record


def set_block(sums: DocumentSums, *, seed: int = 0) -> dict[str, Any]:
    """Returns the part of a record that describes one set."""
    optional = {
        "bits_per_byte": sums.bits_per_byte(seed=seed),
        "kl": sums.divergence(seed=seed),
        "change": sums.change(seed=seed),
    }
    return {
        "loss": sums.loss(seed=seed).to_json(),
        "perplexity": sums.perplexity(seed=seed).to_json(),
        "token_accuracy": sums.token_accuracy(seed=seed).to_json(),
        **{name: None if one is None else one.to_json() for name, one in optional.items()},
        "documents": int((sums.tokens > 0).sum()),
        "scored_tokens": int(sums.tokens.sum()),
    }


def choices_block(
    scores: ChoiceScores, base: ChoiceScores | None, *, seed: int = 0
) -> dict[str, Any]:
    """Returns the part of a record that describes one set of items."""
    ones = np.ones_like(scores.correct)
    normalized = scores.correct_normalized
    return {
        "accuracy": scores.accuracy(seed=seed).to_json(),
        "accuracy_normalized": (
            None if normalized is None else ratio_interval(normalized, ones, seed=seed).to_json()
        ),
        "probability": ratio_interval(scores.probability, ones, seed=seed).to_json(),
        "change": None if base is None else scores.change(base, seed=seed).to_json(),
        "items": len(scores.ids),
        "truncated": scores.truncated,
    }


def _sums_block(sums: DocumentSums) -> dict[str, list[float] | None]:
    """Returns sums by document at seven digits: resampling needs no more, files stay small."""
    fields = {"tokens": sums.tokens, "nll": sums.nll, "base_nll": sums.base_nll, "kl": sums.kl}
    return {
        name: None if values is None else [float(f"{value:.7g}") for value in values]
        for name, values in fields.items()
    }


def read_records(path: Path) -> list[Record]:
    """Reads `evaluations.jsonl`.

    An incomplete last line, left by a killed run, is passed over; the run writes it again.

    Args:
        path: The file.

    Returns:
        The records, in the order of the file.

    Raises:
        DataError: The file cannot be read or a line is no evaluation record; names file and line.
    """
    return _read_lines(path, validate_record)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads `metrics.jsonl`: one object a line with at least `step`, `loss` and `tokens`.

    Errors and an incomplete last line as in `read_records`.
    """

    def check(entry: Any, where: str) -> None:
        if not isinstance(entry, dict) or not {"step", "loss", "tokens"} <= entry.keys():
            raise DataError(f"{where}: expected a JSON object with step, loss and tokens")

    return _read_lines(path, check)


def validate_record(record: Any, where: str = "evaluation record") -> None:
    """Checks the form of a record.

    Args:
        record: The parsed JSON.
        where: Place for the message, for instance "evaluations.jsonl:3".

    Raises:
        DataError: A key is missing or has another form than this module's docstring says.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}")
    for key in ("step", "tokens"):
        if not isinstance(record.get(key), int) or record[key] < 0:
            raise DataError(f"{where}: {key} is {record.get(key)!r}; expected a whole number >= 0")
    if not isinstance(record.get("learn"), dict):
        raise DataError(f"{where}: learn is missing; expected the measures on the learn set")
    required: dict[str, tuple[str, ...]] = {
        "learn": ("loss", "perplexity"),
        "keep": ("loss", "perplexity"),
    }
    required |= dict.fromkeys(_ITEMS, ("accuracy",))
    required["context"] = ("alone", "after_random", "after_related", "gain")
    counts = ("documents", "scored_tokens", "items", "truncated")
    for block, needed in required.items():
        measures = record.get(block)
        if measures is None:
            continue
        if not isinstance(measures, dict):
            raise DataError(f"{where}: {block} is {measures!r}; expected an object or null")
        for name in needed:
            if measures.get(name) is None:
                raise DataError(f"{where}: {block}.{name} is missing")
        for name, measured in measures.items():
            if name not in counts and measured is not None:
                _check_interval(measured, f"{where}: {block}.{name}")


def _check_interval(measured: Any, where: str) -> None:
    numbers = (int, float, type(None))
    if (
        not isinstance(measured, dict)
        or not {"value", "low", "high"} <= measured.keys()
        or not all(isinstance(measured[end], numbers) for end in ("value", "low", "high"))
    ):
        raise DataError(
            f"{where} is {measured!r}; expected {{'value': number, 'low': number or null, 'high': "
            "number or null}"
        )


def _read_lines(path: Path, check: Callable[[Any, str], None]) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    complete = text.endswith("\n")
    lines: Sequence[str] = text.splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines) and not complete:
                break
            raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
        check(entry, where)
        entries.append(entry)
    return entries
