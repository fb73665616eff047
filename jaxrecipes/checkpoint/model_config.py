"""`config.json` of Hugging Face checkpoints -> ModelConfig.

Every key is either read here, known not to change what a causal decoder computes, or at a value
that switches its feature off. Anything else is an error that names the key: a checkpoint is never
computed approximately. Both spellings are read, transformers 4 (`rope_theta`, `rope_scaling`,
`torch_dtype`, `sliding_window_pattern`) and transformers 5 (`rope_parameters`, `dtype`,
`layer_types`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxrecipes.checkpoint.config_reader import ConfigReader, read_json
from jaxrecipes.checkpoint.families import (
    FAMILIES,
    FAMILY_KEYS,
    INERT_KEYS,
    READ_KEYS,
    Family,
)
from jaxrecipes.errors import CheckpointError, ConfigError
from jaxrecipes.models.config import (
    FULL_ATTENTION,
    LAYER_TYPES,
    SLIDING_ATTENTION,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    RopeConfig,
)

NEW_BLOCKS_KEY = "jaxrecipes_new_blocks"
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def read_model_config(folder: str | Path) -> ModelConfig:
    """Reads what a Hugging Face checkpoint computes.

    Args:
        folder: Folder with `config.json`.

    Returns:
        The model.

    Raises:
        CheckpointError: The file is missing or not JSON, the family is unknown, a value is missing
            or of the wrong type, or a key changes the computation in a way that is not supported.
    """
    path = Path(folder) / "config.json"
    return parse_model_config(read_json(path), where=str(path))


def parse_model_config(values: Mapping[str, Any], *, where: str) -> ModelConfig:
    """Turns the content of a `config.json` into a ModelConfig.

    Args:
        values: The JSON object.
        where: Put before error messages, for example the file's path.

    Returns:
        The model.

    Raises:
        CheckpointError: As `read_model_config`.
    """
    family = find_family(values, where)
    _refuse_unknown_keys(family, values, where)
    reader = ConfigReader({**family.defaults, **values}, where)
    heads = reader.integer("num_attention_heads")
    hidden = reader.integer("hidden_size")
    if "head_dim" not in reader.values and hidden % heads:
        raise CheckpointError(
            f"{where}: hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads}) "
            f"and head_dim is not given"
        )
    head_dim = reader.integer("head_dim", hidden // heads)
    layer_types, sliding_window = _layer_types(family, reader)
    rope, rope_local = _ropes(family, reader)
    biased = family.biases == "option" and reader.boolean("attention_bias", False)
    query_scalar = reader.number("query_pre_attn_scalar", 0.0) if family.gemma else head_dim
    try:
        return ModelConfig(
            family=family.name,
            vocab_size=reader.integer("vocab_size"),
            hidden_size=hidden,
            intermediate_size=reader.integer("intermediate_size"),
            num_layers=len(layer_types),
            num_heads=heads,
            num_kv_heads=reader.integer("num_key_value_heads", heads),
            head_dim=head_dim,
            max_position_embeddings=reader.integer("max_position_embeddings"),
            norm_epsilon=reader.number("rms_norm_eps", 1e-6),
            tie_embeddings=reader.boolean("tie_word_embeddings", False),
            activation=_activation(family, reader),
            attention_bias=biased or family.biases == "query_key_value",
            attention_output_bias=biased,
            mlp_bias=family.name == "llama" and reader.boolean("mlp_bias", False),
            query_key_norm=family.query_key_norm,
            norm_plus_one=family.gemma,
            sandwich_norms=family.gemma,
            embedding_scale=hidden**0.5 if family.gemma else None,
            query_scale=query_scalar**-0.5,
            attention_softcap=reader.optional_number("attn_logit_softcapping"),
            final_softcap=reader.optional_number("final_logit_softcapping"),
            layer_types=layer_types,
            sliding_window=sliding_window,
            rope=rope,
            rope_local=rope_local,
            new_blocks=tuple(reader.integers(NEW_BLOCKS_KEY)),
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from None


def find_family(values: Mapping[str, Any], where: str) -> Family:
    """Returns the family that `model_type` names, or refuses it.

    Raises:
        CheckpointError: `model_type` is missing or not a supported decoder.
    """
    model_type = values.get("model_type")
    if model_type == "gemma3" and "text_config" in values:
        raise CheckpointError(
            f"{where}: model_type 'gemma3' is the multimodal checkpoint (it has a vision tower); "
            f"use a text-only one, whose model_type is 'gemma3_text'"
        )
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"{where}: model_type is {model_type!r}; supported families are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


def _refuse_unknown_keys(family: Family, values: Mapping[str, Any], where: str) -> None:
    known = INERT_KEYS | READ_KEYS | FAMILY_KEYS[family.name] | {"layer_types", NEW_BLOCKS_KEY}
    for key, value in values.items():
        switched_off = value is None or value is False or value in (0, "", [], {})
        if key in known or switched_off:
            continue
        if key == "partial_rotary_factor" and value == 1:
            continue
        advice = (
            "dequantise the checkpoint first, or import a GGUF file"
            if key == "quantization_config"
            else "jaxrecipes does not compute what this key asks for; use another checkpoint, or "
            "remove the key if you know that it has no effect"
        )
        raise CheckpointError(
            f"{where}: key {key!r} has the value {value!r}, which is not supported for family "
            f"{family.name}; {advice}"
        )


def _activation(family: Family, reader: ConfigReader) -> str:
    key = family.activation_key
    name = reader.values.get(key) or family.defaults.get(key, "silu")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise CheckpointError(
            f"{reader.where}: key {key!r} has the value {name!r}; supported are "
            f"{', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def _layer_types(family: Family, reader: ConfigReader) -> tuple[tuple[str, ...], int | None]:
    layers = reader.integer("num_hidden_layers")
    window = reader.optional_integer("sliding_window")
    listed = reader.values.get("layer_types")
    if family.windows == "from_max_window_layers" and not reader.boolean("use_sliding_window"):
        window = None
    if family.windows == "never":
        window = None
    if window is None:
        expected = (FULL_ATTENTION,) * layers
    elif family.windows == "always":
        expected = (SLIDING_ATTENTION,) * layers
    elif family.windows == "from_max_window_layers":
        first = reader.integer("max_window_layers")
        expected = tuple(
            SLIDING_ATTENTION if index >= first else FULL_ATTENTION for index in range(layers)
        )
    else:
        # Every n-th layer sees everything.
        pattern = reader.integer("sliding_window_pattern")
        expected = tuple(
            SLIDING_ATTENTION if (index + 1) % pattern else FULL_ATTENTION
            for index in range(layers)
        )
    if listed is None:
        return expected, window
    if not isinstance(listed, list) or len(listed) != layers:
        raise CheckpointError(
            f"{reader.where}: key 'layer_types' must list one type for each of the {layers} layers"
            f"; found {listed!r}"
        )
    for index, layer_type in enumerate(listed):
        if layer_type not in LAYER_TYPES:
            raise CheckpointError(
                f"{reader.where}: key 'layer_types' has {layer_type!r} for layer {index}; "
                f"supported are {', '.join(LAYER_TYPES)}"
            )
    if family.windows in ("never", "always") and tuple(listed) != expected:
        raise CheckpointError(
            f"{reader.where}: key 'layer_types' asks for {sorted(set(listed))}, but in family "
            f"{family.name} every layer is {expected[0]} and transformers ignores the key"
        )
    return tuple(listed), window


def _ropes(family: Family, reader: ConfigReader) -> tuple[RopeConfig, RopeConfig | None]:
    scaling = reader.values.get("rope_scaling") or None
    parameters = scaling or reader.values.get("rope_parameters") or {}
    theta = reader.number("rope_theta", 10_000.0)
    if family.name != "gemma3":
        return _rope(parameters, theta, reader), None
    local_theta = reader.number("rope_local_base_freq")
    # A nested `rope_parameters` has one entry for each kind of layer.
    nested = dict(reader.values.get("rope_parameters") or {})
    full = {**(nested.get(FULL_ATTENTION) or {}), **(scaling or {})}
    local = nested.get(SLIDING_ATTENTION) or {}
    for key in nested:
        if key not in LAYER_TYPES:
            raise CheckpointError(
                f"{reader.where}: key 'rope_parameters' has the entry {key!r}; expected one entry "
                f"for each of {', '.join(LAYER_TYPES)}"
            )
    return _rope(full, theta, reader), _rope(local, local_theta, reader)


_ROPE_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {
        *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    },
}


def _rope(parameters: Any, theta: float, reader: ConfigReader) -> RopeConfig:
    where = f"{reader.where}: rope parameters"
    if not isinstance(parameters, Mapping):
        raise CheckpointError(f"{where}: expected an object, found {parameters!r}")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in _ROPE_KEYS:
        raise CheckpointError(
            f"{where}: rope_type is {kind!r}; supported are {', '.join(_ROPE_KEYS)}"
        )
    for key, value in parameters.items():
        if key in {"rope_type", "type", "rope_theta"} | _ROPE_KEYS[kind] or value is None:
            continue
        if key == "partial_rotary_factor" and value == 1:
            continue
        raise CheckpointError(
            f"{where}: key {key!r} has the value {value!r}, which is not supported with "
            f"rope_type {kind!r}"
        )
    inner = ConfigReader(parameters, where)
    theta = inner.number("rope_theta", theta)
    if kind == "linear":
        return RopeConfig(theta, LinearScaling(inner.number("factor")))
    if kind == "llama3":
        original = inner.integer(
            "original_max_position_embeddings", reader.integer("max_position_embeddings")
        )
        scaling = Llama3Scaling(
            factor=inner.number("factor"),
            low_frequency_factor=inner.number("low_freq_factor"),
            high_frequency_factor=inner.number("high_freq_factor"),
            original_max_position=original,
        )
        return RopeConfig(theta, scaling)
    return RopeConfig(theta)
