"""Two tables: where each parameter leaf lives, and where activations live.

A rule names the mesh axes of each dimension of a leaf. Leaves of a run-time layout carry stacking
axes in front, which are never cut: a scan takes one layer at a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrecipes.errors import ConfigError
from jaxrecipes.sharding.mesh import BATCH_AXES, GATHERED_AXES

# The vocabulary is cut over every axis that cuts a state: its logits are computed where its rows
# are (`train/loss.py`), so neither the table nor its gradient ever exists as a whole.
VOCABULARY_AXES = (*GATHERED_AXES, "tensor")

# First match wins; a leaf that no rule matches is an error. Kernels are [inputs, outputs].
PARAMETER_RULES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    (r"embedding/table", (VOCABULARY_AXES, None)),
    (r"head/kernel", (None, VOCABULARY_AXES)),
    (r".*/(query|key|value|gate|up)/kernel", (GATHERED_AXES, "tensor")),
    (r".*/(output|down)/kernel", ("tensor", GATHERED_AXES)),
    (r".*/(query|key|value|gate|up)/bias", ("tensor",)),
    # A quantised kernel is cut as the kernel would be; its scales too, where the axes divide them.
    (r".*/(query|key|value|gate|up)/kernel_(int8|nf4|absmax)", (GATHERED_AXES, "tensor")),
    (r".*/(output|down)/kernel_(int8|nf4|absmax)", ("tensor", GATHERED_AXES)),
    (r".*/(query|key|value|gate|up)/kernel_scale", ("tensor",)),
    (r".*/kernel_(scale|absmax_scale)", (None,)),
    # Low-rank adapters follow the kernel that they stand beside; the rank is never cut.
    (r".*/(query|key|value|gate|up)/lora_a", (GATHERED_AXES, None)),
    (r".*/(query|key|value|gate|up)/lora_b", (None, "tensor")),
    (r".*/(output|down)/lora_a", ("tensor", None)),
    (r".*/(output|down)/lora_b", (None, GATHERED_AXES)),
    (r".*/(query|key|value|gate|up)/lora_magnitude", ("tensor",)),
    (r"(.*/(output|down)|embedding)/lora_magnitude", (None,)),
    (r".*/lora_(scale|dropout|salt)", ()),
    # The adapter of an embedding has as many rows as the table.
    (r"embedding/lora_a", (VOCABULARY_AXES, None)),
    (r"embedding/(lora_b|token_delta)", (None, None)),
    (r"embedding/token_ids", (None,)),
    (r".*/(scale|bias)", (None,)),
)

# Named points of the forward pass.
ACTIVATION_RULES: Mapping[str, PartitionSpec] = {
    "tokens": PartitionSpec(BATCH_AXES, "context"),  # [batch, length]
    "hidden_states": PartitionSpec(BATCH_AXES, "context", None),  # [batch, length, hidden_size]
    "heads": PartitionSpec(BATCH_AXES, "context", "tensor", None),  # [batch, length, heads, dim]
    "whole_row": PartitionSpec(BATCH_AXES, None, "tensor", None),  # keys and values of all tokens
    "mlp": PartitionSpec(BATCH_AXES, "context", "tensor"),  # [batch, length, intermediate_size]
}


def leaf_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns where a parameter leaf lives.

    Args:
        path: Canonical or run-time path, `layers/3/mlp/up/kernel` or `segments/0/1/mlp/up/kernel`.
        shape: Its shape, with stacking axes in front where the layout stacks.
        mesh: The mesh.

    Returns:
        The spec. A dimension that its axes do not divide is not cut: see `whole_leaves`.

    Raises:
        ConfigError: No rule matches the path.
    """
    dimensions = _dimensions(path)
    stacked = len(shape) - len(dimensions)
    cut = [
        axes if axes is not None and size % _axis_size(mesh, axes) == 0 else None
        for axes, size in zip(dimensions, shape[stacked:], strict=True)
    ]
    return PartitionSpec(*[None] * stacked, *cut)


def _dimensions(path: str) -> tuple[Any, ...]:
    for pattern, dimensions in PARAMETER_RULES:
        if re.fullmatch(pattern, path):
            return dimensions
    raise ConfigError(
        f"no sharding rule matches the leaf {path}; add one to PARAMETER_RULES in "
        "jaxrecipes/sharding/rules.py"
    )


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns the shardings of a parameter tree, canonical or run-time, whole or partial.

    Args:
        tree: Nested dicts of arrays or shapes.
        mesh: The mesh.

    Returns:
        The same tree of `NamedSharding`.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, leaf_spec(_name(path), leaf.shape, mesh)), tree
    )


def state_shardings(state: Any, parameters: Mapping[str, Any], mesh: Mesh) -> Any:
    """Returns the shardings of a training state: what mirrors a leaf lives where the leaf lives.

    Args:
        state: Any tree of arrays or shapes: trainable leaves, moments, counters.
        parameters: Path -> leaf of the trainable tree, for the shapes.
        mesh: The mesh.

    Returns:
        The same tree of `NamedSharding`. An array below a trainable leaf's path that has its shape,
        or below a canonical path that has its axes, is placed as the leaf; every other one (a
        counter, a factored moment) is on all devices.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        names = [part for entry in path if (part := _part(entry))]
        for start in range(len(names)):
            name = "/".join(names[start:])
            mirrors = name in parameters and parameters[name].shape == leaf.shape
            # Adafactor works on the canonical leaves, whatever the layout.
            canonical = name.startswith("layers/") and leaf.ndim == len(_dimensions(name))
            if mirrors or canonical:
                return NamedSharding(mesh, leaf_spec(name, leaf.shape, mesh))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, state)


def whole_leaves(tree: Any, mesh: Mesh) -> list[str]:
    """Lists matrices that their rule would cut but whose sizes the mesh does not divide.

    They are right but cost memory on every device, so a run says which they are.
    """
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = _name(path)
        wanted = _dimensions(name)
        got = leaf_spec(name, leaf.shape, mesh)[len(leaf.shape) - len(wanted) :]
        if any(
            axes is not None and _axis_size(mesh, axes) > 1 and kept is None
            for axes, kept in zip(wanted, got, strict=True)
        ):
            found.append(name)
    return found


def constrain(array: jax.Array, point: str, mesh: Mesh | None) -> jax.Array:
    """States where an activation lives; `point` is a row of `ACTIVATION_RULES`."""
    if mesh is None:
        return array
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, ACTIVATION_RULES[point]))


def gather_layer(params: Any, compute_dtype: Any, mesh: Mesh | None) -> Any:
    """Brings one layer's parameters together: cast first, then gathered, so that less travels.

    The gradient goes the same way back: summed over the devices and cut again in one collective.

    Args:
        params: One layer's tree, its leaves cut as `PARAMETER_RULES` say.
        compute_dtype: dtype that the layer computes in.
        mesh: The mesh; None changes nothing.

    Returns:
        The tree; a leaf that `GATHERED_AXES` cut is whole and in `compute_dtype` (a quantised one
        in its own), every other one is as it was.
    """

    def gather(path: Any, leaf: jax.Array) -> jax.Array:
        if mesh is None:
            return leaf
        cut = leaf_spec("layer/" + _name(path), leaf.shape, mesh)
        whole = PartitionSpec(*(None if axes == GATHERED_AXES else axes for axes in cut))
        if whole == cut:
            return leaf
        if _part(path[-1]).startswith("kernel_"):  # quantised: never cast, and without a gradient
            return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, whole))
        source, target = NamedSharding(mesh, cut), NamedSharding(mesh, whole)
        return _gathered(source, target, jnp.dtype(compute_dtype), leaf)

    return jax.tree_util.tree_map_with_path(gather, params)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gathered(
    source: NamedSharding, target: NamedSharding, compute_dtype: Any, leaf: jax.Array
) -> jax.Array:
    if leaf.dtype == jnp.float32 and compute_dtype != jnp.float32:
        # XLA's bfloat16 propagation sees that the layers of a stack are only read to be cast, casts
        # the stack before the loop over its layers, and keeps that copy of all weights until the
        # step ends (0.9 GiB a chip, Llama-3.1-8B on v5e:4x4). It does not look through integers.
        bits = jax.lax.optimization_barrier(jax.lax.bitcast_convert_type(leaf, jnp.int32))
        leaf = jax.lax.bitcast_convert_type(bits, jnp.float32)
    # Stated where the leaf still lies, too: the compiler would gather float32 and cast afterwards.
    leaf = jax.lax.with_sharding_constraint(leaf.astype(compute_dtype), source)
    return jax.lax.with_sharding_constraint(leaf, target)


def _gathered_forward(
    source: NamedSharding, target: NamedSharding, compute_dtype: Any, leaf: jax.Array
) -> tuple[jax.Array, jax.Array]:
    like = jnp.zeros((0,), leaf.dtype)  # carries the dtype through the residuals
    return _gathered(source, target, compute_dtype, leaf), like


def _gathered_backward(
    source: NamedSharding,
    target: NamedSharding,
    compute_dtype: Any,
    like: jax.Array,
    gradient: jax.Array,
) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, source).astype(like.dtype),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def vocabulary_axes(rows: int, mesh: Mesh) -> tuple[str, ...]:
    """Returns the axes that really cut a vocabulary of this many rows: all of them or none."""
    return VOCABULARY_AXES if rows % _axis_size(mesh, VOCABULARY_AXES) == 0 else ()


def _axis_size(mesh: Mesh, axes: str | tuple[str, ...]) -> int:
    names = (axes,) if isinstance(axes, str) else axes
    size = 1
    for name in names:
        size *= mesh.shape[name]
    return size


def _part(entry: Any) -> str:
    value = getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", "")))
    return str(value)


def _name(path: Any) -> str:
    return "/".join(_part(entry) for entry in path)
