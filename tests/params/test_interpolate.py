import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxrecipes.errors import CheckpointError, ConfigError
from jaxrecipes.models.decoder import init_params
from jaxrecipes.params.interpolate import alpha_grid, interpolate, interpolations
from jaxrecipes.params.paths import flatten
from tests.tiny import tiny_config

# XLA takes subnormal numbers for zero.
FLOATS = arrays.arrays(
    np.float32, 7, elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
)


@settings(deadline=None, max_examples=40)
@given(FLOATS, FLOATS, st.floats(0, 1, width=32))
def test_weights_are_on_the_line_and_exact_at_its_ends(base, trained, alpha):
    for end, expected in ((0.0, base), (1.0, trained)):
        np.testing.assert_array_equal(interpolate({"a": base}, {"a": trained}, end)["a"], expected)
    between = np.asarray(interpolate({"a": base}, {"a": trained}, alpha)["a"], np.float64)
    expected = (1 - alpha) * base.astype(np.float64) + alpha * trained.astype(np.float64)
    np.testing.assert_allclose(between, expected, atol=2e-4)
    # A frozen leaf: equal bits stay, at every alpha.
    np.testing.assert_array_equal(interpolate({"a": base}, {"a": base.copy()}, alpha)["a"], base)


def test_whole_models_and_the_grid():
    config = tiny_config()
    base, trained = (init_params(config, jax.random.key(seed)) for seed in (0, 1))
    found = list(interpolations(base, trained, alpha_grid(5)))
    assert [alpha for alpha, _ in found] == [0, 0.25, 0.5, 0.75, 1]
    for alpha, tree in found:
        assert jax.tree.structure(tree) == jax.tree.structure(base)
        for path, leaf in flatten(tree).items():
            np.testing.assert_allclose(
                leaf, (1 - alpha) * flatten(base)[path] + alpha * flatten(trained)[path], atol=1e-6
            )


def test_half_precision_is_computed_in_float32_and_rounded_once():
    base, trained = jnp.asarray([1.0], jnp.bfloat16), jnp.asarray([1.0 + 2**-7], jnp.bfloat16)
    assert interpolate({"a": base}, {"a": trained}, 0.75)["a"].dtype == jnp.bfloat16
    wide = interpolate({"a": base}, {"a": trained.astype(jnp.float32)}, 0.5)["a"]
    assert wide.dtype == jnp.float32 and float(wide[0]) == 1.0 + 2**-8


@pytest.mark.parametrize(
    ("base", "trained", "message"),
    [
        ({"a": np.zeros(2)}, {"a": np.zeros(3)}, r"a has shape \(2,\) in the base and \(3,\)"),
        ({"a": np.zeros(2)}, {"b": np.zeros(2)}, "only the base have a"),
        ({"a": np.zeros(2)}, {"a": np.zeros(2), "b": np.zeros(2)}, "only the trained weights"),
        ({"a": np.zeros(2, int)}, {"a": np.ones(2, int)}, "only floats"),
    ],
)
def test_models_of_other_shapes_are_errors(base, trained, message):
    with pytest.raises(CheckpointError, match=message):
        interpolate(base, trained, 0.5)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alphas_outside_are_errors(alpha):
    with pytest.raises(ConfigError, match="alpha is"):
        interpolate({}, {}, alpha)
    with pytest.raises(ConfigError, match="at least 2"):
        alpha_grid(1)
