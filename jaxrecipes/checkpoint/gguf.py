"""Reading GGUF files (llama.cpp): metadata -> config, quantised tensors -> float32.

llama.cpp's converter changes three things that are put back here:

- Llama and Mistral store the rows of the query and key projections in the order of interleaved
  rotary pairs; Hugging Face and this package use the half-split order;
- Gemma's norms are stored as 1 + w; the canonical scale is w;
- Llama 3's rope scaling is stored as one factor for each frequency (`rope_freqs.weight`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, dequantize

from jaxrecipes.checkpoint.families import FAMILIES
from jaxrecipes.checkpoint.tensor_files import refuse_non_finite
from jaxrecipes.errors import CheckpointError
from jaxrecipes.models.config import Llama3Scaling, ModelConfig, RopeConfig
from jaxrecipes.models.rope import inverse_frequencies

_SUPPORTED_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1") + (
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)
_ROPE_FACTORS = "rope_freqs.weight"
_ROWS_VALUES = 1 << 20  # values dequantised at a time

# GGUF architecture -> Hugging Face model_type. Mistral files say "llama".
_MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
# Hugging Face key -> GGUF key below the architecture's name.
_CONFIG_KEYS = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_OPTIONAL_KEYS = {
    "head_dim": "attention.key_length",
    "rope_theta": "rope.freq_base",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "sliding_window": "attention.sliding_window",
}
# Metadata that says nothing about the computation beyond what is read above and below.
_INERT_KEYS = {
    *("attention.value_length", "rope.dimension_count", "vocab_size"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
    "rope.scaling.finetuned",
}
_TOKEN_IDS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}


def open_reader(path: Path) -> GGUFReader:
    """Opens a GGUF file.

    Raises:
        CheckpointError: It is not a GGUF file, is truncated, or is one part of several.
    """
    try:
        reader = GGUFReader(path)
        parts = metadata(reader).get("split.count", 1)
        # The reader maps the file lazily; a short last tensor shows in its own length only.
        for tensor in reader.tensors:
            if tensor.data.nbytes != tensor.n_bytes:
                raise ValueError(f"tensor {tensor.name} ends after the end of the file")
    except (ValueError, OSError, IndexError, KeyError, UnicodeDecodeError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise CheckpointError(
            f"{path} ({size:,} bytes) is not a complete GGUF file: {error}; copy or download it "
            f"again"
        ) from None
    if parts > 1:
        raise CheckpointError(
            f"{path} is one of {parts} parts; join them first with llama-gguf-split --merge"
        )
    return reader


def metadata(reader: GGUFReader) -> dict[str, Any]:
    """Returns the scalar metadata of a file; arrays (the vocabulary) are left out."""
    values: dict[str, Any] = {}
    for name, field in reader.fields.items():
        if field.types and field.types[0].name != "ARRAY":
            values[name] = field.contents()
    return values


def gguf_config(reader: GGUFReader, path: Path) -> dict[str, Any]:
    """Makes the `config.json` of a GGUF file from its metadata.

    Args:
        reader: The open file.
        path: Its path, for messages.

    Returns:
        A Hugging Face config object, for `parse_model_config`.

    Raises:
        CheckpointError: The architecture, a metadata key or the rope scaling is not supported.
    """
    values = metadata(reader)
    architecture = values.get("general.architecture")
    if architecture not in _MODEL_TYPES:
        raise CheckpointError(
            f"{path}: general.architecture is {architecture!r}; supported are "
            f"{', '.join(_MODEL_TYPES)}"
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    own = {
        name.removeprefix(f"{architecture}."): value
        for name, value in values.items()
        if name.startswith(f"{architecture}.")
    }
    known = {*_CONFIG_KEYS.values(), *_OPTIONAL_KEYS.values(), *_INERT_KEYS}
    unknown = sorted(name for name in own if name not in known)
    if unknown:
        raise CheckpointError(
            f"{path}: metadata key {architecture}.{unknown[0]} has the value {own[unknown[0]]!r}, "
            f"which is not supported"
        )
    model_type = _MODEL_TYPES[architecture]
    config: dict[str, Any] = {
        "architectures": [FAMILIES[model_type].architecture],
        "model_type": model_type,
    }
    for key, name in _CONFIG_KEYS.items():
        if name not in own:
            raise CheckpointError(f"{path}: metadata key {architecture}.{name} is missing")
        config[key] = own[name]
    config |= {key: own[name] for key, name in _OPTIONAL_KEYS.items() if name in own}
    config |= {key: values[name] for key, name in _TOKEN_IDS.items() if name in values}
    if isinstance(config["num_attention_heads"], list):
        raise CheckpointError(f"{path}: layers differ in their number of heads")
    rotated = own.get("rope.dimension_count")
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    if rotated is not None and rotated != head_dim:
        config["partial_rotary_factor"] = rotated / head_dim  # refused by the config's reader
    # GGUF keeps single precision; the published value is the short decimal.
    for key in ("rms_norm_eps", "rope_theta"):
        if key in config:
            config[key] = float(str(np.float32(config[key])))
    if "token_embd.weight" not in tensors:
        raise CheckpointError(f"{path}: tensor token_embd.weight is missing")
    config["vocab_size"] = int(tensors["token_embd.weight"].shape[1])
    config["tie_word_embeddings"] = "output.weight" not in tensors
    if architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
    if architecture == "qwen3":
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if architecture.startswith("gemma"):
        config["query_pre_attn_scalar"] = _query_scalar(architecture, config)
    config["rope_scaling"] = _rope_scaling(path, own, tensors.get(_ROPE_FACTORS), config)
    return config


def _query_scalar(architecture: str, config: Mapping[str, Any]) -> float:
    """The divisor of Gemma's attention logits, which the metadata leaves out.

    llama.cpp hard-codes the two 27B models, which divide by hidden_size / num_attention_heads; all
    others divide by head_dim.
    """
    layers = {"gemma2": 46, "gemma3": 62}[architecture]
    if config["num_hidden_layers"] == layers:
        return config["hidden_size"] / config["num_attention_heads"]
    return config.get("head_dim", 256)


def _rope_scaling(
    path: Path, own: Mapping[str, Any], factors: ReaderTensor | None, config: Mapping[str, Any]
) -> dict[str, Any] | None:
    kind = own.get("rope.scaling.type", "none")
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(own["rope.scaling.factor"])}
    if kind != "none":
        raise CheckpointError(f"{path}: rope.scaling.type is {kind!r}; supported are none, linear")
    if factors is None:
        return None
    stored = np.asarray(factors.data, np.float32).reshape(-1)
    # The file has the factors and not what they were made from. Llama 3.1 to 3.3 differ in the
    # largest factor only; the guess is checked against every stored factor.
    scaling = {
        "rope_type": "llama3",
        "factor": float(stored.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    head_dim = 2 * stored.size
    theta = float(config.get("rope_theta", 10_000.0))
    plain = inverse_frequencies(RopeConfig(theta), head_dim)
    guess = RopeConfig(theta, Llama3Scaling(scaling["factor"], 1.0, 4.0, 8192))
    if not np.allclose(plain / inverse_frequencies(guess, head_dim), stored, rtol=1e-3):
        raise CheckpointError(
            f"{path}: the rope factors in tensor {_ROPE_FACTORS} are not those of Llama 3; they "
            f"cannot be expressed in a Hugging Face config"
        )
    return scaling


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file, dequantised when it is read.

    It is read with plain file access: the pages of a memory map would count as this process's
    memory for as long as the import runs.

    Attributes:
        name: Its name in the file.
        file: The file.
        kind: Its quantisation.
        shape: Its shape in numpy's order.
        offset: Where its data begin, in bytes.
        blocks: Shape of its data as stored: the last axis counts bytes where it is quantised.
        blocks_dtype: dtype of its data as stored.
        rotary_heads: Number of heads whose rows are in interleaved rotary order; 0 if none are.
        minus_one: The file holds 1 + w.
    """

    name: str
    file: Path
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    blocks: tuple[int, ...]
    blocks_dtype: np.dtype
    rotary_heads: int = 0
    minus_one: bool = False

    @property
    def dtype(self) -> np.dtype:
        """float32, whatever the file's quantisation."""
        return np.dtype(np.float32)

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Dequantises the tensor.

        Args:
            index: One slice for each axis, or nothing for the whole tensor.

        Returns:
            float32, the selected part.

        Raises:
            CheckpointError: The part holds NaN or infinity.
        """
        array = self._dequantise()
        if self.rotary_heads:
            array = half_split_rows(array, self.rotary_heads)
        if self.minus_one:
            array = array - np.float32(1)
        array = np.array(array[index]) if index else array
        refuse_non_finite(array, f"{self.file}: tensor {self.name}")
        return array

    def _dequantise(self) -> np.ndarray:
        # The gguf package makes several temporaries of its output's size: give it a few rows.
        array = np.empty(self.shape, np.float32)
        values_per_row = math.prod(self.shape[1:])
        blocks_per_row = math.prod(self.blocks[1:])
        rows = max(1, _ROWS_VALUES // values_per_row)
        for start in range(0, self.shape[0], rows):
            some = array[start : start + rows]
            blocks = np.fromfile(
                self.file,
                self.blocks_dtype,
                count=len(some) * blocks_per_row,
                offset=self.offset + start * blocks_per_row * self.blocks_dtype.itemsize,
            )
            values = dequantize(blocks.reshape(-1, *self.blocks[1:]), self.kind)
            some[:] = values.reshape(some.shape)
        return array


def half_split_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Puts the rows of a query or key projection back into half-split rotary order.

    Args:
        weight: [heads * head_dim, ...] with rows 0, head_dim/2, 1, head_dim/2 + 1, … of each head.
        heads: Number of heads.

    Returns:
        The same array with rows 0, 1, 2, … of each head.
    """
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def gguf_tensors(reader: GGUFReader, path: Path, config: ModelConfig) -> dict[str, GgufTensor]:
    """Lists the tensors of a GGUF file without dequantising them.

    Args:
        reader: The open file.
        path: Its path, for messages.
        config: Its model.

    Returns:
        Name in the file -> tensor; the rope factors, which belong to the config, are left out.

    Raises:
        CheckpointError: The file has a quantisation that is not supported.
    """
    tensors: dict[str, GgufTensor] = {}
    for stored in reader.tensors:
        if stored.name == _ROPE_FACTORS:
            continue
        if stored.tensor_type.name not in _SUPPORTED_TYPES:
            raise CheckpointError(
                f"{path}: tensor {stored.name} has quantisation {stored.tensor_type.name}; "
                f"supported are {', '.join(_SUPPORTED_TYPES)}"
            )
        rotary_heads = 0
        if config.family in ("llama", "mistral"):
            if ".attn_q." in stored.name:
                rotary_heads = config.num_heads
            elif ".attn_k." in stored.name:
                rotary_heads = config.num_kv_heads
        minus_one = config.norm_plus_one and stored.name.endswith("norm.weight")
        tensors[stored.name] = GgufTensor(
            name=stored.name,
            file=path,
            kind=stored.tensor_type,
            # The file lists the fastest axis first.
            shape=tuple(int(axis) for axis in reversed(stored.shape)),
            offset=int(stored.data_offset),
            blocks=stored.data.shape,
            blocks_dtype=stored.data.dtype,
            rotary_heads=rotary_heads,
            minus_one=minus_one,
        )
    return tensors
