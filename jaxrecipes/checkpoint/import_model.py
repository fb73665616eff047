"""Checkpoint on disk -> canonical parameters, holding the weights in memory once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrecipes.checkpoint.config_reader import read_json
from jaxrecipes.checkpoint.gguf import gguf_config, gguf_tensors, open_reader
from jaxrecipes.checkpoint.model_config import parse_model_config
from jaxrecipes.checkpoint.names import INERT_TENSORS, TensorName, tensor_names
from jaxrecipes.checkpoint.reference import resolve_reference
from jaxrecipes.checkpoint.tensor_files import open_tensor_files, refuse_non_finite, shorten
from jaxrecipes.errors import CheckpointError
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.params.paths import Tree, flatten, unflatten


class Tensor(Protocol):
    """A tensor that is read when asked: of a safetensors or of a GGUF file."""

    @property
    def name(self) -> str:
        """Name in the file."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """The dtype of what `read` returns."""
        ...

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Reads the tensor or a part of it."""
        ...


@dataclass(frozen=True)
class Imported:
    """A checkpoint in memory.

    Attributes:
        config: What it computes.
        params: Canonical tree of jax arrays.
        source: The folder or .gguf file that it was read from.
        hf_config: Its `config.json`; made from the metadata where the source is a GGUF file.
    """

    config: ModelConfig
    params: Tree
    source: Path
    hf_config: dict[str, Any]


def import_checkpoint(
    reference: str | Path,
    *,
    dtype: Any = None,
    shardings: Tree | None = None,
) -> Imported:
    """Reads a model.

    One tensor at a time is read, checked, cast, transposed and put on its device, so that memory
    peaks at the weights plus the largest tensor.

    Args:
        reference: What `reference.resolve_reference` takes: folder, .gguf file, `package:<name>` or
            hub id.
        dtype: dtype of every leaf; None keeps the stored one (float32 for a GGUF file).
        shardings: Canonical tree of `jax.sharding.Sharding`. Each process then reads only the
            slices that its devices hold. None puts every leaf on the default device.

    Returns:
        The model.

    Raises:
        CheckpointError: The checkpoint is missing, damaged, of another shape than its config says,
            lacks tensors, has tensors that nothing would use, or holds NaN or infinity. Names the
            file and the tensors.
    """
    source = resolve_reference(reference)
    tensors: Mapping[str, Tensor]
    if source.is_file():
        reader = open_reader(source)
        hf_config = gguf_config(reader, source)
        config = parse_model_config(hf_config, where=str(source))
        tensors = gguf_tensors(reader, source, config)
        del reader  # it holds the parsed vocabulary
        rows = tensor_names(config)
        names = {path: row.gguf for path, row in rows.items()}
    else:
        hf_config = read_json(source / "config.json")
        config = parse_model_config(hf_config, where=str(source / "config.json"))
        tensors = open_tensor_files(source)
        rows = tensor_names(config)
        names = {path: row.huggingface for path, row in rows.items()}
    _refuse_wrong_tensors(source, config, rows, names, tensors)
    placements = None if shardings is None else flatten(shardings)
    leaves: dict[str, jax.Array] = {}
    for path, row in rows.items():
        if placements is not None and path not in placements:
            raise CheckpointError(f"shardings has no entry for parameter {path}")
        placement = None if placements is None else placements[path]
        leaves[path] = _load(tensors[names[path]], row, dtype, placement)
    return Imported(config, unflatten(leaves), source, hf_config)


def _refuse_wrong_tensors(
    source: Path,
    config: ModelConfig,
    rows: Mapping[str, TensorName],
    names: Mapping[str, str],
    tensors: Mapping[str, Tensor],
) -> None:
    missing = sorted(name for name in names.values() if name not in tensors)
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} tensors that its config asks for: {shorten(missing)}"
        )
    used = set(names.values())
    spare = sorted(
        name for name in tensors if name not in used and not INERT_TENSORS.fullmatch(name)
    )
    if config.tie_embeddings:
        spare = _without_tied_head(source, spare, tensors)
    if spare:
        raise CheckpointError(
            f"{source} has {len(spare)} tensors that a {config.family} model of {config.num_layers}"
            f" layers does not use: {shorten(spare)}. The config and the weights do not belong "
            f"together, or the checkpoint has parts that jaxrecipes does not compute"
        )
    for path, name in names.items():
        shape = rows[path].stored_shape
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{source}: tensor {name} has shape {list(tensors[name].shape)}; its config asks "
                f"for {list(shape)}"
            )


def _without_tied_head(source: Path, spare: list[str], tensors: Mapping[str, Tensor]) -> list[str]:
    """Drops a head from the unused tensors when it is a copy of the embedding, as it should be."""
    for head, table in (
        ("lm_head.weight", "model.embed_tokens.weight"),
        ("output.weight", "token_embd.weight"),
    ):
        if head in spare:
            if not np.array_equal(tensors[head].read(), tensors[table].read()):
                raise CheckpointError(
                    f"{source}: key 'tie_word_embeddings' is true, but {head} differs from {table};"
                    f" set the key to false in config.json to keep the head"
                )
            spare = [name for name in spare if name != head]
    return spare


def _load(tensor: Tensor, row: TensorName, dtype: Any, placement: Any) -> jax.Array:
    target = tensor.dtype if dtype is None else np.dtype(dtype)
    parts: dict[Any, np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or ()
        # Replicas on several devices ask for the same part.
        key = tuple((axis.start, axis.stop, axis.step) for axis in index)
        if key not in parts:
            array = tensor.read(index[::-1] if row.transposed else index)
            if row.transposed:
                array = array.T
            with np.errstate(over="ignore"):  # refused below, by name
                array = np.ascontiguousarray(array, dtype=target)
            if target.itemsize < tensor.dtype.itemsize:
                # float16 cannot hold what float32 and bfloat16 can.
                refuse_non_finite(array, f"tensor {tensor.name}, cast to {target.name},")
            parts[key] = array
        return parts[key]

    if placement is None:
        return jnp.asarray(part(()))
    return jax.make_array_from_callback(row.shape, placement, part)
