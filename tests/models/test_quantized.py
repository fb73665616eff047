"""The table of NF4 from its formula, and the product with a quantised kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxrecipes.models.product import product
from jaxrecipes.models.quantized import NF4_TABLE, dequantize, quantized_product
from jaxrecipes.params.quantize import quantize_kernel

FORMS = [("int8", False), ("nf4", False), ("nf4", True)]


def test_the_table_is_the_papers_formula() -> None:
    # QLoRA, section 3 and bitsandbytes' create_normal_map: eight quantiles above zero, seven below.
    offset = 0.9677083
    above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    values = np.sort(np.concatenate([above, below, [0.0]]))
    np.testing.assert_allclose(NF4_TABLE, values / np.abs(values).max(), atol=1e-6)
    assert list(NF4_TABLE) == sorted(NF4_TABLE) and NF4_TABLE.count(0.0) == 1


def test_every_code_is_its_value_of_the_table() -> None:
    codes = np.arange(16, dtype=np.uint8)
    packed = (codes[0::2] << 4 | codes[1::2])[:, None]
    kernel = dequantize({"kernel_nf4": packed, "kernel_absmax": jnp.full((1, 1), 3.0)}, jnp.float32)
    np.testing.assert_allclose(kernel[:, 0], 3 * np.array(NF4_TABLE), rtol=1e-6)


@pytest.mark.parametrize(("kind", "double"), FORMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_product_is_that_with_the_kernel_written_out(kind, double, dtype) -> None:
    generator = np.random.default_rng(0)
    kernel = jnp.asarray(generator.standard_normal((96, 24)), jnp.float32)
    inputs = jnp.asarray(generator.standard_normal((2, 5, 96)), dtype)
    storage = quantize_kernel(kernel, kind, double=double)

    def loss(inputs, kernel_or_storage, multiply):
        return jnp.sum(jnp.sin(multiply(inputs, kernel_or_storage).astype(jnp.float32)))

    written_out = dequantize(storage, dtype)
    expected = jax.value_and_grad(loss)(inputs, written_out, product)
    found = jax.jit(jax.value_and_grad(loss), static_argnums=2)(inputs, storage, quantized_product)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
        np.testing.assert_allclose(
            np.asarray(one, np.float32),
            np.asarray(other, np.float32),
            rtol=tolerance,
            atol=0.05 if dtype == jnp.bfloat16 else 1e-5,
        )


def test_between_the_passes_only_the_storage_exists() -> None:
    kernel = jnp.ones((128, 256))
    storage = quantize_kernel(kernel, "nf4")
    inputs = jnp.ones((4, 128))
    _, pull = jax.vjp(lambda inputs: quantized_product(inputs, storage), inputs)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull) if hasattr(leaf, "nbytes"))
    assert 0 < kept < kernel.nbytes / 4
