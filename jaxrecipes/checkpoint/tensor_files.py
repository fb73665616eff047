"""Reading tensors of safetensors files, one at a time or only a slice of one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxrecipes.checkpoint.config_reader import read_json
from jaxrecipes.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPES: dict[str, Any] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, not yet read.

    Attributes:
        name: Its name in the file.
        file: The safetensors file.
        shape: Its shape in the file.
        dtype: Its dtype in the file.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Reads the tensor, or the part of it that `index` selects.

        The file is opened anew each time: its pages leave this process's memory with the mapping,
        so that a whole import holds the weights once.

        Args:
            index: One slice for each axis, or nothing for the whole tensor.

        Returns:
            An array of the stored dtype.

        Raises:
            CheckpointError: The file cannot be read, or the part holds NaN or infinity.
        """
        try:
            with safe_open(self.file, framework="np") as file:
                if index:
                    array = np.asarray(file.get_slice(self.name)[index])
                else:
                    array = file.get_tensor(self.name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.file}: tensor {self.name} cannot be read: {error}"
            ) from None
        refuse_non_finite(array, f"{self.file}: tensor {self.name}")
        return array


def refuse_non_finite(array: np.ndarray, where: str) -> None:
    """Refuses weights with NaN or infinity.

    Args:
        array: Any floating dtype.
        where: File and tensor, for the message.

    Raises:
        CheckpointError: Names the tensor, the count and the first index.
    """
    bad = ~np.isfinite(array)
    if bad.any():
        first = tuple(int(axis) for axis in np.argwhere(bad)[0])
        raise CheckpointError(
            f"{where} has {int(bad.sum())} values that are NaN or infinite, the first at index "
            f"{first}; the checkpoint is damaged, or it overflowed when it was converted"
        )


def open_tensor_files(
    folder: Path, *, buffers: re.Pattern[str] | None = None
) -> dict[str, StoredTensor]:
    """Lists the tensors of a checkpoint folder without reading them.

    Args:
        folder: Has `model.safetensors`, or `model.safetensors.index.json` and its shards.
        buffers: Names, matched from the first to the last character, of tensors that are no weights
            and may have any dtype; they are left out.

    Returns:
        Tensor name -> the tensor.

    Raises:
        CheckpointError: There are no safetensors, a shard is missing, truncated or not the one that
            the index describes, a tensor has a dtype that is not floating point.
    """
    index = folder / INDEX_FILE
    if index.exists():
        return _open_shards(folder, index, buffers)
    if (folder / SINGLE_FILE).exists():
        return open_tensor_file(folder / SINGLE_FILE, buffers)
    others = sorted(path.name for path in folder.glob("*.bin"))
    hint = (
        f"; {others[0]} is a pickle, which is never read: convert it to safetensors first"
        if others
        else ""
    )
    raise CheckpointError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")


def _open_shards(
    folder: Path, index: Path, buffers: re.Pattern[str] | None
) -> dict[str, StoredTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise CheckpointError(f"{index}: key 'weight_map' is missing or empty")
    tensors: dict[str, StoredTensor] = {}
    for name in sorted({str(value) for value in weight_map.values()}):
        if Path(name).name != name:
            raise CheckpointError(f"{index}: shard {name!r} is not a plain file name")
        if not (folder / name).exists():
            raise CheckpointError(
                f"{folder / name} is missing, {index.name} lists it; is the download complete?"
            )
        for tensor in open_tensor_file(folder / name, buffers).values():
            if weight_map.get(tensor.name) != name:
                raise CheckpointError(
                    f"{folder / name} has tensor {tensor.name}, which {index.name} places in "
                    f"{weight_map.get(tensor.name)!r}; the files are of different checkpoints"
                )
            tensors[tensor.name] = tensor
    listed = {name for name in weight_map if buffers is None or not buffers.fullmatch(name)}
    absent = sorted(listed - set(tensors))
    if absent:
        raise CheckpointError(
            f"{index} lists tensors that its shards do not have: {shorten(absent)}"
        )
    return tensors


def open_tensor_file(path: Path, buffers: re.Pattern[str] | None = None) -> dict[str, StoredTensor]:
    """Lists the tensors of one file without reading them; see `open_tensor_files`."""
    tensors: dict[str, StoredTensor] = {}
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                if buffers is not None and buffers.fullmatch(name):
                    continue
                view = file.get_slice(name)
                kind = view.get_dtype()
                if kind not in _DTYPES:
                    raise CheckpointError(
                        f"{path}: tensor {name} has dtype {kind}; expected one of "
                        f"{', '.join(_DTYPES)}. Dequantise the checkpoint first"
                    )
                shape = tuple(view.get_shape())
                tensors[name] = StoredTensor(name, path, shape, np.dtype(_DTYPES[kind]))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) is not a complete safetensors file: {error}; "
            f"copy or download it again"
        ) from None
    return tensors


def shorten(names: list[str], limit: int = 8) -> str:
    """Joins names for a message, the first few and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
