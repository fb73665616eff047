"""The product and its gradients against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.models.product import product


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    leading=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    seed=st.integers(0, 2**16),
)
def test_value_and_gradients_are_those_of_matmul(leading, inputs, outputs, seed):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((*leading, inputs), np.float32)
    kernel = generator.standard_normal((inputs, outputs), np.float32)
    weights = generator.standard_normal((*leading, outputs), np.float32)

    def loss(multiply, x, kernel):
        return jnp.sum(jnp.tanh(multiply(x, kernel)) * weights)

    for ours, theirs in zip(
        jax.value_and_grad(lambda *a: loss(product, *a), (0, 1))(x, kernel),
        jax.value_and_grad(lambda *a: loss(jnp.matmul, *a), (0, 1))(x, kernel),
        strict=True,
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


def test_a_frozen_kernel_costs_no_gradient():
    x, kernel = jnp.ones((4, 8)), jnp.ones((8, 16))
    compiled = jax.jit(jax.grad(lambda x: jnp.sum(product(x, kernel) ** 2))).lower(x).compile()
    # Forward and the gradient of x; the one of the kernel would be a third product.
    cost = compiled.cost_analysis()
    assert cost is not None
    assert cost["flops"] < 2.5 * (2 * 4 * 8 * 16)


def test_gradients_of_bfloat16_are_bfloat16():
    x, kernel = jnp.ones((4, 8), jnp.bfloat16), jnp.ones((8, 16), jnp.bfloat16)
    gradients = jax.grad(lambda x, kernel: jnp.sum(product(x, kernel)), (0, 1))(x, kernel)
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16] * 2
