"""Text encoders on disk -> canonical parameters, tokenizer, pooling and prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrecipes.checkpoint.config_reader import read_json
from jaxrecipes.checkpoint.encoder_config import parse_encoder_config
from jaxrecipes.checkpoint.encoder_names import (
    ENCODER_BUFFERS,
    UNUSED_HEADS,
    EncoderTensor,
    encoder_tensors,
    plain_names,
)
from jaxrecipes.checkpoint.reference import resolve_reference
from jaxrecipes.checkpoint.sentence_folder import read_sentence_settings
from jaxrecipes.checkpoint.tensor_files import (
    StoredTensor,
    open_tensor_files,
    refuse_non_finite,
    shorten,
)
from jaxrecipes.checkpoint.tokenizer import load_tokenizer, tokenizer_fingerprint
from jaxrecipes.errors import CheckpointError
from jaxrecipes.models.encoder_config import EncoderConfig
from jaxrecipes.models.pooling import PoolingMode
from jaxrecipes.params.paths import Tree, unflatten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class ImportedEncoder:
    """A text encoder in memory.

    Attributes:
        config: What it computes.
        params: Canonical tree of jax arrays.
        tokenizer: Its tokenizer; lower-cases first where the folder asks for that.
        pooling: How a text's hidden states become one vector.
        normalize: The folder's own embeddings have length one.
        max_tokens: Longest input, in tokens with the special ones, that it is to be used with.
        prompts: Name -> text that is put before a text, for example "query".
        default_prompt: What the folder puts before every text; mostly nothing.
        source: The folder that was read.
        fingerprint: SHA-256 over all that decides the vector of a text: weights, configuration,
            tokenizer, pooling, longest input.
        unused: Names of the tensors that hidden states do not depend on: pooler and heads.
    """

    config: EncoderConfig
    params: Tree
    tokenizer: PreTrainedTokenizerFast
    pooling: PoolingMode
    normalize: bool
    max_tokens: int
    prompts: Mapping[str, str]
    default_prompt: str
    source: Path
    fingerprint: str
    unused: tuple[str, ...]


def import_encoder(
    reference: str | Path,
    *,
    revision: str | None = None,
    dtype: Any = None,
    pooling: PoolingMode | None = None,
) -> ImportedEncoder:
    """Reads a text encoder: safetensors and JSON files, never pickles or code.

    Args:
        reference: A Hugging Face or sentence-transformers folder, `package:<name>`, or a hub id, of
            a BERT, RoBERTa or XLM-RoBERTa (MiniLM, Contriever, BGE-M3 and so on).
        revision: Commit, tag or branch of a hub id; None for the newest.
        dtype: dtype of every leaf; None keeps the stored one.
        pooling: How to pool, instead of what the folder says (mean where it says nothing).

    Returns:
        The encoder.

    Raises:
        CheckpointError: The checkpoint is missing, damaged, of another shape than its config says,
            lacks tensors, has tensors that nothing would use, holds NaN or infinity, or asks for
            something that is not supported. Names the file and the key or tensors.
    """
    source = resolve_reference(reference, revision=revision)
    if source.is_file():
        raise CheckpointError(f"{source}: an encoder is read from a folder, not from a GGUF file")
    settings = read_sentence_settings(source)
    path = settings.folder / "config.json"
    config = parse_encoder_config(read_json(path), where=str(path))
    digest = hashlib.sha256()
    params, unused = _read_params(settings.folder, config, dtype, digest)
    tokenizer = load_tokenizer(settings.folder)
    if settings.lower_case:
        _lower_case_first(tokenizer)
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"{settings.folder}: the tokenizer has the token id {largest}, the model's table has "
            f"{config.vocab_size} rows; they do not belong together"
        )
    stated = settings.max_tokens or tokenizer.model_max_length
    max_tokens = int(min(stated, config.max_tokens))
    pooling = pooling or settings.pooling
    identity = {
        "config": asdict(config),
        "weights": digest.hexdigest(),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "pooling": pooling,
        "max_tokens": max_tokens,
    }
    return ImportedEncoder(
        config=config,
        params=params,
        tokenizer=tokenizer,
        pooling=pooling,
        normalize=settings.normalize,
        max_tokens=max_tokens,
        prompts=settings.prompts,
        default_prompt=settings.default_prompt,
        source=source,
        fingerprint=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        unused=unused,
    )


def _read_params(
    folder: Path, config: EncoderConfig, dtype: Any, digest: Any
) -> tuple[Tree, tuple[str, ...]]:
    """Reads the tensors one by one; their names and values go into the digest."""
    tensors = plain_names(open_tensor_files(folder, buffers=ENCODER_BUFFERS))
    rows = encoder_tensors(config)
    used = {row.huggingface for row in rows.values()}
    missing = sorted(used - set(tensors))
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors that its config asks for: {shorten(missing)}"
        )
    unused = sorted(set(tensors) - used)
    strange = [tensors[name].name for name in unused if not UNUSED_HEADS.fullmatch(name)]
    if strange:
        raise CheckpointError(
            f"{folder} has {len(strange)} tensors that a {config.family} encoder of "
            f"{config.num_layers} layers does not use: {shorten(strange)}. The config and the "
            "weights do not belong together, or the checkpoint has parts that jaxrecipes does not "
            "compute"
        )
    leaves: dict[str, jax.Array] = {}
    for path, row in rows.items():
        array = read_leaf(folder, tensors[row.huggingface], row, dtype)
        digest.update(f"{path} {array.dtype.name} {array.shape}".encode())
        digest.update(array.view(np.uint8).data)
        leaves[path] = jnp.asarray(array)
    return unflatten(leaves), tuple(tensors[name].name for name in unused)


def read_leaf(folder: Path, tensor: StoredTensor, row: EncoderTensor, dtype: Any) -> np.ndarray:
    """Reads one tensor as a canonical leaf.

    Args:
        folder: The checkpoint's, for messages.
        tensor: Where it is.
        row: What it should be.
        dtype: dtype of the leaf; None keeps the stored one.

    Returns:
        An array of `row.shape`.

    Raises:
        CheckpointError: It has another shape, holds NaN or infinity, or overflows in `dtype`.
    """
    if tensor.shape != row.stored_shape:
        raise CheckpointError(
            f"{folder}: tensor {tensor.name} has shape {list(tensor.shape)}; its config asks "
            f"for {list(row.stored_shape)}"
        )
    array = tensor.read()
    target = tensor.dtype if dtype is None else np.dtype(dtype)
    with np.errstate(over="ignore"):  # refused below, by name
        array = np.ascontiguousarray(array.T if row.transposed else array, dtype=target)
    if target.itemsize < tensor.dtype.itemsize:
        refuse_non_finite(array, f"tensor {tensor.name}, cast to {target.name},")
    return array


def _lower_case_first(tokenizer: PreTrainedTokenizerFast) -> None:
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    after = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *after])
