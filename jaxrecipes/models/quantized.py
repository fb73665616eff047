"""Frozen kernels in 8 or 4 bits, and the product with them.

In place of `kernel` [inputs, outputs] a layer's folder holds one of these; the kernel is

    kernel_int8            int8 [inputs, outputs]                int8 * scale
    kernel_scale           float32 [outputs]

    kernel_nf4             uint8 [inputs / 2, outputs]           table[code] * absmax, where input
    kernel_absmax          float32 [blocks, outputs]             2i is the high half of a byte

    kernel_nf4             as above                              table[code] * absmax / 255 * scale
    kernel_absmax          uint8 [blocks, outputs]
    kernel_absmax_scale    float32 [blocks]

where a block is `BLOCK` inputs of one output, the last one shorter where they do not divide: the
same blocks as those of bitsandbytes, whose weights are transposed. `jaxrecipes.params.quantize`
makes them. A kernel in the compute dtype exists while its product is computed, and no longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

# Inputs that share one absmax (QLoRA, arXiv 2305.14314, section 3).
BLOCK = 64
# The 16 values of a normal float (QLoRA, appendix E): quantiles of N(0, 1), scaled to [-1, 1].
NF4_TABLE = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
QUANTIZED_LEAVES = (
    "kernel_int8",
    "kernel_scale",
    "kernel_nf4",
    "kernel_absmax",
    "kernel_absmax_scale",
)


def stored(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves of a layer's quantised kernel; empty where it has none."""
    return {name: leaves[name] for name in QUANTIZED_LEAVES if name in leaves}


def dequantize(storage: Mapping[str, Any], dtype: Any) -> jax.Array:
    """Returns the kernel [inputs, outputs]; computed in float32, rounded to `dtype` once.

    Args:
        storage: From `stored`, not empty.
        dtype: dtype of the result.
    """
    if "kernel_int8" in storage:
        kernel = storage["kernel_int8"].astype(jnp.float32) * storage["kernel_scale"]
        return kernel.astype(dtype)
    packed = storage["kernel_nf4"]
    codes = jnp.stack([packed >> 4, packed & 15], axis=1).reshape(-1, packed.shape[1])
    absmax = storage["kernel_absmax"].astype(jnp.float32)
    if "kernel_absmax_scale" in storage:
        absmax = absmax * (storage["kernel_absmax_scale"] / 255.0)[:, None]
    absmax = jnp.repeat(absmax, BLOCK, axis=0)[: codes.shape[0]]
    return (_table_values(codes, NF4_TABLE) * absmax).astype(dtype)


def _table_values(codes: jax.Array, table: tuple[float, ...]) -> jax.Array:
    """Looks codes up by their bits: selections are cheap where gathers are not."""
    if len(table) == 1:
        return jnp.full(codes.shape, table[0], jnp.float32)
    half = len(table) // 2
    low, high = _table_values(codes, table[:half]), _table_values(codes, table[half:])
    return jnp.where((codes & half) != 0, high, low)


@jax.custom_vjp
def quantized_product(inputs: jax.Array, storage: dict[str, Any]) -> jax.Array:
    """Multiplies the last axis with a quantised kernel, which has no gradient.

    The backward pass dequantises again, so that between the passes only the storage exists.

    Args:
        inputs: [..., inputs].
        storage: See `dequantize`.

    Returns:
        [..., outputs], dtype of `inputs`.
    """
    return jnp.matmul(inputs, dequantize(storage, inputs.dtype))


def _forward(inputs: jax.Array, storage: dict[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
    return quantized_product(inputs, storage), storage


def _backward(storage: dict[str, Any], gradient: jax.Array) -> tuple[jax.Array, None]:
    return jnp.matmul(gradient, dequantize(storage, gradient.dtype).T), None


quantized_product.defvjp(_forward, _backward)
