"""`adapter_config.json`: adapter options as PEFT's `LoraConfig`, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxrecipes.errors import CheckpointError, ConfigError
from jaxrecipes.params.lora_options import AdapterInit, AdapterOptions
from jaxrecipes.params.lora_targets import Module, Selection, written_options

# PEFT's defaults, for files that leave keys out.
_DEFAULT_RANK, _DEFAULT_ALPHA = 8, 8
_READ = {
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "modules_to_save",
    "trainable_token_indices",
    "ensure_weight_tying",
    "peft_type",
    "bias",
}
# Whatever these say, a trained adapter of linear layers and embeddings computes the same: notes,
# dropout, and settings of ways to start or of layers that must be switched on by another key.
_WITHOUT_EFFECT = {
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "fan_in_fan_out",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
    "loftq_config",
    "eva_config",
}
_INITS: dict[Any, AdapterInit] = {
    True: "kaiming",
    False: "kaiming",
    "gaussian": "gaussian",
    "orthogonal": "orthogonal",
    "eva": "kaiming",
    "pissa": "pissa",
    "olora": "olora",
}


@dataclass(frozen=True)
class PeftConfig:
    """What an `adapter_config.json` says.

    Attributes:
        options: The adapters.
        ties_weights: `ensure_weight_tying`: what changes a tied embedding changes the head, too.
    """

    options: AdapterOptions
    ties_weights: bool


def adapter_config(
    options: AdapterOptions,
    selection: Selection,
    modules: Sequence[Module],
    *,
    base_model: str | None,
    ties_weights: bool,
) -> dict[str, Any]:
    """Returns the JSON values of `adapter_config.json`.

    Args:
        options: The adapters' options; residual inits must have been converted to plain ones.
        selection: What they select.
        modules: All modules of the model.
        base_model: Name or path of the base, for PEFT's `AutoPeftModel`.
        ties_weights: See `PeftConfig`.

    Returns:
        Every key that shapes the computation, also where it has PEFT's default.
    """
    options = written_options(options, selection, modules)

    def names(value: str | tuple[str, ...]) -> str | list[str]:
        return value if isinstance(value, str) else list(value)

    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": options.rank,
        "lora_alpha": _number(options.alpha),
        "lora_dropout": options.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": options.use_rslora,
        "use_dora": options.use_dora,
        "target_modules": names(options.targets),
        "exclude_modules": names(options.exclude) or None,
        "layers_to_transform": list(options.layers_to_transform) or None,
        "layers_pattern": list(options.layers_pattern) or None,
        "rank_pattern": dict(options.rank_pattern),
        "alpha_pattern": {key: _number(value) for key, value in options.alpha_pattern.items()},
        "modules_to_save": list(options.modules_to_save) or None,
        "trainable_token_indices": list(options.trainable_tokens) or None,
        "ensure_weight_tying": ties_weights,
    }


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def doubled(options: AdapterOptions) -> AdapterOptions:
    """Returns plain options with twice the rank and the same scales: see `peft.write_adapter`."""
    factor = math.sqrt(2) if options.use_rslora else 2
    return replace(
        options,
        rank=2 * options.rank,
        alpha=factor * options.alpha,
        rank_pattern={key: 2 * value for key, value in options.rank_pattern.items()},
        alpha_pattern={key: factor * value for key, value in options.alpha_pattern.items()},
        init="kaiming",
    )


def parse_adapter_config(values: Mapping[str, Any], *, where: str) -> PeftConfig:
    """Reads the values of `adapter_config.json`.

    Args:
        values: The JSON object.
        where: The file, for messages.

    Returns:
        The options; what only matters for training (dropout) is left out.

    Raises:
        CheckpointError: Not a LoRA config, or a key that changes the computation and is not
            supported, or has a value of the wrong type. Names the key.
    """

    def fail(key: str, why: str) -> CheckpointError:
        return CheckpointError(f"{where}: key {key!r} is {values.get(key)!r}; {why}")

    if values.get("peft_type") != "LORA":
        raise fail("peft_type", "only adapters of type LORA can be read")
    for key, value in values.items():
        if key in _READ or key in _WITHOUT_EFFECT or not value:
            continue
        raise fail(
            key,
            "it may change what the adapter computes and is not supported; merge the adapter with "
            "PEFT (merge_and_unload) and import the merged model",
        )
    if values.get("bias", "none") != "none":
        raise fail("bias", "only 'none' is supported; merge the adapter with PEFT instead")
    init = values.get("init_lora_weights", True)
    if not isinstance(init, str | bool) or init not in _INITS:
        raise fail(
            "init_lora_weights",
            "PEFT changes the base when it loads this; save it with "
            "path_initial_model_for_weight_conversion, which makes a plain adapter",
        )

    def texts(key: str) -> str | tuple[str, ...]:
        value = values.get(key)
        if value is None:
            return ()
        if isinstance(value, str):
            return value
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return tuple(value)
        raise fail(key, "expected a string or a list of strings")

    def numbers(key: str) -> tuple[int, ...]:
        value = values.get(key)
        value = [] if value is None else [value] if isinstance(value, int) else value
        if isinstance(value, list) and all(type(one) is int for one in value):
            return tuple(value)
        raise fail(key, "expected integers")

    def number(key: str, default: float, kinds: type | tuple[type, ...]) -> Any:
        value = values.get(key, default)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise fail(key, "expected a number")
        return value

    def pattern(key: str, kinds: type | tuple[type, ...]) -> dict[str, Any]:
        value = values.get(key) or {}
        if not isinstance(value, dict) or not all(isinstance(v, kinds) for v in value.values()):
            raise fail(key, "expected an object from names to numbers")
        return value

    targets = texts("target_modules")
    if not targets:
        raise fail("target_modules", "without it PEFT takes a family's default; name the modules")
    layers_pattern = texts("layers_pattern")
    tokens = values.get("trainable_token_indices")
    if isinstance(tokens, dict):
        if len(tokens) != 1 or not next(iter(tokens)).endswith("embed_tokens"):
            raise fail("trainable_token_indices", "only tokens of embed_tokens are supported")
        values = {**values, "trainable_token_indices": next(iter(tokens.values()))}
    try:
        options = AdapterOptions(
            rank=number("r", _DEFAULT_RANK, int),
            alpha=number("lora_alpha", _DEFAULT_ALPHA, (int, float)),
            targets=targets,
            exclude=texts("exclude_modules"),
            rank_pattern=pattern("rank_pattern", int),
            alpha_pattern=pattern("alpha_pattern", (int, float)),
            layers_to_transform=numbers("layers_to_transform"),
            layers_pattern=(layers_pattern,) if isinstance(layers_pattern, str) else layers_pattern,
            use_rslora=bool(values.get("use_rslora", False)),
            use_dora=bool(values.get("use_dora", False)),
            init=_INITS[init],
            modules_to_save=tuple(texts("modules_to_save")),
            trainable_tokens=numbers("trainable_token_indices"),
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from None
    return PeftConfig(options, bool(values.get("ensure_weight_tying", False)))
