"""Low-rank adapters as a tree of their own, beside a base that stays as it is.

The adapter tree has the leaves of `jaxrecipes.models.dense` at the canonical paths of the kernels
that they change, and `embedding/token_delta` with `embedding/token_ids` for single trained tokens.
`combine(adapters, base)` is the tree to train and to run; n adapters of one base are n small trees.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import embedding_table, hidden_states, logits
from jaxrecipes.models.dense import adapted_kernel, column_norms
from jaxrecipes.params.lora_init import start_adapter, start_embedding
from jaxrecipes.params.lora_options import RESIDUAL_INITS, AdapterOptions
from jaxrecipes.params.lora_targets import Adapter, Selection
from jaxrecipes.params.partition import combine, partition
from jaxrecipes.params.paths import Tree, flatten, unflatten
from jaxrecipes.params.surgery import Rules

# Names of the leaves of an adapter tree.
TRAINED_LEAVES = ("lora_a", "lora_b", "lora_magnitude", "token_delta")
FROZEN_LEAVES = ("lora_scale", "lora_dropout", "lora_salt", "token_ids")


@dataclass(frozen=True)
class Adapted:
    """Adapters and the base that they belong to.

    Attributes:
        adapters: The adapter tree: float32, but for `token_ids` and `lora_salt`.
        base: The base's canonical tree; the leaves that no adapter took anything from are the
            given arrays.
        initial: `lora_a` and `lora_b` of the adapters that took a part of their kernel ("pissa",
            "olora"), which an export relative to the given base subtracts; else empty.
    """

    adapters: Tree
    base: Tree
    initial: Tree


def build_adapters(
    params: Mapping[str, Any], options: AdapterOptions, selection: Selection, key: jax.Array
) -> Adapted:
    """Makes new adapters; a pure function that can be traced.

    Args:
        params: Canonical tree of the base, encoder or decoder; not changed.
        options: What the adapters are.
        selection: Where, from `lora_targets.select_modules`.
        key: PRNG key. What a module gets depends on it and the module's path alone.

    Returns:
        The adapters and their base; together they compute what the base computed.
    """
    base = flatten(params)
    adapters: dict[str, Any] = {}
    initial: dict[str, Any] = {}
    for adapter in selection.adapters:
        path = adapter.module.path
        salt = zlib.crc32(path.encode())
        own_key = jax.random.fold_in(key, salt)
        weight_path = weight_of(adapter)
        weight = jnp.asarray(base[weight_path])
        if adapter.module.kind == "embedding":
            start = start_embedding(weight, adapter.rank, own_key)
        else:
            start = start_adapter(weight, adapter.rank, adapter.scale, options.init, own_key)
            if options.init in RESIDUAL_INITS:
                base[weight_path] = start.residual
                initial |= {f"{path}/lora_a": start.lora_a, f"{path}/lora_b": start.lora_b}
        leaves = {
            "lora_a": start.lora_a,
            "lora_b": start.lora_b,
            "lora_scale": jnp.asarray(adapter.scale, jnp.float32),
        }
        if options.dropout and adapter.module.kind == "linear":
            leaves["lora_dropout"] = jnp.asarray(options.dropout, jnp.float32)
            leaves["lora_salt"] = jnp.asarray(salt, jnp.uint32)
        if options.use_dora:
            leaves["lora_magnitude"] = column_norms(adapted_kernel(start.residual, leaves))
        adapters |= {f"{path}/{name}": leaf for name, leaf in leaves.items()}
    if options.trainable_tokens:
        ids = jnp.asarray(options.trainable_tokens, jnp.int32)
        table = jnp.asarray(base["embedding/table"])
        adapters["embedding/token_delta"] = table[ids].astype(jnp.float32)
        adapters["embedding/token_ids"] = ids
    return Adapted(unflatten(adapters), unflatten(base), unflatten(initial))


def weight_of(adapter: Adapter) -> str:
    """Returns the canonical path of the weight that an adapter stands beside."""
    name = "table" if adapter.module.kind == "embedding" else "kernel"
    return f"{adapter.module.path}/{name}"


def adapter_rules(selection: Selection) -> Rules:
    """Returns the rules of what trains: adapters, modules that train whole, nothing else."""
    names = ["lora_a", "lora_b"] + (["lora_magnitude"] if selection.use_dora else [])
    rules = [(rf".*/{name}", True) for name in names]
    if selection.tokens[0]:
        rules.append((r"embedding/token_delta", True))
    rules += [(re.escape(path), True) for path in selection.saved_leaves]
    return [*rules, (".*", False)]


def keeps_dtype(path: str) -> bool:
    """Whether a leaf is a frozen part of an adapter, which is never cast to a compute dtype."""
    return path.rpartition("/")[2] in FROZEN_LEAVES


def adapter_ranks(params: Mapping[str, Any]) -> dict[str, int]:
    """Returns the rank of every adapter in a canonical tree, by the path of its folder."""
    return {
        path.removesuffix("/lora_a"): leaf.shape[1]
        for path, leaf in flatten(params).items()
        if path.endswith("/lora_a")
    }


def split_adapters(params: Mapping[str, Any]) -> tuple[Tree, Tree]:
    """Splits a tree into its adapters and its base; the inverse of `combine`."""
    return partition(params, is_adapter_leaf)


def is_adapter_leaf(path: str) -> bool:
    """Whether a path is that of an adapter's leaf, trained or frozen."""
    return path.rpartition("/")[2] in (*TRAINED_LEAVES, *FROZEN_LEAVES)


@dataclass(frozen=True)
class MergeDrift:
    """What rounding did to a merge.

    Attributes:
        max_error: Largest absolute difference of a stored weight to the exact one.
        relative_error: Norm of all differences, divided by the norm of all that was merged. At 1 as
            much was lost as was learned.
        worst: Path of the leaf with the largest difference.
        max_logit_error: Largest absolute difference of a logit before and after the merge, on the
            probe; None without one.
    """

    max_error: float
    relative_error: float
    worst: str
    max_logit_error: float | None


@dataclass(frozen=True)
class Merged:
    """A model with its adapters inside.

    Attributes:
        config: The model; its head is no longer tied where the embedding had an adapter, which a
            tied head does not have.
        params: Its canonical tree, without adapters.
        drift: What was lost.
    """

    config: ModelConfig
    params: Tree
    drift: MergeDrift


def merge_adapters(
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    dtype: Any = None,
    probe: np.ndarray | None = None,
) -> Merged:
    """Adds adapters to their kernels, in float32, and measures what storing the sum loses.

    Args:
        config: The model.
        params: Canonical tree with adapters.
        dtype: dtype of the merged leaves; None keeps each leaf's. bfloat16 has 8 bits: small
            updates drown in it, which `MergeDrift.relative_error` shows.
        probe: int32 [batch, length] token ids whose logits are compared, computed in float32.

    Returns:
        The merged model.
    """
    adapters, base = split_adapters(params)
    leaves, changes = flatten(base), flatten(adapters)
    merged = dict(leaves)
    errors: dict[str, float] = {}
    lost = learned = 0.0
    for path in changes:
        folder, _, name = path.rpartition("/")
        if name not in ("lora_a", "token_delta"):
            continue
        weight_path = f"{folder}/table" if folder == "embedding" else f"{folder}/kernel"
        weight = jnp.asarray(leaves[weight_path])
        if name == "lora_a":
            exact = merged_kernel(weight, adapters_at(adapters, folder))
        else:
            exact = embedding_table(
                {"embedding": {**adapters["embedding"], "table": weight.astype(jnp.float32)}}
            )
        stored = exact.astype(weight.dtype if dtype is None else dtype)
        error = stored.astype(jnp.float32) - exact
        errors[weight_path] = float(jnp.max(jnp.abs(error)))
        lost += float(jnp.sum(jnp.square(error)))
        learned += float(jnp.sum(jnp.square(exact - weight.astype(jnp.float32))))
        merged[weight_path] = stored
    if config.tie_embeddings and "embedding/lora_a" in changes:
        config = replace(config, tie_embeddings=False)
        merged["head/kernel"] = jnp.asarray(leaves["embedding/table"]).T
    worst = max(errors, key=lambda path: errors[path])
    tree = unflatten(merged)
    change = None
    if probe is not None:
        before_config = replace(config, tie_embeddings="head/kernel" not in leaves)
        before = _probe_logits(before_config, combine(adapters, base), probe)
        after = _probe_logits(config, tree, probe)
        change = float(jnp.max(jnp.abs(before - after)))
    relative = float(np.sqrt(lost / learned)) if learned else 0.0
    return Merged(config, tree, MergeDrift(errors[worst], relative, worst, change))


def describe_drift(drift: MergeDrift) -> str:
    """Says in one line what a merge lost."""
    return (
        f"merged; rounding lost {drift.relative_error:.2%} of what the adapters learned (norm), at "
        f"most {drift.max_error:.2g} of a weight ({drift.worst})"
    )


def adapters_at(tree: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Returns the subtree at a path."""
    for part in path.split("/"):
        tree = tree[part]
    return tree


def merged_kernel(kernel: jax.Array, leaves: Mapping[str, Any]) -> jax.Array:
    """Returns in float32 the kernel that alone computes what kernel and adapter compute.

    Args:
        kernel: [inputs, outputs].
        leaves: The adapter's leaves beside it.
    """
    changed = adapted_kernel(kernel, leaves)
    if "lora_magnitude" in leaves:
        changed = changed * (leaves["lora_magnitude"] / column_norms(changed))
    return changed


def _probe_logits(config: ModelConfig, params: Tree, token_ids: np.ndarray) -> jax.Array:
    segment_ids = jnp.ones(token_ids.shape, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(token_ids.shape[1], dtype=jnp.int32), token_ids.shape)
    ids = jnp.asarray(token_ids, jnp.int32)
    states = hidden_states(config, params, ids, segment_ids, positions)
    return logits(config, params, states)
