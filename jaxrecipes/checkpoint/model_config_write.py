"""ModelConfig -> `config.json` that transformers and `read_model_config` read alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from jaxrecipes.checkpoint.families import FAMILIES, Family
from jaxrecipes.checkpoint.model_config import NEW_BLOCKS_KEY, find_family, parse_model_config
from jaxrecipes.errors import CheckpointError
from jaxrecipes.models.config import LinearScaling, Llama3Scaling, ModelConfig, RopeConfig

_HUGGINGFACE_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}


def write_model_config(
    config: ModelConfig,
    folder: str | Path,
    base: Mapping[str, Any] | None = None,
    *,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Writes `config.json`.

    Args:
        config: The model.
        folder: An existing folder.
        base: The `config.json` that the model came from. All of its keys are kept; only those that
            say something else than `config` are changed.
        dtype: The weights' dtype, written under the key that `base` uses.

    Returns:
        The object that was written.

    Raises:
        CheckpointError: The family cannot express `config` (for example Mistral with one full
            attention layer), or the file cannot be written.
    """
    values = huggingface_config(config, base)
    if dtype is not None:
        values["torch_dtype" if "torch_dtype" in values else "dtype"] = dtype
    path = Path(folder) / "config.json"
    try:
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from None
    return values


def huggingface_config(
    config: ModelConfig, base: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns what `write_model_config` writes.

    Raises:
        CheckpointError: The family's `config.json` cannot express `config`.
    """
    if base is None:
        model_types = [name for name, family in FAMILIES.items() if family.name == config.family]
        if not model_types:
            raise CheckpointError(f"family {config.family!r} has no Hugging Face model_type")
        model_type = model_types[0]
        family = FAMILIES[model_type]
        values: dict[str, Any] = {"architectures": [family.architecture], "model_type": model_type}
        for keys in _field_keys(config, family).values():
            values.update(keys)
    else:
        values = dict(base)
        family = find_family(base, "the source's config.json")
        before = parse_model_config(base, where="the source's config.json")
        for name, keys in _field_keys(config, family).items():
            if getattr(before, name) != getattr(config, name):
                values.update(keys)
                if name in ("rope", "rope_local"):
                    values.pop("rope_parameters", None)
                    values.update(_field_keys(config, family)["rope"])
                    values.update(_field_keys(config, family)["rope_local"])
    if not config.new_blocks:
        values.pop(NEW_BLOCKS_KEY, None)
    again = parse_model_config(values, where="the config.json to write")
    different = [
        f"{field.name} ({getattr(config, field.name)!r} would be read as "
        f"{getattr(again, field.name)!r})"
        for field in fields(ModelConfig)
        if getattr(config, field.name) != getattr(again, field.name)
    ]
    if different:
        raise CheckpointError(
            f"a config.json of model_type {values['model_type']!r} cannot express this model: "
            + "; ".join(different)
        )
    return values


def _field_keys(config: ModelConfig, family: Family) -> dict[str, dict[str, Any]]:
    """Lists, for each field of ModelConfig, the keys that carry it in this family."""
    windows: dict[str, Any] = {}
    if family.windows != "never":
        windows["sliding_window"] = config.sliding_window
    if family.windows == "from_max_window_layers":
        windows["use_sliding_window"] = config.sliding_window is not None
    layers: dict[str, Any] = {"num_hidden_layers": config.num_layers}
    if family.windows in ("from_max_window_layers", "pattern"):
        layers["layer_types"] = list(config.layer_types)
    keys: dict[str, dict[str, Any]] = {
        "vocab_size": {"vocab_size": config.vocab_size},
        "hidden_size": {"hidden_size": config.hidden_size},
        "intermediate_size": {"intermediate_size": config.intermediate_size},
        "layer_types": layers,
        "num_heads": {"num_attention_heads": config.num_heads},
        "num_kv_heads": {"num_key_value_heads": config.num_kv_heads},
        "head_dim": {"head_dim": config.head_dim},
        "max_position_embeddings": {"max_position_embeddings": config.max_position_embeddings},
        "norm_epsilon": {"rms_norm_eps": config.norm_epsilon},
        "tie_embeddings": {"tie_word_embeddings": config.tie_embeddings},
        "activation": {family.activation_key: _HUGGINGFACE_ACTIVATIONS[config.activation]},
        "sliding_window": windows,
        "rope": {
            "rope_theta": config.rope.theta,
            "rope_scaling": _rope_scaling(config.rope),
        },
        "rope_local": {},
        "new_blocks": {NEW_BLOCKS_KEY: list(config.new_blocks)},
    }
    if config.rope_local is not None:
        keys["rope_local"] = {"rope_local_base_freq": config.rope_local.theta}
    if family.biases == "option":
        keys["attention_bias"] = {"attention_bias": config.attention_bias}
    if family.name == "llama":
        keys["mlp_bias"] = {"mlp_bias": config.mlp_bias}
    if family.gemma:
        # Published values are whole numbers; 256**-0.5 comes back exactly as 256.
        scalar = config.query_scale**-2
        near = round(scalar)
        keys["query_scale"] = {
            "query_pre_attn_scalar": near if near**-0.5 == config.query_scale else scalar
        }
        keys["final_softcap"] = {"final_logit_softcapping": config.final_softcap}
    if family.name == "gemma2":
        keys["attention_softcap"] = {"attn_logit_softcapping": config.attention_softcap}
    return keys


def _rope_scaling(rope: RopeConfig) -> dict[str, Any] | None:
    if isinstance(rope.scaling, LinearScaling):
        return {"rope_type": "linear", "factor": rope.scaling.factor}
    if isinstance(rope.scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "factor": rope.scaling.factor,
            "low_freq_factor": rope.scaling.low_frequency_factor,
            "high_freq_factor": rope.scaling.high_frequency_factor,
            "original_max_position_embeddings": rope.scaling.original_max_position,
        }
    return None
