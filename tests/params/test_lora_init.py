"""How adapters start, against the formulas and against PEFT's own."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrecipes.params.lora_init import start_adapter, start_embedding

KERNEL = np.random.default_rng(0).standard_normal((40, 24)).astype(np.float32)
KEY = jax.random.key(1)


def test_kaiming_is_uniform_within_the_root_of_the_inputs() -> None:
    start = start_adapter(jnp.zeros((400, 3)), 64, 1.0, "kaiming", KEY)
    bound = 1 / math.sqrt(400)
    assert float(jnp.max(jnp.abs(start.lora_a))) <= bound
    # The deviation of a uniform distribution; its own is 0.3 % of it here.
    assert float(jnp.std(start.lora_a)) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not np.any(start.lora_b)


def test_gaussian_has_the_deviation_of_one_over_the_rank() -> None:
    start = start_adapter(jnp.zeros((4000, 3)), 8, 1.0, "gaussian", KEY)
    assert float(jnp.std(start.lora_a)) == pytest.approx(1 / 8, rel=0.02)
    assert not np.any(start.lora_b)


def test_orthogonal_starts_with_both_factors_and_no_product() -> None:
    start = start_adapter(jnp.asarray(KERNEL), 6, 1.0, "orthogonal", KEY)
    assert np.linalg.matrix_rank(np.asarray(start.lora_a)) == 3
    assert np.linalg.matrix_rank(np.asarray(start.lora_b)) == 3
    assert float(jnp.max(jnp.abs(start.lora_a @ start.lora_b))) < 1e-6
    # Each value is a sum of three normal ones with weights of an orthogonal matrix, over ten.
    wide = start_adapter(jnp.zeros((3000, 2000)), 6, 1.0, "orthogonal", KEY)
    for factor in (wide.lora_a, wide.lora_b):
        assert float(jnp.mean(jnp.square(factor))) == pytest.approx(0.5 / 100, rel=0.1)


def test_an_embedding_starts_with_the_roles_exchanged() -> None:
    start = start_embedding(jnp.ones((30, 500)), 8, KEY)
    assert start.lora_a.shape == (30, 8) and not np.any(start.lora_a)
    assert float(jnp.std(start.lora_b)) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_taken_and_what_is_left_are_the_kernel(init: Any, dtype: str) -> None:
    kernel = jnp.asarray(KERNEL, dtype)
    start = start_adapter(kernel, 5, 1.7, init, KEY)
    assert start.residual.dtype == kernel.dtype
    whole = start.residual.astype(jnp.float32) + 1.7 * start.lora_a @ start.lora_b
    # bfloat16 keeps 8 bits of the residual.
    tolerance = 2e-5 if dtype == "float32" else 2**-8 * float(jnp.max(jnp.abs(kernel)))
    np.testing.assert_allclose(whole, kernel.astype(jnp.float32), atol=tolerance)


def test_pissa_takes_the_largest_singular_values() -> None:
    start = start_adapter(jnp.asarray(KERNEL), 5, 1.7, "pissa", KEY)
    values = np.linalg.svd(KERNEL, compute_uv=False)
    left = np.linalg.svd(np.asarray(start.residual), compute_uv=False)
    np.testing.assert_allclose(left[: 24 - 5], values[5:], rtol=1e-4)
    # Both factors carry the root of a value, divided by the scale (equation 3).
    norms = np.linalg.norm(np.asarray(start.lora_a), axis=0)
    np.testing.assert_allclose(norms**2, values[:5] / 1.7, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(start.lora_b), axis=1), norms, rtol=1e-4)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_pefts_start_takes_the_same_out_of_the_kernel(init: Any, rslora: bool) -> None:
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    linear = torch.nn.Linear(40, 24, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(KERNEL.T))
    config = peft.LoraConfig(
        r=5, lora_alpha=7, target_modules=["0"], init_lora_weights=init, use_rslora=rslora
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(torch.nn.Sequential(linear), config)
    layer = model.base_model.model[0]
    scale = 7 / math.sqrt(5) if rslora else 7 / 5
    assert layer.scaling["default"] == scale
    start = start_adapter(jnp.asarray(KERNEL), 5, scale, init, KEY)
    residual = layer.base_layer.weight.detach().numpy().T
    np.testing.assert_allclose(start.residual, residual, atol=2e-5)
    theirs = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    ours = start.lora_a @ start.lora_b
    np.testing.assert_allclose(ours, theirs.detach().numpy().T, atol=2e-5)
