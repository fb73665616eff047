"""Storing frozen kernels in 8 or 4 bits (QLoRA, arXiv 2305.14314), and getting them back.

The formats are those of `jaxrecipes.models.quantized`. Only kernels that no gradient reaches can be
stored so; norms, biases, embeddings and the head stay as they are, as in bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrecipes.errors import ConfigError
from jaxrecipes.models.quantized import (
    BLOCK,
    NF4_TABLE,
    QUANTIZED_LEAVES,
    dequantize,
    stored,
)
from jaxrecipes.params.paths import Tree, flatten, unflatten

Quantization = Literal["int8", "nf4"]


def quantize_kernel(
    kernel: jax.Array, kind: Quantization, *, double: bool = False
) -> dict[str, jax.Array]:
    """Rounds a kernel to the nearest values that its storage can hold.

    The error of a value is at most absmax / 254 of its output's column for "int8", and for "nf4"
    absmax * 0.152 (half the widest gap of the table, below -0.696) of its block; `double` adds at
    most 1 / 510 of the largest absmax of the same block over all outputs.

    Args:
        kernel: Float [inputs, outputs].
        kind: "int8": absmax of each output. "nf4": absmax of each block, normal floats.
        double: With "nf4": each absmax in 8 bits, by the largest of its row of blocks.

    Returns:
        The leaves that stand in the kernel's place.

    Raises:
        ConfigError: "nf4" with an odd number of inputs, or `double` without it.
    """
    values = kernel.astype(jnp.float32)
    if kind == "int8":
        if double:
            raise ConfigError("double quantisation is of nf4's scales; int8 has one an output")
        scale = jnp.max(jnp.abs(values), axis=0) / 127.0
        codes = jnp.round(values / jnp.where(scale > 0, scale, 1.0))
        return {"kernel_int8": codes.astype(jnp.int8), "kernel_scale": scale}
    inputs, outputs = kernel.shape
    if inputs % 2:
        raise ConfigError(
            f"nf4 packs two inputs into a byte; a kernel has {inputs} inputs. Use int8"
        )
    padded = jnp.pad(values, ((0, -inputs % BLOCK), (0, 0)))
    absmax = jnp.max(jnp.abs(padded.reshape(-1, BLOCK, outputs)), axis=1)  # [blocks, outputs]
    leaves: dict[str, jax.Array] = {"kernel_absmax": absmax}
    if double:
        scale = jnp.max(absmax, axis=1)
        share = absmax / jnp.where(scale > 0, scale, 1.0)[:, None]
        leaves = {
            "kernel_absmax": jnp.round(255.0 * share).astype(jnp.uint8),
            "kernel_absmax_scale": scale,
        }
    # Codes are chosen for the exact absmax, as bitsandbytes does.
    spread = jnp.repeat(jnp.where(absmax > 0, absmax, 1.0), BLOCK, axis=0)[:inputs]
    normal = values / spread
    codes = jnp.zeros(values.shape, jnp.uint8)
    for lower, upper in zip(NF4_TABLE[:-1], NF4_TABLE[1:], strict=True):
        codes += (normal > (lower + upper) / 2).astype(jnp.uint8)
    pairs = codes.reshape(inputs // 2, 2, outputs)
    return {"kernel_nf4": (pairs[:, 0] << 4) | pairs[:, 1], **leaves}


def quantize_tree(
    params: Mapping[str, Any],
    folders: Collection[str],
    kind: Quantization,
    *,
    double: bool = False,
) -> Tree:
    """Replaces kernels by their storage; a pure function that can be traced.

    Args:
        params: Canonical tree.
        folders: Paths of the layers ("layers/3/mlp/up") whose kernels are stored so.
        kind: See `quantize_kernel`.
        double: Likewise.

    Returns:
        The tree; everything else in it is as it was.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in flatten(params).items():
        folder, _, name = path.rpartition("/")
        if name == "kernel" and folder in folders:
            made = quantize_kernel(jnp.asarray(leaf), kind, double=double)
            leaves |= {f"{folder}/{name}": value for name, value in made.items()}
        else:
            leaves[path] = leaf
    return unflatten(leaves)


def is_quantized_leaf(path: str) -> bool:
    """Whether a leaf is a part of a quantised kernel, which is never cast."""
    return path.rpartition("/")[2] in QUANTIZED_LEAVES


def parameter_count(path: str, leaf: Any) -> int:
    """Number of a model's parameters that a leaf stores: none for scales, two a byte of nf4."""
    if not is_quantized_leaf(path):
        return leaf.size
    return {"kernel_int8": 1, "kernel_nf4": 2}.get(path.rpartition("/")[2], 0) * leaf.size


@dataclass(frozen=True)
class Rounding:
    """What quantising changed.

    Attributes:
        kernels: Number of kernels.
        relative_error: Norm of all differences, divided by the norm of all kernels.
        max_error: Largest absolute difference.
        worst: Path of the kernel with it.
    """

    kernels: int
    relative_error: float
    max_error: float
    worst: str


def dequantize_tree(
    params: Mapping[str, Any], base: Mapping[str, Any]
) -> tuple[Tree, Rounding | None]:
    """Puts kernels back in place of their storage: the model that was trained on.

    Args:
        params: Canonical tree, quantised or not.
        base: Canonical tree of the model before; gives the dtypes, and what is compared.

    Returns:
        The tree, and what the rounding was; None where nothing was quantised.
    """
    originals = flatten(base)
    leaves: dict[str, Any] = {}
    storages: dict[str, dict[str, Any]] = {}
    for path, leaf in flatten(params).items():
        folder, _, name = path.rpartition("/")
        if is_quantized_leaf(path):
            storages.setdefault(folder, {})[name] = leaf
        else:
            leaves[path] = leaf
    errors: dict[str, float] = {}
    lost = total = 0.0
    for folder, storage in storages.items():
        path = f"{folder}/kernel"
        original = jnp.asarray(originals[path])
        kernel = dequantize(stored(storage), original.dtype)
        exact = original.astype(jnp.float32)
        error = kernel.astype(jnp.float32) - exact
        errors[path] = float(jnp.max(jnp.abs(error)))
        lost += float(jnp.sum(jnp.square(error)))
        total += float(jnp.sum(jnp.square(exact)))
        leaves[path] = kernel
    if not errors:
        return unflatten(leaves), None
    worst = max(errors, key=lambda path: errors[path])
    relative = (lost / total) ** 0.5 if total else 0.0
    return unflatten(leaves), Rounding(len(errors), relative, errors[worst], worst)


def describe_rounding(rounding: Rounding) -> str:
    """Says in one line how far the dequantised kernels are from those of the base."""
    return (
        f"model/ has the {rounding.kernels} quantised kernels that were trained beside, written "
        f"out: {rounding.relative_error:.2%} from the base's (norm), at most "
        f"{rounding.max_error:.2g} of a weight ({rounding.worst}); adapter/ fits either base"
    )
