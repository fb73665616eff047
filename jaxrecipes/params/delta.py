"""A delta: what block expansion trained, without the base that it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrecipes.errors import CheckpointError
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.params.expansion import switch_off_new_blocks
from jaxrecipes.params.paths import Tree, flatten


@dataclass(frozen=True)
class Delta:
    """The new blocks of an expanded model.

    Attributes:
        positions: Indices of the new blocks in the expanded model, increasing.
        layer_types: Attention type of each new block.
        base_fingerprint: `fingerprint` of the base that the blocks were trained on.
        blocks: Parameters of the new blocks, `{"0": {...}, …}` in the order of `positions`.
    """

    positions: tuple[int, ...]
    layer_types: tuple[str, ...]
    base_fingerprint: str
    blocks: Tree


def fingerprint(params: Mapping[str, Any]) -> str:
    """Returns a SHA-256 over every leaf's path, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(params).items()):
        array = np.ascontiguousarray(np.asarray(leaf))
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def extract_delta(config: ModelConfig, params: Mapping[str, Any]) -> Delta:
    """Takes the new blocks out of an expanded model whose other leaves are the base's.

    Args:
        config: The expanded model.
        params: Its canonical tree.

    Returns:
        The delta.

    Raises:
        ConfigError: The model has no new blocks.
    """
    _, base = switch_off_new_blocks(config, params)
    blocks = {
        str(number): params["layers"][str(index)] for number, index in enumerate(config.new_blocks)
    }
    types = tuple(config.layer_types[index] for index in config.new_blocks)
    return Delta(config.new_blocks, types, fingerprint(base), blocks)


def merge_delta(
    config: ModelConfig, params: Mapping[str, Any], delta: Delta
) -> tuple[ModelConfig, Tree]:
    """Puts new blocks back on top of their base.

    Args:
        config: The base.
        params: Its canonical tree.
        delta: From `extract_delta`.

    Returns:
        Configuration and canonical tree of the expanded model.

    Raises:
        CheckpointError: The base is not the one that the delta was trained on.
    """
    found = fingerprint(params)
    if found != delta.base_fingerprint:
        raise CheckpointError(
            f"the delta was trained on a base with fingerprint {delta.base_fingerprint[:12]}, this "
            f"one has {found[:12]}; merge it into the very checkpoint (and dtype) it was made from"
        )
    layers: Tree = {}
    types: list[str] = []
    inherited = iter(range(config.num_layers))
    for index in range(config.num_layers + len(delta.positions)):
        if index in delta.positions:
            number = delta.positions.index(index)
            layers[str(index)] = delta.blocks[str(number)]
            types.append(delta.layer_types[number])
        else:
            source = next(inherited)
            layers[str(index)] = params["layers"][str(source)]
            types.append(config.layer_types[source])
    expanded = config.with_layers(tuple(types), delta.positions)
    return expanded, {**params, "layers": layers}
