"""LoRA (arXiv 2106.09685) and its relatives: low-rank adapters beside frozen weights.

By default every linear layer gets one, of rank 16 with alpha twice that. The paper adapted query
and value alone; later work found the feed-forward layers to matter more (arXiv 2405.09673).
"""

from __future__ import annotations

import jax

from jaxrecipes.checkpoint.peft_names import decoder_modules
from jaxrecipes.config.recipe_options import LoraSection
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.params.lora import adapter_rules, build_adapters
from jaxrecipes.params.lora_explain import ExplainRow, explain
from jaxrecipes.params.lora_options import AdapterOptions
from jaxrecipes.params.lora_targets import select_modules
from jaxrecipes.params.partition import combine
from jaxrecipes.params.paths import Tree
from jaxrecipes.params.surgery import Adapters, Surgery


def build(config: ModelConfig, params: Tree, section: LoraSection, key: jax.Array) -> Surgery:
    """Adds adapters and freezes the rest, but for the modules that train whole.

    Args:
        config: The base.
        params: Its canonical tree.
        section: The section `lora` of the config.
        key: PRNG key of the adapters.

    Returns:
        The model with adapters and its rules.

    Raises:
        ConfigError: The options do not fit the model.
    """
    options = adapter_options(section)
    selection = select_modules(options, decoder_modules(config))
    adapted = build_adapters(params, options, selection, key)
    # DoRA's quotient and the other starts keep the function up to rounding only.
    exact = options.init in ("kaiming", "gaussian") and not options.use_dora
    return Surgery(
        config,
        combine(adapted.adapters, adapted.base),
        adapter_rules(selection),
        exact,
        Adapters(options, adapted.initial),
    )


def explain_adapters(config: ModelConfig, section: LoraSection) -> list[ExplainRow]:
    """Lists which modules of a model get adapters and which linear layers do not.

    Args:
        config: The base.
        section: The section `lora` of the config.
    """
    return explain(select_modules(adapter_options(section), decoder_modules(config)))


def adapter_options(section: LoraSection) -> AdapterOptions:
    """Translates the section `lora`.

    Raises:
        ConfigError: Its options contradict themselves.
    """

    def names(value: str | list[str]) -> str | tuple[str, ...]:
        return value if isinstance(value, str) else tuple(value)

    return AdapterOptions(
        rank=section.rank,
        alpha=2.0 * section.rank if section.alpha is None else section.alpha,
        targets=names(section.targets),
        exclude=names(section.exclude),
        rank_pattern=section.rank_pattern,
        alpha_pattern=section.alpha_pattern,
        layers_to_transform=tuple(section.layers_to_transform),
        layers_pattern=tuple(section.layers_pattern),
        use_rslora=section.use_rslora,
        use_dora=section.use_dora,
        init=section.init,
        modules_to_save=tuple(section.modules_to_save),
        trainable_tokens=tuple(section.trainable_tokens),
        embeddings=section.embeddings,
    )
