"""Dropout of adapters: a mask depends on token and layer, not on where a batch has the token.

A mask is a function of a seed of the token, a salt of the layer and the column. It is the same in
every recomputation, in every cut of a batch into micro-batches and over devices, and, where seeds
follow the example (`train.perturb.segments.token_keys`), however examples are packed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dropout(inputs: jax.Array, seeds: jax.Array, salt: jax.Array, rate: jax.Array) -> jax.Array:
    """Sets values to zero with a probability, and multiplies the others by 1 / (1 - rate).

    Args:
        inputs: Float [rows, length, width].
        seeds: uint32 [rows, length], random bits of the step and the token.
        salt: uint32 [], of the layer; layers with different salts drop different columns.
        rate: float32 [], the probability, from 0 to below 1.

    Returns:
        The inputs' shape and dtype.
    """
    columns = _mix(salt + jnp.arange(inputs.shape[-1], dtype=jnp.uint32) * jnp.uint32(0x9E3779B9))
    bits = _mix(seeds[..., None] ^ columns)
    # 24 bits are what float32 tells apart.
    keep = (bits >> 8).astype(jnp.float32) >= rate * 2**24
    scale = (1.0 / (1.0 - rate)).astype(inputs.dtype)
    return jnp.where(keep, inputs * scale, jnp.zeros((), inputs.dtype))


def _mix(values: jax.Array) -> jax.Array:
    """Scrambles uint32: every bit of the result depends on all bits (Wellons' lowbias32)."""
    values = (values ^ (values >> 16)) * jnp.uint32(0x7FEB352D)
    values = (values ^ (values >> 15)) * jnp.uint32(0x846CA68B)
    return values ^ (values >> 16)
