"""The product of activations and a kernel, differentiated so that every compiler does it well."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def product(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies the last axis with a kernel.

    The gradients are the usual ones, `dy W^T` and `x^T dy`. Two things are said to the compiler,
    for XLA's on CPU, which reads the left operand of the weight gradient through a transposed copy:
    that operand is `x` and not, as JAX would have it, `dy`; and `dy` is computed before it is used,
    because its arithmetic would be fused into copies and run there element by element. In a
    prototype the two took 17 % off a step of SmolLM2-135M with 4 x 256 tokens (9.06 s -> 7.50 s on
    two cores).

    Args:
        inputs: [..., inputs].
        kernel: [inputs, outputs], same dtype.

    Returns:
        [..., outputs].
    """
    return jnp.matmul(inputs, kernel)


def _forward(inputs: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.matmul(inputs, kernel), (inputs, kernel)


def _backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    inputs, kernel = residuals
    rows = jax.lax.platform_dependent(
        gradient.reshape(-1, gradient.shape[-1]),
        cpu=jax.lax.optimization_barrier,
        default=lambda array: array,
    )  # [tokens, outputs]
    kernel_gradient = jnp.einsum("ti,to->io", inputs.reshape(-1, inputs.shape[-1]), rows)
    return jnp.matmul(rows, kernel.T).reshape(inputs.shape), kernel_gradient


product.defvjp(_forward, _backward)
