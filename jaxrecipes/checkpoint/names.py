"""The one table of tensor names: canonical path, Hugging Face name, GGUF name.

Hugging Face and GGUF keep a linear layer's weight as [outputs, inputs]; the canonical kernel is
[inputs, outputs], so those rows are transposed on the way in and out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from jaxrecipes.errors import CheckpointError
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import abstract_params
from jaxrecipes.params.paths import flatten


@dataclass(frozen=True)
class TensorName:
    """Where one canonical leaf lies in a checkpoint.

    Attributes:
        canonical: Path in the canonical tree.
        huggingface: Name in safetensors files.
        gguf: Name in GGUF files.
        transposed: The files hold the transposed matrix.
        shape: Shape of the canonical leaf; () in the table, where the model is not known yet.
    """

    canonical: str
    huggingface: str
    gguf: str
    transposed: bool = False
    shape: tuple[int, ...] = ()

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape in the files."""
        return self.shape[::-1] if self.transposed else self.shape


def _linear(canonical: str, huggingface: str, gguf: str) -> tuple[TensorName, TensorName]:
    return (
        TensorName(f"{canonical}/kernel", f"{huggingface}.weight", f"{gguf}.weight", True),
        TensorName(f"{canonical}/bias", f"{huggingface}.bias", f"{gguf}.bias"),
    )


# `#` stands for the index of the layer.
_SHARED = (
    TensorName("embedding/table", "model.embed_tokens.weight", "token_embd.weight"),
    TensorName("final_norm/scale", "model.norm.weight", "output_norm.weight"),
    TensorName("head/kernel", "lm_head.weight", "output.weight", True),
    *_linear("layers/#/attention/query", "model.layers.#.self_attn.q_proj", "blk.#.attn_q"),
    *_linear("layers/#/attention/key", "model.layers.#.self_attn.k_proj", "blk.#.attn_k"),
    *_linear("layers/#/attention/value", "model.layers.#.self_attn.v_proj", "blk.#.attn_v"),
    *_linear("layers/#/attention/output", "model.layers.#.self_attn.o_proj", "blk.#.attn_output"),
    *_linear("layers/#/mlp/gate", "model.layers.#.mlp.gate_proj", "blk.#.ffn_gate"),
    *_linear("layers/#/mlp/up", "model.layers.#.mlp.up_proj", "blk.#.ffn_up"),
    *_linear("layers/#/mlp/down", "model.layers.#.mlp.down_proj", "blk.#.ffn_down"),
    TensorName(
        "layers/#/attention/query_norm/scale",
        "model.layers.#.self_attn.q_norm.weight",
        "blk.#.attn_q_norm.weight",
    ),
    TensorName(
        "layers/#/attention/key_norm/scale",
        "model.layers.#.self_attn.k_norm.weight",
        "blk.#.attn_k_norm.weight",
    ),
    TensorName(
        "layers/#/attention_norm/scale",
        "model.layers.#.input_layernorm.weight",
        "blk.#.attn_norm.weight",
    ),
)

# "post_attention_layernorm" is the norm before the feed-forward layer in every family but Gemma,
# where it normalises the output of attention.
_PRE_NORMS = (
    TensorName(
        "layers/#/mlp_norm/scale",
        "model.layers.#.post_attention_layernorm.weight",
        "blk.#.ffn_norm.weight",
    ),
)
_SANDWICH_NORMS = (
    TensorName(
        "layers/#/attention_post_norm/scale",
        "model.layers.#.post_attention_layernorm.weight",
        "blk.#.post_attention_norm.weight",
    ),
    TensorName(
        "layers/#/mlp_norm/scale",
        "model.layers.#.pre_feedforward_layernorm.weight",
        "blk.#.ffn_norm.weight",
    ),
    TensorName(
        "layers/#/mlp_post_norm/scale",
        "model.layers.#.post_feedforward_layernorm.weight",
        "blk.#.post_ffw_norm.weight",
    ),
)

# Buffers that old checkpoints carry and that follow from the configuration.
INERT_TENSORS = re.compile(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def tensor_names(config: ModelConfig) -> dict[str, TensorName]:
    """Lists every tensor of a model.

    Args:
        config: The model.

    Returns:
        Canonical path -> its names: embedding, final norm, head, then layer by layer.

    Raises:
        CheckpointError: The tree has a leaf that no row of the table names.
    """
    norms = _SANDWICH_NORMS if config.sandwich_norms else _PRE_NORMS
    table = {row.canonical: row for row in (*_SHARED, *norms)}
    names: dict[str, TensorName] = {}
    # Shape evaluation sorts the layers' indices as strings; files are nicer to read in order.
    leaves = flatten(abstract_params(config))
    for path in sorted(leaves, key=_natural_order):
        layer = re.match(r"layers/(\d+)/", path)
        index = layer.group(1) if layer else ""
        row = table.get(re.sub(r"^layers/\d+/", "layers/#/", path))
        if row is None:
            raise CheckpointError(
                f"parameter {path} has no name in Hugging Face checkpoints of family "
                f"{config.family}; add a row to jaxrecipes/checkpoint/names.py"
            )
        names[path] = TensorName(
            path,
            row.huggingface.replace("#", index),
            row.gguf.replace("#", index),
            row.transposed,
            leaves[path].shape,
        )
    return names


def _natural_order(path: str) -> tuple[int, str]:
    layer = re.match(r"layers/(\d+)/", path)
    return (int(layer.group(1)) if layer else -1, path)
