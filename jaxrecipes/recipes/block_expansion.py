"""Block expansion (LLaMA Pro, arXiv 2401.02415): insert identity blocks, train them and only them.

The paper trains the new blocks whole, their norms included, and freezes every inherited block, the
embeddings, the final norm and the head (`customized_trainer.py` of its code). Prefix and suffix
placement and copied or random blocks are the paper's and our controls.
"""

from __future__ import annotations

import jax

from jaxrecipes.config.recipe_options import BlockExpansionSection
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.params.expansion import expand_blocks
from jaxrecipes.params.paths import Tree
from jaxrecipes.params.surgery import Surgery, layers_pattern


def build(
    config: ModelConfig, params: Tree, options: BlockExpansionSection, key: jax.Array
) -> Surgery:
    """Expands the model and freezes all that was there before.

    Args:
        config: The base.
        params: Its canonical tree.
        options: The section `block_expansion` of the config.
        key: PRNG key, for random blocks.

    Returns:
        The expanded model with its rules.

    Raises:
        ConfigError: The options do not fit the model.
    """
    expansion = expand_blocks(
        config,
        params,
        new_blocks=options.new_blocks,
        placement=options.placement,
        per_group=options.per_group,
        init=options.init,
        key=key,
    )
    rules = [(layers_pattern(expansion.positions), True), (".*", False)]
    return Surgery(expansion.config, expansion.params, rules, options.init == "identity")
