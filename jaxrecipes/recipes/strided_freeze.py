"""Strided freezing: train the existing blocks that block expansion would have copied.

The control that LLaMA Pro lacks: the same number of trained blocks at the same places, without the
added depth. Where it does as well as block expansion, the gain comes from freezing.
"""

from __future__ import annotations

from jaxrecipes.config.recipe_options import StridedFreezeSection
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.params.expansion import block_order
from jaxrecipes.params.paths import Tree
from jaxrecipes.params.surgery import Surgery, layers_pattern


def build(config: ModelConfig, params: Tree, options: StridedFreezeSection) -> Surgery:
    """Returns the model as it is, with the source blocks of an interleaved expansion trained.

    Raises:
        ConfigError: The model has fewer blocks than are to be trained.
    """
    order = block_order(config.num_layers, options.blocks, "interleaved", 1)
    sources = [source for source, is_new in order if is_new]
    return Surgery(config, params, [(layers_pattern(sources), True), (".*", False)], True)
