"""What an experiment measures of a model: built once from the base, used by every arm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxrecipes.checkpoint.huggingface import Imported
from jaxrecipes.config import Config
from jaxrecipes.evaluate.choices import (
    encode_choices,
    encode_last_words,
    read_choice_items,
    read_last_word_items,
)
from jaxrecipes.evaluate.record import (
    EvaluationSuite,
    Record,
    base_record,
    build_suite,
    evaluate_arm,
)
from jaxrecipes.evaluate.token_bytes import token_byte_lengths
from jaxrecipes.experiment.data_sets import DataSets
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.execution import ONE_DEVICE, Execution
from jaxrecipes.models.stacking import Layout
from jaxrecipes.params.layout import plan_layout, to_runtime
from jaxrecipes.params.paths import Tree
from jaxrecipes.params.rules import label

# What costs more than the sets do, and is measured at the start and at the end only.
_WITHOUT_ITEMS = {"choices": None, "last_words": None, "context": None}


@dataclass(frozen=True)
class Measure:
    """Measures a model against the base.

    Attributes:
        suite: Everything that is measured at the start and at the end.
        base_record: The base's own record, of step 0.
    """

    suite: EvaluationSuite
    base_record: Record

    def __call__(
        self,
        config: ModelConfig,
        params: Tree,
        layout: Layout | None,
        *,
        step: int,
        tokens: int,
        with_items: bool,
    ) -> Record:
        """Returns the record of a model; see `evaluate.record`.

        Args:
            config: The model.
            params: Its tree in the given layout.
            layout: The layout; None for the canonical tree.
            step: Steps trained.
            tokens: Tokens trained on.
            with_items: Whether choices, last words and contexts are scored too.
        """
        suite = self.suite if with_items else replace(self.suite, **_WITHOUT_ITEMS)
        return evaluate_arm(suite, config, params, step=step, tokens=tokens, layout=layout)


def build_measure(
    config: Config,
    base: Imported,
    tokenizer: Any,
    data: DataSets,
    execution: Execution = ONE_DEVICE,
) -> Measure:
    """Runs the base over everything that will be measured.

    Args:
        config: The experiment.
        base: The base model.
        tokenizer: Its tokenizer.
        data: The experiment's sets.
        execution: Devices and attention backend, of the base's and of the arms' evaluations.

    Returns:
        The measure.

    Raises:
        DataError: An item file cannot be used.
    """
    section = config.evaluate

    def encode(text: str) -> Sequence[int]:
        return tokenizer(text)["input_ids"]

    def items(name: str | None, builtin: str, read: Callable, encoder: Callable) -> Any:
        if name is None:
            return None
        if name == "builtin":
            probes = resources.files("jaxrecipes.evaluate.probes")
            with resources.as_file(probes / builtin) as path:
                found = read(path)
        else:
            found = read(Path(name))
        return encoder(found[: section.limit_items], encode, max_length=config.data.length)

    compute_dtype = jnp.dtype(config.model.compute_dtype)
    layout = plan_layout(base.config, label(base.params, [(".*", True)]))
    params = to_runtime(layout, base.params)
    suite = build_suite(
        base.config,
        params,
        learn=data.learn,
        keep=data.keep,
        choices=items(section.choices, "general_choices.jsonl", read_choice_items, encode_choices),
        last_words=items(
            section.last_words,
            "general_last_words.jsonl",
            read_last_word_items,
            encode_last_words,
        ),
        context=data.context,
        token_bytes=token_byte_lengths(tokenizer, base.config.vocab_size),
        batch_size=section.batch_size,
        compute_dtype=compute_dtype,
        layout=layout,
        seed=config.seed,
        execution=execution,
    )
    return Measure(suite, base_record(suite))
