"""How an adapter starts: five ways, all of which leave the function as it is.

Everything is in the canonical orientation: a kernel is [inputs, outputs], PEFT's weight transposed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrecipes.params.lora_options import AdapterInit


class Start(NamedTuple):
    """An adapter before its first step.

    Attributes:
        lora_a: float32 [inputs, rank].
        lora_b: float32 [rank, outputs].
        residual: The kernel that the adapter stands beside, in its dtype: what "pissa" and "olora"
            leave of it, and for the others the kernel itself.
    """

    lora_a: jax.Array
    lora_b: jax.Array
    residual: jax.Array


def start_adapter(
    kernel: jax.Array, rank: int, scale: float, init: AdapterInit, key: jax.Array
) -> Start:
    """Makes the adapter of a linear layer.

    Args:
        kernel: [inputs, outputs].
        rank: Number of columns of A.
        scale: Factor on `A B`.
        init: See `AdapterOptions.init`.
        key: PRNG key; "pissa" and "olora" draw nothing.

    Returns:
        The adapter and the kernel that stays, with `residual + scale A B` equal to `kernel`, up to
        rounding to the kernel's dtype.
    """
    inputs, outputs = kernel.shape
    if init == "pissa":
        return _pissa(kernel, rank, scale)
    if init == "olora":
        return _olora(kernel, rank, scale)
    if init == "orthogonal":
        return Start(*_orthogonal(inputs, outputs, rank, key), kernel)
    if init == "gaussian":
        lora_a = jax.random.normal(key, (inputs, rank), jnp.float32) / rank
    else:
        bound = 1 / math.sqrt(inputs)
        lora_a = jax.random.uniform(key, (inputs, rank), jnp.float32, -bound, bound)
    return Start(lora_a, jnp.zeros((rank, outputs), jnp.float32), kernel)


def start_embedding(table: jax.Array, rank: int, key: jax.Array) -> Start:
    """Makes the adapter of an embedding [vocab_size, hidden_size]: A is zero, B standard normal.

    As in loralib and PEFT, where the roles are those of a linear layer exchanged.
    """
    rows, width = table.shape
    lora_b = jax.random.normal(key, (rank, width), jnp.float32)
    return Start(jnp.zeros((rows, rank), jnp.float32), lora_b, table)


def _pissa(kernel: jax.Array, rank: int, scale: float) -> Start:
    """The largest singular directions (arXiv 2404.02948, equations 2 to 4)."""
    weight = kernel.astype(jnp.float32)
    left, values, right = jnp.linalg.svd(weight, full_matrices=False)
    roots = jnp.sqrt(values[:rank] / scale)
    return _with_residual(kernel, left[:, :rank] * roots, roots[:, None] * right[:rank], scale)


def _olora(kernel: jax.Array, rank: int, scale: float) -> Start:
    """The first columns of the QR decomposition of the weight [outputs, inputs] (2406.01775)."""
    orthogonal, triangular = jnp.linalg.qr(kernel.astype(jnp.float32).T)
    return _with_residual(kernel, triangular[:rank].T, orthogonal[:, :rank].T, scale)


def _with_residual(kernel: jax.Array, lora_a: jax.Array, lora_b: jax.Array, scale: float) -> Start:
    taken = scale * jnp.matmul(lora_a, lora_b, precision="highest")
    residual = (kernel.astype(jnp.float32) - taken).astype(kernel.dtype)
    return Start(lora_a, lora_b, residual)


def _orthogonal(
    inputs: int, outputs: int, rank: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Random A and B whose rank axes span orthogonal spaces, as PEFT's `orthogonal_init`."""
    rotation_key, a_key, b_key = jax.random.split(key, 3)
    rotation, _ = jnp.linalg.qr(jax.random.normal(rotation_key, (rank, rank), jnp.float32))
    a = jax.random.normal(a_key, (inputs, rank // 2), jnp.float32)
    b = jax.random.normal(b_key, (outputs, rank // 2), jnp.float32)
    lora_a = jnp.matmul(a, rotation[0::2], precision="highest") / 10
    lora_b = jnp.matmul(b, rotation[1::2], precision="highest").T / 10
    return lora_a, lora_b
