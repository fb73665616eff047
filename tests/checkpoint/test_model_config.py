from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.checkpoint.huggingface import read_model_config, write_model_config
from jaxrecipes.checkpoint.model_config import NEW_BLOCKS_KEY, parse_model_config
from jaxrecipes.checkpoint.model_config_write import huggingface_config
from jaxrecipes.errors import CheckpointError
from jaxrecipes.models.config import (
    FULL_ATTENTION,
    SLIDING_ATTENTION,
    LinearScaling,
    Llama3Scaling,
    RopeConfig,
)

FAMILIES = ("gemma2", "gemma3", "llama", "llama3", "mistral", "qwen2", "qwen3")


def parse(values: dict[str, Any], **changes: Any) -> Any:
    return parse_model_config({**values, **changes}, where="config.json")


@pytest.mark.parametrize("family", FAMILIES)
def test_both_generations_of_the_format_mean_the_same(
    family: str, tiny_configs: dict[str, Any]
) -> None:
    """The transformers 4 spelling in the table against what transformers 5 makes of it."""
    from transformers import AutoConfig

    values = tiny_configs[family]
    modern = json.loads(AutoConfig.for_model(**values).to_json_string())
    assert "rope_parameters" in modern and "rope_theta" not in modern
    assert parse_model_config(modern, where="modern") == parse_model_config(values, where="old")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("with_base", [True, False])
def test_what_is_written_reads_back(
    family: str, with_base: bool, tiny_configs: dict[str, Any], tmp_path: Path
) -> None:
    config = parse_model_config(tiny_configs[family], where=family)
    write_model_config(config, tmp_path, tiny_configs[family] if with_base else None)
    assert read_model_config(tmp_path) == config


@settings(deadline=None, max_examples=40)
@given(data=st.data(), family=st.sampled_from(["gemma2", "gemma3", "llama", "mistral", "qwen2"]))
def test_an_expanded_model_reads_back_and_keeps_other_keys(
    data: st.DataObject, family: str, tiny_configs: dict[str, Any]
) -> None:
    base = {**tiny_configs[family], "initializer_range": 0.123}
    config = parse_model_config(base, where=family)
    layers = list(config.layer_types)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(layers) - 1))
        layers.insert(position, layers[position])
    new_blocks = tuple(data.draw(st.sets(st.integers(0, len(layers) - 1))))
    expanded = config.with_layers(tuple(layers), tuple(sorted(new_blocks)))
    values = huggingface_config(expanded, base)
    assert parse_model_config(values, where="again") == expanded
    assert values["initializer_range"] == 0.123
    assert (NEW_BLOCKS_KEY in values) == bool(new_blocks)
    changed = {key for key in values if values[key] != base.get(key)}
    assert changed <= {"num_hidden_layers", "layer_types", NEW_BLOCKS_KEY}


def test_a_family_that_cannot_express_a_model_is_named(tiny_configs: dict[str, Any]) -> None:
    config = parse(tiny_configs["mistral"])
    mixed = config.with_layers((SLIDING_ATTENTION, FULL_ATTENTION), ())
    with pytest.raises(CheckpointError, match="'mistral' cannot express.*layer_types"):
        huggingface_config(mixed, tiny_configs["mistral"])


def test_known_features_are_read(tiny_configs: dict[str, Any]) -> None:
    llama = parse(tiny_configs["llama3"])
    assert llama.rope == RopeConfig(500000.0, Llama3Scaling(8.0, 1.0, 4.0, 32))
    assert llama.attention_bias and llama.attention_output_bias and llama.mlp_bias
    mistral = parse(tiny_configs["mistral"])
    assert mistral.layer_types == (SLIDING_ATTENTION,) * 2
    assert parse(tiny_configs["mistral"], sliding_window=None).layer_types == (FULL_ATTENTION,) * 2
    qwen = parse(tiny_configs["qwen2"])
    assert qwen.layer_types == (FULL_ATTENTION, SLIDING_ATTENTION, SLIDING_ATTENTION)
    assert qwen.attention_bias and not qwen.attention_output_bias
    assert parse(tiny_configs["qwen2"], use_sliding_window=False).sliding_window is None
    gemma = parse(tiny_configs["gemma3"])
    assert gemma.layer_types[2] == FULL_ATTENTION and gemma.layer_types[3] == SLIDING_ATTENTION
    assert gemma.rope == RopeConfig(1000000.0, LinearScaling(4.0))
    assert gemma.rope_local == RopeConfig(10000.0)
    assert gemma.query_key_norm and gemma.norm_plus_one and gemma.sandwich_norms


REFUSED = [
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "'factor' is missing"),
    ("llama", {"rope_scaling": {"type": "default", "mrope_section": [1]}}, "mrope_section"),
    ("llama", {"hidden_act": "relu"}, "'hidden_act' has the value 'relu'"),
    ("llama", {"partial_rotary_factor": 0.5}, "'partial_rotary_factor' has the value 0.5"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config.*dequantise"),
    ("llama", {"sliding_window": 4096}, "'sliding_window' has the value 4096"),
    ("llama", {"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
    ("llama", {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved"),
    ("llama", {"some_new_key": 1}, "'some_new_key' has the value 1"),
    ("llama", {"model_type": "mamba"}, "model_type is 'mamba'; supported families"),
    ("llama", {"model_type": None}, "model_type is None"),
    ("llama", {"hidden_size": "32"}, "'hidden_size' is '32'; expected a positive whole number"),
    ("llama", {"hidden_size": True}, "'hidden_size' is True"),
    ("llama", {"vocab_size": 0}, "'vocab_size' is 0"),
    ("llama", {"num_hidden_layers": None}, "'num_hidden_layers' is missing"),
    ("llama", {"num_key_value_heads": 3}, "multiple of num_kv_heads"),
    ("llama", {"num_attention_heads": 5}, "not a multiple of num_attention_heads"),
    ("llama", {"rms_norm_eps": -1.0}, "'rms_norm_eps' is -1.0"),
    ("llama", {"rope_theta": "high"}, "'rope_theta' is 'high'"),
    ("llama", {"tie_word_embeddings": "yes"}, "'tie_word_embeddings' is 'yes'"),
    ("llama", {NEW_BLOCKS_KEY: [9]}, "new_blocks"),
    ("llama", {NEW_BLOCKS_KEY: ["1"]}, "list of whole numbers"),
    ("mistral", {"attention_bias": True}, "'attention_bias' has the value True"),
    ("qwen2", {"layer_types": ["full_attention"]}, "one type for each of the 3 layers"),
    ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "'chunked_attention' for layer 0"),
    ("qwen2", {"use_mrope": True}, "use_mrope"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("gemma3", {"rope_parameters": {"chunked_attention": {}}}, "chunked_attention"),
    ("gemma3", {"model_type": "gemma3", "text_config": {}}, "multimodal"),
]


@pytest.mark.parametrize(("family", "change", "message"), REFUSED)
def test_a_key_that_changes_the_computation_is_refused_by_name(
    family: str, change: dict[str, Any], message: str, tiny_configs: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse(tiny_configs[family], **change)


@pytest.mark.parametrize(
    "change",
    [
        {"attention_dropout": 0.1},
        {"pretraining_tp": 2},
        {"rope_interleaved": False},
        {"partial_rotary_factor": 1.0},
        {"torch_dtype": "bfloat16"},
        {"quantization_config": None},
        {"use_mrope": False},
    ],
)
def test_inert_keys_change_nothing(change: dict[str, Any], tiny_configs: dict[str, Any]) -> None:
    assert parse(tiny_configs["llama"], **change) == parse(tiny_configs["llama"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json is missing"),
        (b"", "config.json:1:1: not JSON"),
        (b'{"model_type": "llama"', "not JSON"),
        (b"[1]", "expected a JSON object"),
        (b'{"a": "\xff"}', "not UTF-8"),
    ],
)
def test_an_unreadable_file_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_model_config(tmp_path)


def test_transformers_writes_what_is_read(tiny_checkpoint: Callable[[str], Path]) -> None:
    for family in FAMILIES:
        assert read_model_config(tiny_checkpoint(family)).num_layers >= 2
