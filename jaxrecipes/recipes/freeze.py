"""Partial fine-tuning: the leaves that the rules choose train in place, the others are frozen."""

from __future__ import annotations

from jaxrecipes.config.recipe_options import FreezeSection
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.params.paths import Tree
from jaxrecipes.params.surgery import Surgery


def build(config: ModelConfig, params: Tree, options: FreezeSection) -> Surgery:
    """Returns the model as it is, with the config's rules."""
    return Surgery(config, params, [(rule.pattern, rule.train) for rule in options.rules], True)
