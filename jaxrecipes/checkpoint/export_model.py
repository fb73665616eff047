"""Canonical parameters -> a Hugging Face folder that `transformers` loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jaxrecipes.checkpoint.import_model import import_checkpoint
from jaxrecipes.checkpoint.model_config_write import huggingface_config, write_model_config
from jaxrecipes.checkpoint.names import tensor_names
from jaxrecipes.checkpoint.tensor_files import INDEX_FILE, SINGLE_FILE, refuse_non_finite, shorten
from jaxrecipes.checkpoint.tokenizer import GENERATION_FILE, copy_tokenizer, write_chat_template
from jaxrecipes.durable import replace_folder, synchronise
from jaxrecipes.errors import CheckpointError
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import hidden_states, logits
from jaxrecipes.params.paths import Tree, flatten

_DTYPES = ("float32", "bfloat16", "float16")
_PROBE_ROWS, _PROBE_LENGTH = 2, 16


class TensorRow(Protocol):
    """What writing needs to know of a tensor: its name, its form, and the leaf's shape."""

    @property
    def huggingface(self) -> str:
        """Name in the files."""
        ...

    @property
    def transposed(self) -> bool:
        """The files hold the transposed matrix."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the canonical leaf."""
        ...


def export_checkpoint(
    folder: str | Path,
    config: ModelConfig,
    params: Tree,
    *,
    tokenizer_source: str | Path | None,
    hf_config: Mapping[str, Any] | None,
    model_card: str,
    chat_template: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    dtype: Any = None,
    verify: bool = True,
) -> Path:
    """Writes a checkpoint.

    Everything goes to a hidden folder beside `folder`, is flushed to disk, read back and compared,
    and only then renamed: `folder` is either absent, the earlier export, or complete.

    Args:
        folder: Where to; created. An earlier export there is replaced.
        config: The model.
        params: Canonical tree, fully addressable by this process.
        tokenizer_source: Where tokenizer, chat template and generation settings are copied from
            (folder, .gguf file, `package:<name>`, hub id); None writes none.
        hf_config: `config.json` of the checkpoint that `params` came from, whose keys are kept;
            None makes a new one.
        model_card: Markdown, written as README.md.
        chat_template: Jinja that replaces the template of `tokenizer_source`; None keeps that.
        max_shard_bytes: Weights beyond this go into several files with an index.
        dtype: dtype of the written weights; None keeps each leaf's.
        verify: Read the folder back, compare every tensor and the logits of a probe batch.

    Returns:
        `folder`.

    Raises:
        CheckpointError: `params` does not fit `config` or holds NaN or infinity, `folder` holds
            something else, the disk is full or not writable, or what was read back differs.
    """
    folder = Path(folder).absolute()
    rows = tensor_names(config)
    leaves = flatten(params)
    refuse_wrong_leaves(rows, leaves)
    values = huggingface_config(config, hf_config)
    with new_folder(folder) as partial:
        write_weights(partial, rows, leaves, dtype, max_shard_bytes)
        write_model_config(config, partial, values, dtype=dtype_name(leaves, dtype))
        (partial / "README.md").write_text(model_card, encoding="utf-8")
        if tokenizer_source is not None:
            copy_tokenizer(tokenizer_source, partial)
        if chat_template is not None:
            write_chat_template(chat_template, partial)
        if not (partial / GENERATION_FILE).exists():
            _write_generation_settings(partial, values)
        if verify:
            _compare(partial, config, params, dtype)
    return folder


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Gives a hidden folder to write to, which is flushed and becomes `folder` at the end.

    Args:
        folder: Absolute path; absent, empty, or an earlier checkpoint, which is replaced.

    Yields:
        The folder to write to; it is gone afterwards, also after an error.

    Raises:
        CheckpointError: `folder` holds something else, or the disk is full or not writable.
    """
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / "config.json").exists())
    ):
        raise CheckpointError(
            f"{folder} exists and is not a checkpoint; nothing was written. Choose another folder"
        )
    partial = folder.parent / f".{folder.name}.partial"
    try:
        if partial.exists():
            shutil.rmtree(partial)  # left by an export that was killed
        partial.mkdir(parents=True)
        yield partial
        for path in [*partial.rglob("*"), partial]:
            synchronise(path)
        replace_folder(partial, folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder} could not be written: {error.strerror or error}; free space or choose "
            f"another folder. Nothing was changed there"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_wrong_leaves(rows: Mapping[str, TensorRow], leaves: Mapping[str, Any]) -> None:
    """Refuses parameters that are not those of a table of tensors.

    Args:
        rows: Canonical path -> tensor.
        leaves: Canonical path -> leaf.

    Raises:
        CheckpointError: Names what is missing, not expected, of another shape, or on other hosts.
    """
    missing = sorted(set(rows) - set(leaves))
    spare = sorted(set(leaves) - set(rows))
    if missing or spare:
        raise CheckpointError(
            "the parameters do not fit the config:"
            + (f" missing {shorten(missing)}." if missing else "")
            + (f" Not expected: {shorten(spare)}." if spare else "")
            + " A runtime layout must be turned into the canonical tree first"
        )
    for path, row in rows.items():
        leaf = leaves[path]
        if tuple(leaf.shape) != row.shape:
            raise CheckpointError(
                f"parameter {path} has shape {list(leaf.shape)}; the config asks for "
                f"{list(row.shape)}"
            )
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise CheckpointError(
                f"parameter {path} is spread over several hosts; gather it "
                f"(jax.experimental.multihost_utils.process_allgather) before the export"
            )


def write_weights(
    folder: Path,
    rows: Mapping[str, TensorRow],
    leaves: Mapping[str, Any],
    dtype: Any,
    max_shard_bytes: int,
) -> None:
    """Writes safetensors files, with an index where there are several.

    Args:
        folder: An existing folder.
        rows: Canonical path -> tensor.
        leaves: Canonical path -> leaf.
        dtype: dtype of the written weights; None keeps each leaf's.
        max_shard_bytes: Weights beyond this go into another file.

    Raises:
        CheckpointError: A leaf holds NaN or infinity, or a file cannot be written.
    """

    def size(path: str) -> int:
        kind = np.dtype(leaves[path].dtype if dtype is None else dtype)
        return leaves[path].size * kind.itemsize

    shards: list[list[str]] = [[]]
    filled = 0
    for path in rows:
        if shards[-1] and filled + size(path) > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(path)
        filled += size(path)
    weight_map: dict[str, str] = {}
    for number, paths in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        name = SINGLE_FILE if len(shards) == 1 else name
        tensors = {
            rows[path].huggingface: _stored(path, rows[path], leaves[path], dtype) for path in paths
        }
        try:
            save_file(tensors, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise CheckpointError(
                f"{folder / name} could not be written: {error}; is the disk full?"
            ) from None
        # safetensors creates files that only their owner may read.
        (folder / name).chmod(folder.stat().st_mode & 0o666)
        weight_map.update({tensor: name for tensor in tensors})
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(size(path) for path in rows)},
            "weight_map": weight_map,
        }
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _stored(path: str, row: TensorRow, leaf: Any, dtype: Any) -> np.ndarray:
    array = np.asarray(leaf if dtype is None else leaf.astype(dtype))
    refuse_non_finite(array, f"parameter {path}")
    return np.ascontiguousarray(array.T if row.transposed else array)


def dtype_name(leaves: Mapping[str, Any], dtype: Any) -> str:
    """Returns the dtype that `config.json` should name.

    Raises:
        CheckpointError: Weights of this dtype cannot be exported.
    """
    # Where leaves differ, transformers must load with the widest to lose nothing.
    kinds = {np.dtype(leaf.dtype) for leaf in leaves.values()} if dtype is None else {dtype}
    name = np.dtype(jnp.result_type(*kinds)).name
    if name not in _DTYPES:
        raise CheckpointError(f"weights of dtype {name} cannot be exported; use {_DTYPES}")
    return name


def _write_generation_settings(folder: Path, values: Mapping[str, Any]) -> None:
    settings = {
        key: values[key]
        for key in ("bos_token_id", "eos_token_id", "pad_token_id")
        if values.get(key) is not None
    }
    text = json.dumps(settings, indent=2) + "\n"
    (folder / GENERATION_FILE).write_text(text, encoding="utf-8")


def _compare(folder: Path, config: ModelConfig, params: Tree, dtype: Any) -> None:
    """Reads a folder back and compares it with what should be in it."""
    shardings = None
    if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params)):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    again = import_checkpoint(folder, shardings=shardings)
    if again.config != config:
        raise CheckpointError(f"{folder}: config.json reads back as {again.config}")
    written = flatten(again.params)
    for path, leaf in flatten(params).items():
        expected = np.asarray(leaf if dtype is None else leaf.astype(dtype))
        if not np.array_equal(np.asarray(written[path]), expected):
            raise CheckpointError(f"{folder}: parameter {path} reads back with other values")
    if dtype is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    first, second = probe_logits(config, params), probe_logits(config, again.params)
    difference = float(np.max(np.abs(first - second)))
    # Equal weights give equal logits; the tolerance is for kernels that sum in a varying order.
    if not difference <= 1e-4 * max(1.0, float(np.max(np.abs(first)))):
        raise CheckpointError(
            f"{folder}: the logits of the exported model differ from the model's by {difference}"
        )


def probe_logits(config: ModelConfig, params: Tree) -> np.ndarray:
    """Computes the logits of a fixed small batch in float32.

    Args:
        config: The model.
        params: Canonical tree.

    Returns:
        float32 [2, 16, vocab_size].
    """
    count = _PROBE_ROWS * _PROBE_LENGTH
    token_ids = (np.arange(count, dtype=np.int64) * 7919 + 11) % config.vocab_size
    shape = (_PROBE_ROWS, _PROBE_LENGTH)
    return np.asarray(_logits(config, params, token_ids.reshape(shape).astype(np.int32)))


@partial(jax.jit, static_argnums=0)
def _logits(config: ModelConfig, params: Tree, token_ids: jax.Array) -> jax.Array:
    # Compiled once a model shape, however many arms are exported.
    states = hidden_states(
        config,
        params,
        token_ids,
        jnp.ones_like(token_ids),
        jnp.broadcast_to(jnp.arange(token_ids.shape[1], dtype=jnp.int32), token_ids.shape),
        compute_dtype=jnp.float32,
    )
    return logits(config, params, states)
