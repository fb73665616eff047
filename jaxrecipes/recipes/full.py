"""Full fine-tuning: every leaf trains. The baseline of all other recipes."""

from __future__ import annotations

from jaxrecipes.models.config import ModelConfig
from jaxrecipes.params.paths import Tree
from jaxrecipes.params.surgery import Surgery


def build(config: ModelConfig, params: Tree) -> Surgery:
    """Returns the model as it is, with one rule: everything trains."""
    return Surgery(config, params, [(".*", True)], True)
