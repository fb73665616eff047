"""A linear layer, with a low-rank adapter where the parameter tree holds one.

Beside `kernel` [inputs, outputs] (or an embedding's `table`, whose inputs are tokens) an adapter is

    lora_a          float32 [inputs, rank]
    lora_b          float32 [rank, outputs]
    lora_scale      float32 [], alpha / rank or alpha / sqrt(rank)
    lora_magnitude  float32 [outputs], DoRA only

and the layer computes `x W + scale (x A) B` (LoRA, arXiv 2106.09685, section 4.1), or with a
magnitude `m / norm(W + scale A B)` times that, where the norm is of each output's column and is
treated as a constant by the gradient (DoRA, arXiv 2402.09353, section 4.3). Without these leaves
it is the plain product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from jaxrecipes.models.product import product


class Dense(nn.Module):
    """A linear layer; its adapter, if any, is read from the tree and never initialised here.

    Attributes:
        features: Number of outputs.
        use_bias: Whether a bias is added.
        dtype: dtype of the computation and of the result.
    """

    features: int
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [..., inputs] to dtype [..., features]."""
        shape = (inputs.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(stddev=0.02), shape)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        cast, kernel_cast, bias = promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        outputs = product(cast, kernel_cast)
        if self.has_variable("params", "lora_a"):
            outputs = add_adapter(outputs, cast, kernel, self.variables["params"])
        if bias is not None:
            outputs += jnp.reshape(bias, (1,) * (outputs.ndim - 1) + (-1,))
        return outputs


def add_adapter(
    outputs: jax.Array, inputs: jax.Array, kernel: jax.Array, leaves: Mapping[str, Any]
) -> jax.Array:
    """Adds what an adapter computes to the output of the layer beside it.

    Args:
        outputs: [..., outputs], the inputs times the kernel, without a bias.
        inputs: [..., inputs].
        kernel: [inputs, outputs], as stored.
        leaves: `lora_a`, `lora_b`, `lora_scale` and, for DoRA, `lora_magnitude`.

    Returns:
        [..., outputs], dtype of `outputs`.
    """
    return join_adapter(
        outputs, product(inputs, leaves["lora_a"].astype(inputs.dtype)), kernel, leaves
    )


def join_adapter(
    outputs: jax.Array, reduced: jax.Array, kernel: jax.Array, leaves: Mapping[str, Any]
) -> jax.Array:
    """The second half of `add_adapter`, for an embedding, whose first product is a lookup.

    Args:
        outputs: [..., outputs], the inputs times the kernel.
        reduced: [..., rank], the inputs times `lora_a`.
        kernel: [inputs, outputs], as stored.
        leaves: See `add_adapter`.

    Returns:
        [..., outputs], dtype of `outputs`.
    """
    dtype = outputs.dtype
    # The scale is applied where the array is smallest, and in float32, which it is stored in.
    reduced = (reduced.astype(jnp.float32) * leaves["lora_scale"]).astype(dtype)
    outputs = outputs + product(reduced, leaves["lora_b"].astype(dtype))
    if "lora_magnitude" not in leaves:
        return outputs
    norms = jax.lax.stop_gradient(column_norms(adapted_kernel(kernel, leaves)))
    return outputs * (leaves["lora_magnitude"] / norms).astype(dtype)


def adapted_kernel(kernel: jax.Array, leaves: Mapping[str, Any]) -> jax.Array:
    """Returns `W + scale A B` in float32, [inputs, outputs], without DoRA's magnitude."""
    low_rank = jnp.matmul(leaves["lora_a"], leaves["lora_b"], precision="highest")
    return kernel.astype(jnp.float32) + leaves["lora_scale"] * low_rank


def column_norms(kernel: jax.Array) -> jax.Array:
    """Returns the Euclidean norm of each output's column: [inputs, outputs] -> [outputs]."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=0))
