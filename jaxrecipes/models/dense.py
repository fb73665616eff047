"""A linear layer, with a low-rank adapter where the parameter tree holds one.

Beside `kernel` [inputs, outputs] (or an embedding's `table`, whose inputs are tokens) an adapter is

    lora_a          float32 [inputs, rank]
    lora_b          float32 [rank, outputs]
    lora_scale      float32 [], alpha / rank or alpha / sqrt(rank)
    lora_magnitude  float32 [outputs], DoRA only
    lora_dropout    float32 [], the rate, and
    lora_salt       uint32 [], what tells the layer's masks from others': with dropout only

and the layer computes `x W + scale (x A) B` (LoRA, arXiv 2106.09685, section 4.1), or with a
magnitude `m / norm(W + scale A B)` times that, where the norm is of each output's column and is
treated as a constant by the gradient (DoRA, arXiv 2402.09353, section 4.3). Without these leaves
it is the plain product. Dropout is of the adapter's input, as in PEFT. A frozen kernel may be
stored in few bits, see `models.quantized`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from jaxrecipes.models.adapter_dropout import dropout
from jaxrecipes.models.product import product
from jaxrecipes.models.quantized import dequantize, quantized_product, stored


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
    def __call__(self, inputs: jax.Array, dropout_seeds: jax.Array | None = None) -> jax.Array:
        """Maps [..., inputs] to dtype [..., features].

        `dropout_seeds`, uint32 [...], are given where an adapter's dropout is wanted.
        """
        leaves = self.variables.get("params", {})
        storage = stored(leaves)
        kernel = bias = None
        if not storage:
            shape = (inputs.shape[-1], self.features)
            kernel = self.param("kernel", nn.initializers.normal(stddev=0.02), shape)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        cast, kernel_cast, bias = promote_dtype(inputs, kernel, bias, dtype=self.dtype)

        def multiply(values: jax.Array) -> jax.Array:
            if kernel is None:
                return quantized_product(values, storage)
            return product(values, kernel_cast)

        if "lora_a" not in leaves:
            outputs = multiply(cast)
        elif dropout_seeds is not None and "lora_dropout" in leaves:
            outputs = _add_adapter_with_dropout(cast, multiply, leaves, dropout_seeds)
        else:
            outputs = add_adapter(multiply(cast), cast, leaves)
        if bias is not None:
            outputs += jnp.reshape(bias, (1,) * (outputs.ndim - 1) + (-1,))
        return outputs


def _add_adapter_with_dropout(
    inputs: jax.Array,
    multiply: Callable[[jax.Array], jax.Array],
    leaves: Mapping[str, Any],
    seeds: jax.Array,
) -> jax.Array:
    """Returns what a layer computes whose adapter sees a dropped input, without a bias."""
    dropped = dropout(inputs, seeds, leaves["lora_salt"], leaves["lora_dropout"])
    if "lora_magnitude" not in leaves:
        return add_adapter(multiply(inputs), dropped, leaves)
    # What the magnitude adds to the kernel's product is of the dropped input, too.
    beside = multiply(dropped)
    return multiply(inputs) + add_adapter(beside, dropped, leaves) - beside


def add_adapter(outputs: jax.Array, inputs: jax.Array, leaves: Mapping[str, Any]) -> jax.Array:
    """Adds what an adapter computes to the output of the layer beside it.

    Args:
        outputs: [..., outputs], the inputs times the kernel, without a bias.
        inputs: [..., inputs].
        leaves: `lora_a`, `lora_b`, `lora_scale` and, for DoRA, `lora_magnitude` and the weight,
            which is `kernel`, the `table` of an embedding, or quantised.

    Returns:
        [..., outputs], dtype of `outputs`.
    """
    return join_adapter(outputs, product(inputs, leaves["lora_a"].astype(inputs.dtype)), leaves)


def join_adapter(outputs: jax.Array, reduced: jax.Array, leaves: Mapping[str, Any]) -> jax.Array:
    """The second half of `add_adapter`, for an embedding, whose first product is a lookup.

    Args:
        outputs: [..., outputs], the inputs times the weight.
        reduced: [..., rank], the inputs times `lora_a`.
        leaves: See `add_adapter`.

    Returns:
        [..., outputs], dtype of `outputs`.
    """
    dtype = outputs.dtype
    # The scale is applied where the array is smallest, and in float32, which it is stored in.
    reduced = (reduced.astype(jnp.float32) * leaves["lora_scale"]).astype(dtype)
    return _apply_magnitude(outputs + product(reduced, leaves["lora_b"].astype(dtype)), leaves)


def _apply_magnitude(outputs: jax.Array, leaves: Mapping[str, Any]) -> jax.Array:
    """Multiplies by DoRA's magnitude over the norm, where there is one."""
    if "lora_magnitude" not in leaves:
        return outputs
    if storage := stored(leaves):
        weight = dequantize(storage, jnp.float32)
    else:
        weight = leaves["table" if "table" in leaves else "kernel"]
    norms = jax.lax.stop_gradient(column_norms(adapted_kernel(weight, leaves)))
    return outputs * (leaves["lora_magnitude"] / norms).astype(outputs.dtype)


def adapted_kernel(kernel: jax.Array, leaves: Mapping[str, Any]) -> jax.Array:
    """Returns `W + scale A B` in float32, [inputs, outputs], without DoRA's magnitude."""
    low_rank = jnp.matmul(leaves["lora_a"], leaves["lora_b"], precision="highest")
    return kernel.astype(jnp.float32) + leaves["lora_scale"] * low_rank


def column_norms(kernel: jax.Array) -> jax.Array:
    """Returns the Euclidean norm of each output's column: [inputs, outputs] -> [outputs]."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=0))
