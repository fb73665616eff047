"""A delta as one safetensors file: the new blocks, and which base they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxrecipes.errors import CheckpointError
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.params.delta import Delta, extract_delta
from jaxrecipes.params.paths import flatten, unflatten

DELTA_FILE = "new_blocks.safetensors"
_HEADER = "jaxrecipes_delta"


def write_delta(path: Path, config: ModelConfig, params: Mapping[str, Any]) -> None:
    """Writes the new blocks of an expanded model.

    Args:
        path: The file.
        config: The expanded model.
        params: Its canonical tree.

    Raises:
        ConfigError: The model has no new blocks.
        CheckpointError: The file cannot be written.
    """
    delta = extract_delta(config, params)
    header = {
        "positions": delta.positions,
        "layer_types": delta.layer_types,
        "base_fingerprint": delta.base_fingerprint,
    }
    arrays = {name: np.asarray(leaf) for name, leaf in flatten(delta.blocks).items()}
    try:
        save_file(arrays, path, metadata={_HEADER: json.dumps(header)})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} could not be written: {error}") from error


def read_delta(path: Path) -> Delta:
    """Reads a delta back.

    Args:
        path: A file that `write_delta` wrote.

    Returns:
        The delta; `params.merge_delta` puts it on its base.

    Raises:
        CheckpointError: The file is missing, damaged, or something else.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "null"))
            blocks = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a delta: {error}") from error
    if header is None:
        raise CheckpointError(
            f"{path} is no delta: its header has no {_HEADER!r}; give the {DELTA_FILE} of a run"
        )
    return Delta(
        tuple(header["positions"]),
        tuple(header["layer_types"]),
        header["base_fingerprint"],
        unflatten(blocks),
    )
