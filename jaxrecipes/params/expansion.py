"""Block expansion (LLaMA Pro, arXiv 2401.02415, §3.2), as a function from tree to tree.

A new block is a copy of the block below it whose attention output and feed-forward output are
zero. With pre-norm residual blocks it is then exactly the identity, so the expanded model computes
the base function until the first update. In families with a second norm after each sublayer
(Gemma 2 and 3) that norm's scale is made to multiply by zero instead: the projections could be
zeroed as well, but the derivative of RMSNorm at zero is scale / sqrt(epsilon), up to a thousand,
and would blow up the first gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxrecipes.errors import ConfigError
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import init_params
from jaxrecipes.params.paths import Tree, flatten, unflatten

Placement = Literal["interleaved", "prefix", "suffix"] | Sequence[int]
BlockInit = Literal["identity", "copy", "random"]


@dataclass(frozen=True)
class Expansion:
    """What an expansion made.

    Attributes:
        config: The expanded model; `config.new_blocks` are the inserted indices.
        params: Its canonical tree. Leaves of inherited blocks are the base's own arrays.
        positions: Indices of the new blocks in the expanded model, increasing.
        sources: For each new block the index, in the base, of the block that it was made from.
    """

    config: ModelConfig
    params: Tree
    positions: tuple[int, ...]
    sources: tuple[int, ...]


def block_order(
    num_layers: int, new_blocks: int, placement: Placement, per_group: int
) -> list[tuple[int, bool]]:
    """Lists the blocks of the expanded model from the bottom up.

    Args:
        num_layers: Depth of the base.
        new_blocks: How many blocks to insert.
        placement: "interleaved": the base is cut into `new_blocks / per_group` groups of
            consecutive blocks, as equal as possible, and copies of the top `per_group` blocks of a
            group are put above it. "prefix" and "suffix": copies of the lowest (highest) blocks
            below (above) all others. A list: the indices that the new blocks have in the expanded
            model, each made from the base block below it.
        per_group: New blocks a group, the paper's P.

    Returns:
        Pairs (index in the base, whether it is a new block made from it).

    Raises:
        ConfigError: The numbers do not fit together.
    """
    if new_blocks < 1:
        raise ConfigError(f"new_blocks is {new_blocks}; block expansion inserts at least one block")
    base = [(index, False) for index in range(num_layers)]
    if not isinstance(placement, str):
        return _listed_order(num_layers, new_blocks, list(placement))
    if placement in ("prefix", "suffix"):
        if new_blocks > num_layers:
            raise ConfigError(
                f"new_blocks is {new_blocks}, but the model has only {num_layers} blocks to copy"
            )
        if placement == "prefix":
            return [(index, True) for index in range(new_blocks)] + base
        return base + [(index, True) for index in range(num_layers - new_blocks, num_layers)]
    if placement != "interleaved":
        raise ConfigError(
            f"placement is {placement!r}; expected interleaved, prefix, suffix or a list of indices"
        )
    if per_group < 1 or new_blocks % per_group:
        raise ConfigError(
            f"new_blocks ({new_blocks}) must be a multiple of per_group ({per_group}): each group "
            "of blocks gets the same number of new ones"
        )
    groups = new_blocks // per_group
    if groups * per_group > num_layers:
        raise ConfigError(
            f"{groups} groups of at least {per_group} blocks need {groups * per_group} blocks; the "
            f"model has {num_layers}; use fewer new_blocks"
        )
    order: list[tuple[int, bool]] = []
    bounds = [group * num_layers // groups for group in range(groups + 1)]
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        order += base[low:high]
        order += [(index, True) for index in range(high - per_group, high)]
    return order


def _listed_order(num_layers: int, new_blocks: int, positions: list[int]) -> list[tuple[int, bool]]:
    total = num_layers + len(positions)
    if len(positions) != new_blocks:
        raise ConfigError(
            f"placement lists {len(positions)} positions, but new_blocks is {new_blocks}"
        )
    if positions != sorted(set(positions)) or any(not 0 <= at < total for at in positions):
        raise ConfigError(
            f"placement is {positions}; expected increasing indices of the expanded model, "
            f"0 to {total - 1}"
        )
    order: list[tuple[int, bool]] = []
    below = -1
    for index in range(total):
        if index in positions:
            order.append((max(below, 0), True))
        else:
            below += 1
            order.append((below, False))
    return order


def expand_blocks(
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    new_blocks: int,
    placement: Placement = "interleaved",
    per_group: int = 1,
    init: BlockInit = "identity",
    key: jax.Array | None = None,
) -> Expansion:
    """Inserts blocks into a decoder.

    Per-layer properties (the attention type) are copied with the block. A model that was expanded
    before can be expanded again: the earlier blocks then count as inherited.

    Args:
        config: The base.
        params: Its canonical tree; not changed.
        new_blocks: How many blocks to insert.
        placement: Where, see `block_order`.
        per_group: New blocks a group for the interleaved placement.
        init: "identity" as in the paper; "copy" without zeroing, "random" drawn anew: controls,
            both change the function at once.
        key: PRNG key, for "random" only.

    Returns:
        The expanded model.

    Raises:
        ConfigError: The request does not fit the model, or `key` is missing.
    """
    order = block_order(config.num_layers, new_blocks, placement, per_group)
    positions = tuple(index for index, (_, is_new) in enumerate(order) if is_new)
    sources = tuple(source for source, is_new in order if is_new)
    expanded_config = config.with_layers(
        tuple(config.layer_types[source] for source, _ in order), positions
    )
    drawn: Tree = {}
    if init == "random":
        if key is None:
            raise ConfigError("init 'random' draws the new blocks and needs a key")
        drawn = init_params(
            config.with_layers(tuple(config.layer_types[source] for source in sources), ()), key
        )["layers"]
    elif init not in ("identity", "copy"):
        raise ConfigError(f"init is {init!r}; expected identity, copy or random")

    layers: Tree = {}
    for index, (source, is_new) in enumerate(order):
        block = params["layers"][str(source)]
        if is_new:
            # Arrays of its own: training gives the new block's buffers away, not its source's.
            block = jax.tree.map(lambda leaf: leaf.copy(), block)
        if is_new and init == "identity":
            block = identity_block(config, block)
        elif is_new and init == "random":
            number = positions.index(index)
            block = jax.tree.map(lambda new, old: new.astype(old.dtype), drawn[str(number)], block)
        layers[str(index)] = block
    expanded = {**params, "layers": layers}
    return Expansion(expanded_config, expanded, positions, sources)


def zeroed_leaves(config: ModelConfig) -> dict[str, float]:
    """Returns the leaves of a block, and the constant to set them to, that make it the identity."""
    if config.sandwich_norms:
        # Where the norm multiplies by 1 + scale, minus one is what multiplies by zero.
        value = -1.0 if config.norm_plus_one else 0.0
        return {"attention_post_norm/scale": value, "mlp_post_norm/scale": value}
    leaves = {"attention/output/kernel": 0.0, "mlp/down/kernel": 0.0}
    if config.attention_output_bias:
        leaves["attention/output/bias"] = 0.0
    if config.mlp_bias:
        leaves["mlp/down/bias"] = 0.0
    return leaves


def identity_block(config: ModelConfig, block: Mapping[str, Any]) -> Tree:
    """Returns a copy of a block that maps every input to itself.

    Args:
        config: The model.
        block: Parameters of one layer.

    Returns:
        The block with `zeroed_leaves` set; all other leaves are the given arrays.
    """
    leaves = flatten(block)
    for path, value in zeroed_leaves(config).items():
        leaf = leaves[path]
        # While a program is traced, a NumPy array would be made, and become a part of the program:
        # of a 70B model's twenty new blocks 22 GiB.
        full = jnp.full if isinstance(leaf, Tracer) else np.full
        leaves[path] = full(leaf.shape, value, leaf.dtype)
    return unflatten(leaves)


def switch_off_new_blocks(
    config: ModelConfig, params: Mapping[str, Any]
) -> tuple[ModelConfig, Tree]:
    """Removes the inserted blocks, which gives the base function back whatever they learned.

    Args:
        config: An expanded model.
        params: Its canonical tree.

    Returns:
        Configuration and canonical tree of the base.

    Raises:
        ConfigError: The model has no new blocks.
    """
    if not config.new_blocks:
        raise ConfigError("the model has no new blocks: new_blocks is empty in its configuration")
    kept = [index for index in range(config.num_layers) if index not in config.new_blocks]
    layers = {str(number): params["layers"][str(index)] for number, index in enumerate(kept)}
    base = config.with_layers(tuple(config.layer_types[index] for index in kept), ())
    return base, {**params, "layers": layers}
