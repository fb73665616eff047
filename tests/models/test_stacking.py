"""What a layer keeps changes memory, never the gradient."""

from functools import partial
from typing import get_args

import jax
import numpy as np
import pytest
from jax._src.ad_checkpoint import saved_residuals

from jaxrecipes.config.train import SaveableName
from jaxrecipes.errors import ConfigError
from jaxrecipes.models.decoder import init_params
from jaxrecipes.models.stacking import REMAT_POLICIES, SAVEABLE_NAMES
from jaxrecipes.params.layout import plan_layout, to_runtime
from jaxrecipes.params.rules import label
from jaxrecipes.train.causal_loss import batch_loss
from tests.tiny import tiny_config


def make_params(config):
    return jax.jit(partial(init_params, config))(jax.random.key(0))


def loss_and_gradient(config, params, batch, layout, remat):
    def loss(params):
        return batch_loss(config, params, batch, layout=layout, remat=remat)

    return jax.jit(jax.value_and_grad(loss))(params)


def batch_of(config, length=12):
    generator = np.random.default_rng(0)
    ones = np.ones((2, length), np.int32)
    return {
        "token_ids": generator.integers(0, config.vocab_size, ones.shape).astype(np.int32),
        "segment_ids": ones,
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), ones.shape),
        "loss_mask": ones.astype(bool),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "stacked"),
    [
        ("llama", False),
        pytest.param("sandwich", True, marks=pytest.mark.long),
        pytest.param("llama", True, marks=pytest.mark.long),
        pytest.param("sandwich", False, marks=pytest.mark.long),
    ],
)
def test_gradients_do_not_depend_on_what_is_kept(kind, stacked):
    config = tiny_config(kind, num_layers=4)
    params, layout = make_params(config), None
    if stacked:
        layout = plan_layout(config, label(params, [(".*", True)]))
        params = to_runtime(layout, params)
    batch = batch_of(config)
    expected = loss_and_gradient(config, params, batch, layout, "none")
    for remat in REMAT_POLICIES[1:]:
        found = loss_and_gradient(config, params, batch, layout, remat)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
        )


@pytest.mark.long
def test_keeping_less_needs_less_memory():
    config = tiny_config(
        num_layers=8, hidden_size=128, intermediate_size=512, head_dim=32, query_scale=32**-0.5
    )
    params = make_params(config)
    layout = plan_layout(config, label(params, [(".*", True)]))
    shapes = to_runtime(layout, params)
    batch = batch_of(config, length=128)
    temporary = []
    for remat in ("none", "dots", "full"):
        function = partial(loss_and_gradient, config, batch=batch, layout=layout, remat=remat)
        compiled = jax.jit(function).lower(shapes).compile()
        temporary.append(compiled.memory_analysis().temp_size_in_bytes)
    none, dots, full = temporary
    assert full < dots < none
    assert dots < 0.8 * none


def test_names_keep_what_they_say():
    assert get_args(SaveableName) == SAVEABLE_NAMES
    config = tiny_config("sandwich", num_layers=2)
    params, batch = make_params(config), batch_of(config)

    def kept(remat):
        residuals = saved_residuals(lambda p: batch_loss(config, p, batch, remat=remat), params)
        return sum(1 for shape, where in residuals if "argument" not in where)

    nothing = kept("full")
    for name in SAVEABLE_NAMES:
        # One more array for each of the two layers.
        assert kept((name,)) == nothing + 2, name
    with pytest.raises(ConfigError, match="train.remat is"):
        kept(("querry",))


@pytest.mark.parametrize("stacked", [False, True])
def test_outside_of_a_scan_the_compiler_is_kept_from_undoing_it(stacked):
    config = tiny_config(num_layers=3)
    params, layout = make_params(config), None
    if stacked:
        layout = plan_layout(config, label(params, [(".*", True)]))
        params = to_runtime(layout, params)
    function = partial(
        loss_and_gradient, config, batch=batch_of(config), layout=layout, remat="full"
    )
    # As text for TPUs: on CPU the products have barriers of their own.
    text = jax.jit(function).trace(params).lower(lowering_platforms=("tpu",)).as_text()
    assert ("optimization_barrier" in text) != stacked
