"""What every recipe that changes the model hands to training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxrecipes.models.config import ModelConfig
from jaxrecipes.params.lora_options import AdapterOptions
from jaxrecipes.params.paths import Tree

Rules = Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class Adapters:
    """What an export of adapters needs besides their leaves.

    Attributes:
        options: What they are.
        initial: See `lora.Adapted.initial`.
    """

    options: AdapterOptions
    initial: Tree


@dataclass(frozen=True)
class Surgery:
    """A model ready to train.

    Attributes:
        config: The model to train.
        params: Its canonical tree.
        rules: Ordered pairs (regular expression over leaf paths, whether the leaf trains).
        keeps_function: The model still computes the base function, exactly, before training.
        adapters: Of the leaves in `params` that are adapters; None where there are none.
    """

    config: ModelConfig
    params: Tree
    rules: Rules
    keeps_function: bool
    adapters: Adapters | None = None


def layers_pattern(indices: Sequence[int]) -> str:
    """Returns the expression for all leaves of the given layers, by whole index."""
    return f"layers/({'|'.join(str(index) for index in indices)})/.*"
