"""What every recipe that changes the model hands to training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxrecipes.models.config import ModelConfig
from jaxrecipes.params.paths import Tree

Rules = Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class Surgery:
    """A model ready to train.

    Attributes:
        config: The model to train.
        params: Its canonical tree.
        rules: Ordered pairs (regular expression over leaf paths, whether the leaf trains).
        keeps_function: The model still computes the base function, exactly, before training.
    """

    config: ModelConfig
    params: Tree
    rules: Rules
    keeps_function: bool


def layers_pattern(indices: Sequence[int]) -> str:
    """Returns the expression for all leaves of the given layers, by whole index."""
    return f"layers/({'|'.join(str(index) for index in indices)})/.*"
