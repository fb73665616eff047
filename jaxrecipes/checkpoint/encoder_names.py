"""The one table of encoder tensors: canonical path, Hugging Face name.

Hugging Face keeps a linear layer's weight as [outputs, inputs]; the canonical kernel is
[inputs, outputs], so those rows are transposed on the way in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from jaxrecipes.checkpoint.tensor_files import StoredTensor
from jaxrecipes.models.encoder import abstract_encoder_params
from jaxrecipes.models.encoder_config import EncoderConfig
from jaxrecipes.params.paths import flatten


@dataclass(frozen=True)
class EncoderTensor:
    """Where one canonical leaf lies in a checkpoint.

    Attributes:
        canonical: Path in the canonical tree.
        huggingface: Name in safetensors files, without the prefix of a checkpoint with a head.
        transposed: The files hold the transposed matrix.
        shape: Shape of the canonical leaf; () in the table, where the model is not known yet.
    """

    canonical: str
    huggingface: str
    transposed: bool = False
    shape: tuple[int, ...] = ()

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape in the files."""
        return self.shape[::-1] if self.transposed else self.shape


def linear_rows(canonical: str, huggingface: str) -> tuple[EncoderTensor, EncoderTensor]:
    """Returns the kernel and the bias of a linear layer."""
    return (
        EncoderTensor(f"{canonical}/kernel", f"{huggingface}.weight", True),
        EncoderTensor(f"{canonical}/bias", f"{huggingface}.bias"),
    )


def norm_rows(canonical: str, huggingface: str) -> tuple[EncoderTensor, EncoderTensor]:
    """Returns the scale and the bias of a LayerNorm."""
    return (
        EncoderTensor(f"{canonical}/scale", f"{huggingface}.weight"),
        EncoderTensor(f"{canonical}/bias", f"{huggingface}.bias"),
    )


# `#` stands for the index of the layer. The three families name their tensors alike.
_ROWS = (
    EncoderTensor("embedding/token/table", "embeddings.word_embeddings.weight"),
    EncoderTensor("embedding/position/table", "embeddings.position_embeddings.weight"),
    EncoderTensor("embedding/type/table", "embeddings.token_type_embeddings.weight"),
    *norm_rows("embedding_norm", "embeddings.LayerNorm"),
    *linear_rows("layers/#/attention/query", "encoder.layer.#.attention.self.query"),
    *linear_rows("layers/#/attention/key", "encoder.layer.#.attention.self.key"),
    *linear_rows("layers/#/attention/value", "encoder.layer.#.attention.self.value"),
    *linear_rows("layers/#/attention/output", "encoder.layer.#.attention.output.dense"),
    *norm_rows("layers/#/attention_norm", "encoder.layer.#.attention.output.LayerNorm"),
    *linear_rows("layers/#/mlp/up", "encoder.layer.#.intermediate.dense"),
    *linear_rows("layers/#/mlp/down", "encoder.layer.#.output.dense"),
    *norm_rows("layers/#/mlp_norm", "encoder.layer.#.output.LayerNorm"),
)

# Integer buffers that old checkpoints carry and that follow from the configuration.
ENCODER_BUFFERS = re.compile(r"((bert|roberta)\.)?embeddings\.(position_ids|token_type_ids)")
# The pooler, and the heads for masked language modelling, next-sentence prediction and
# classification: hidden states do not depend on them. See `encoder_heads`.
UNUSED_HEADS = re.compile(
    r"pooler\.dense\.(weight|bias)|cls\..+|lm_head\..+"
    r"|classifier\.((dense|out_proj)\.)?(weight|bias)"
)
_PREFIX = re.compile(r"(bert|roberta)\.")


def encoder_tensors(config: EncoderConfig) -> dict[str, EncoderTensor]:
    """Lists every tensor of an encoder: canonical path -> its name and shape."""
    table = {row.canonical: row for row in _ROWS}
    names: dict[str, EncoderTensor] = {}
    for path, leaf in flatten(abstract_encoder_params(config)).items():
        layer = re.match(r"layers/(\d+)/", path)
        row = table[re.sub(r"^layers/\d+/", "layers/#/", path)]
        name = row.huggingface.replace("#", layer.group(1) if layer else "")
        names[path] = replace(row, canonical=path, huggingface=name, shape=tuple(leaf.shape))
    return names


def plain_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Renames tensors as transformers' bare encoders name them.

    Checkpoints with a head prefix the encoder (`bert.`, `roberta.`), and those that were converted
    from TensorFlow call a norm's scale and bias `gamma` and `beta`.
    """
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        name = _PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        renamed[name] = tensor
    return renamed
