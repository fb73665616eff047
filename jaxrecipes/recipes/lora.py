"""LoRA (arXiv 2106.09685) and its relatives: low-rank adapters beside frozen weights.

By default every linear layer gets one, of rank 16 with alpha twice that. The paper adapted query
and value alone; later work found the feed-forward layers to matter more (arXiv 2405.09673).
"""

from __future__ import annotations

import jax

from jaxrecipes.checkpoint.peft_names import decoder_modules
from jaxrecipes.config.recipe_options import LoraSection
from jaxrecipes.errors import ConfigError
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.params.lora import adapter_rules, build_adapters
from jaxrecipes.params.lora_explain import ExplainRow, explain
from jaxrecipes.params.lora_options import RESIDUAL_INITS, AdapterOptions
from jaxrecipes.params.lora_targets import select_modules
from jaxrecipes.params.partition import combine
from jaxrecipes.params.paths import Tree
from jaxrecipes.params.quantize import quantize_tree
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
    modules = decoder_modules(config)
    selection = select_modules(options, modules)
    adapted = build_adapters(params, options, selection, key)
    # DoRA's quotient and the other starts keep the function up to rounding only.
    exact = options.init in ("kaiming", "gaussian") and not options.use_dora
    base = adapted.base
    if section.base_quantization != "none":
        if options.init in RESIDUAL_INITS:
            raise ConfigError(
                f"lora.init {options.init} leaves a part of each kernel as the base, and a base of "
                f"{section.base_quantization} would round what the adapter was made from; use "
                "another init, or base_quantization: none"
            )
        whole = selection.saved_leaves
        base = quantize_tree(
            base,
            {m.path for m in modules if m.kind == "linear" and f"{m.path}/kernel" not in whole},
            section.base_quantization,
            double=section.double_quantization,
        )
        exact = False
    elif section.double_quantization:
        raise ConfigError(
            "lora.double_quantization is about the scales of base_quantization: nf4; set that, or "
            "leave it out"
        )
    return Surgery(
        config,
        combine(adapted.adapters, base),
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


def rate_rules(section: LoraSection, learning_rate: float) -> list[tuple[str, float]]:
    """Returns the rules of LoRA+ (arXiv 2402.12354), as PEFT groups parameters for it.

    Args:
        section: The section `lora` of the config.
        learning_rate: The peak rate, of A.

    Returns:
        Ordered pairs (expression over leaf paths, factor on the rate); none without a ratio.

    Raises:
        ConfigError: A rate is given that nothing would learn with.
    """
    ratio, embedding_rate = section.loraplus_lr_ratio, section.loraplus_lr_embedding
    if embedding_rate is not None and (ratio is None or not section.embeddings):
        raise ConfigError(
            "lora.loraplus_lr_embedding is the rate of an embedding's adapter under LoRA+; set "
            "lora.embeddings and lora.loraplus_lr_ratio, too, or leave it out"
        )
    if ratio is None:
        return []
    rules = [(r".*/(lora_b|lora_magnitude|scale|bias)", ratio)]
    if section.embeddings:
        rate = 1e-6 if embedding_rate is None else embedding_rate
        rules.insert(0, (r"embedding/lora_[ab]", rate / learning_rate))
    return rules


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
        dropout=section.dropout,
        init=section.init,
        modules_to_save=tuple(section.modules_to_save),
        trainable_tokens=tuple(section.trainable_tokens),
        embeddings=section.embeddings,
    )
