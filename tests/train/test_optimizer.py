import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrecipes.errors import ConfigError
from jaxrecipes.models.stacking import Layout, Segment
from jaxrecipes.params.layout import to_canonical
from jaxrecipes.params.paths import flatten
from jaxrecipes.train.optimizer import (
    OPTIMIZERS,
    OptimizerSettings,
    count_bytes,
    learning_rate_schedule,
)
from tests.tiny import packed_batch, tiny_config, tiny_params, trainer


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name if name == "muon" else pytest.param(name, marks=pytest.mark.long) for name in OPTIMIZERS],
)
def test_an_update_does_not_depend_on_how_layers_are_stacked(name):
    config = tiny_config(num_layers=6)
    params, batch = tiny_params(config), packed_batch(config)
    rules = [("layers/(1|3|5)/.*", True), (".*", False)]
    alone = Layout(tuple(Segment(index, (1,), 1) for index in range(6)))
    results = []
    for layout in ("planned", alone):
        step, state, frozen, plan = trainer(config, params, rules, optimizer=name, layout=layout)
        for _ in range(3):
            state, _ = step(state, frozen, batch)
        results.append(flatten(to_canonical(plan, state.trainable)))
    for path, leaf in results[0].items():
        np.testing.assert_allclose(leaf, results[1][path], atol=2e-5, rtol=2e-4, err_msg=path)
    moved = [np.abs(leaf - flatten(params)[path]).max() for path, leaf in results[0].items()]
    assert min(moved) > 0


def test_state_exists_for_trainable_leaves_only():
    config = tiny_config(num_layers=6)
    _, state, _, _ = trainer(config, tiny_params(config), [("layers/2/.*", True), (".*", False)])
    trained = count_bytes(state.trainable)
    assert trained == sum(
        leaf.nbytes for leaf in jax.tree.leaves(tiny_params(config)["layers"]["2"])
    )
    # Two moments and a few counters.
    assert 2 * trained <= count_bytes(state.optimizer_state) <= 2 * trained + 64


@pytest.mark.slow
def test_weight_decay_reaches_kernels_and_nothing_else():
    config = tiny_config()
    params = tiny_params(config)
    batch = packed_batch(config)
    results = []
    for decay in (0.0, 0.5):
        step, state, frozen, plan = trainer(
            config, params, [(".*", True)], settings={"weight_decay": decay, "warmup_steps": 0}
        )
        state, _ = step(state, frozen, batch)
        results.append(flatten(to_canonical(plan, state.trainable)))
    for path, leaf in flatten(params).items():
        difference = results[1][path] - results[0][path]
        expected = -1e-2 * 0.5 * leaf if path.endswith("kernel") else 0 * leaf
        np.testing.assert_allclose(difference, expected, atol=1e-6, err_msg=path)


def test_schedules_start_peak_and_end_where_they_say():
    for name in ("constant", "linear", "cosine", "wsd"):
        settings = OptimizerSettings(
            total_steps=100, learning_rate=2.0, schedule=name, warmup_steps=10, final_ratio=0.1
        )
        rates = [float(learning_rate_schedule(settings)(step)) for step in range(100)]
        assert rates[0] == pytest.approx(0.2), name
        assert max(rates) == pytest.approx(2.0) and rates[9] == pytest.approx(2.0), name
        assert rates[-1] == pytest.approx(2.0 if name == "constant" else 0.2, rel=1e-3), name
        assert all(low <= high + 1e-6 for low, high in zip(rates[:10], rates[1:10], strict=False))
        assert all(high + 1e-6 >= low for high, low in zip(rates[10:], rates[11:], strict=False))
    wsd = OptimizerSettings(total_steps=100, learning_rate=2.0, schedule="wsd", warmup_steps=0)
    assert float(learning_rate_schedule(wsd)(78)) == pytest.approx(2.0)


@pytest.mark.parametrize("change", [{"schedule": "step"}, {"warmup_steps": 50, "total_steps": 50}])
def test_a_schedule_that_cannot_be_is_refused(change):
    with pytest.raises(ConfigError):
        learning_rate_schedule(OptimizerSettings(**{"total_steps": 50, **change}))


@pytest.mark.slow
def test_adamw_is_the_written_out_formula():
    config = tiny_config(num_layers=1)
    params, batch = tiny_params(config), packed_batch(config)
    step, state, frozen, _ = trainer(
        config,
        params,
        [("final_norm/.*", True), (".*", False)],
        settings={"warmup_steps": 0, "clip_norm": None, "schedule": "constant"},
    )
    from jaxrecipes.train.causal_loss import batch_loss
    from jaxrecipes.train.loss import next_token_targets

    _, weights = next_token_targets(batch["token_ids"], batch["segment_ids"], batch["loss_mask"])
    x = jnp.asarray(params["final_norm"]["scale"], jnp.float32)
    first = second = jnp.zeros_like(x)
    for count in (1, 2, 3):

        def loss(scale):
            return batch_loss(config, {**params, "final_norm": {"scale": scale}}, batch)

        gradient = jax.grad(loss)(x) / weights.sum()
        first, second = 0.9 * first + 0.1 * gradient, 0.95 * second + 0.05 * gradient**2
        x = x - 1e-2 * (first / (1 - 0.9**count)) / (jnp.sqrt(second / (1 - 0.95**count)) + 1e-8)
        state, _ = step(state, frozen, batch)
    np.testing.assert_allclose(state.trainable["final_norm"]["scale"], x, atol=3e-5)
