"""Penalties: their gradients against the written-out formulas, and what must not change them."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrecipes.errors import ConfigError
from jaxrecipes.models import decoder
from jaxrecipes.params.expansion import expand_blocks
from jaxrecipes.params.layout import to_canonical
from jaxrecipes.params.partition import combine
from jaxrecipes.params.paths import flatten
from jaxrecipes.params.surgery import layers_pattern
from jaxrecipes.train.causal_loss import batch_loss
from jaxrecipes.train.loss import next_token_targets
from jaxrecipes.train.penalty import Penalty, take_anchor, with_anchor
from jaxrecipes.train.perturb.causal import causal_problem
from tests.tiny import packed_batch, tiny_config, tiny_params, trainer

KINDS = ("l2", "ewc", "kl")
# In a step, l2 and ewc take the same way.
TWO_KINDS = ("ewc", "kl", pytest.param("l2", marks=pytest.mark.long))


def moved(tree, seed=1, size=0.05):
    leaves, structure = jax.tree.flatten(tree)
    generator = np.random.default_rng(seed)
    return jax.tree.unflatten(
        structure,
        [leaf + size * generator.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves],
    )


def anchor_of(kind, start, seed=2):
    generator = np.random.default_rng(seed)
    fisher = jax.tree.map(
        lambda leaf: generator.random(leaf.shape).astype(np.float32) * (leaf.size % 7 > 0), start
    )
    return {"start": start, "fisher": fisher} if kind == "ewc" else {"start": start}


def written_out(kind, coefficient, config, params, start, fisher, batch):
    """The penalty leaf by leaf in numpy, or token by token from all logits."""
    if kind != "kl":
        leaves, before = flatten(params), flatten(start)
        weights = flatten(fisher) if kind == "ewc" else dict.fromkeys(leaves, 1.0)
        return sum(
            coefficient / 2 * jnp.sum(weights[path] * (leaf - before[path]) ** 2)
            for path, leaf in leaves.items()
        )
    _, weights = next_token_targets(batch["token_ids"], batch["segment_ids"], batch["loss_mask"])

    def log_p(tree):
        states = decoder.hidden_states(
            config, tree, batch["token_ids"], batch["segment_ids"], batch["positions"]
        )
        logits = states @ decoder.stored_head(config, tree).T
        return jax.nn.log_softmax(logits)

    base, model = log_p(start), log_p(params)
    kl = jnp.sum(jnp.exp(base) * (base - model), axis=-1)
    return coefficient * jnp.sum(kl * weights) / jnp.sum(weights)


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_are_those_of_the_formula(kind):
    config = tiny_config(num_layers=2)
    start, batch = tiny_params(config), packed_batch(config)
    params, anchor = moved(start), anchor_of(kind, start)
    penalty = Penalty(kind, 0.7)
    _, weights = next_token_targets(batch["token_ids"], batch["segment_ids"], batch["loss_mask"])
    problem = causal_problem(config, {}, count=jnp.sum(weights), loss_chunk=16)

    def ours(params):
        return penalty.distance(params, anchor) + (
            penalty.divergence(problem, params, batch, anchor) if kind == "kl" else 0.0
        )

    value, gradient = jax.jit(jax.value_and_grad(ours))(params)
    fisher = anchor.get("fisher")
    expected, wanted = jax.jit(
        jax.value_and_grad(
            lambda params: written_out(kind, 0.7, config, params, start, fisher, batch)
        )
    )(params)
    assert float(value) > 0
    assert float(value) == pytest.approx(float(expected), rel=2e-5)
    for path, leaf in flatten(gradient).items():
        other = flatten(wanted)[path]
        np.testing.assert_allclose(
            leaf, other, rtol=2e-3, atol=1e-5 * float(np.abs(other).max()) + 1e-8, err_msg=path
        )


def penalised(kind, params, config, rules, **options):
    step, state, frozen, layout = trainer(
        config, params, rules, penalty=Penalty(kind, 0.3) if kind else None, **options
    )
    start = jax.tree.map(jnp.copy, state.trainable)
    held = with_anchor(frozen, anchor_of(kind, start)) if kind else frozen
    return step, state, held, layout


@pytest.mark.parametrize("kind", TWO_KINDS)
def test_the_first_step_has_no_penalty_and_is_the_step_without_one(kind):
    """Zero at the start, also for what is expanded and mostly frozen; afterwards it pulls."""
    config = tiny_config(num_layers=2)
    base = expand_blocks(config, tiny_params(config), new_blocks=1)
    rules = [(layers_pattern(base.positions), True), (".*", False)]
    batch = packed_batch(config)
    step, state, held, _ = penalised(kind, base.params, base.config, rules)
    plain, plain_state, frozen, _ = penalised(None, base.params, base.config, rules)
    for number in range(3):
        state, metrics = step(state, held, batch)
        plain_state, expected = plain(plain_state, frozen, batch)
        if number == 0:
            assert float(metrics["penalty"]) == pytest.approx(0.0, abs=1e-9)
            assert float(metrics["loss"]) == float(expected["loss"])
            for ours, other in zip(
                jax.tree.leaves(state.trainable),
                jax.tree.leaves(plain_state.trainable),
                strict=True,
            ):
                np.testing.assert_allclose(ours, other, atol=1e-6)
    assert float(metrics["penalty"]) > 0
    assert float(metrics["loss"]) == pytest.approx(
        float(metrics["task_loss"]) + float(metrics["penalty"]), rel=1e-6
    )
    assert "penalty" not in expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", TWO_KINDS)
def test_micro_batches_change_nothing(kind):
    config = tiny_config(num_layers=2)
    batch = packed_batch(config, rows=4)
    # Very different numbers of supervised tokens: a mean of means would differ.
    batch["loss_mask"][:3] = False
    batch["loss_mask"][:3, 1] = True
    results = {}
    for parts in (1, 4):
        step, state, held, _ = penalised(
            kind, tiny_params(config), config, [(".*", True)], micro_batches=parts
        )
        for _ in range(3):
            state, metrics = step(state, held, batch)
        results[parts] = (metrics, state.trainable)
    assert float(results[1][0]["penalty"]) > 0
    for name in ("loss", "task_loss", "penalty", "gradient_norm"):
        assert float(results[4][0][name]) == pytest.approx(float(results[1][0][name]), rel=1e-4)


@pytest.mark.long
def test_the_strongest_penalty_keeps_the_model_where_it_was():
    """And without one it goes away: the loss that remains is the start's."""
    config = tiny_config(num_layers=2)
    params, batch = tiny_params(config), packed_batch(config)
    rules = [(".*", True)]
    ends = {}
    for coefficient in (None, 1e4):
        step, state, frozen, layout = trainer(
            config,
            params,
            rules,
            penalty=None if coefficient is None else Penalty("l2", coefficient),
            settings={"learning_rate": 1e-3, "weight_decay": 0.0},
        )
        held = frozen
        if coefficient is not None:
            held = with_anchor(frozen, {"start": jax.tree.map(jnp.copy, state.trainable)})
        for _ in range(30):
            state, _ = step(state, held, batch)
        tree = to_canonical(layout, combine(state.trainable, frozen))
        ends[coefficient] = float(batch_loss(config, tree, batch))
    before = float(batch_loss(config, params, batch))
    assert abs(ends[1e4] - before) < 0.2 * (before - ends[None])


def test_dropout_is_not_in_either_model_of_kl():
    """Seeds of dropout in the batch are not read: the base would be another model with them."""
    config = tiny_config(num_layers=2)
    start, batch = tiny_params(config), packed_batch(config)
    problem = causal_problem(config, {}, count=1.0)
    seen = []

    def watch(params, embeddings, rows):
        seen.append("dropout_seeds" in rows)
        assert problem.outputs is not None
        return problem.outputs(params, embeddings, rows)

    penalty = Penalty("kl", 1.0)
    with_seeds = {**batch, "dropout_seeds": np.zeros(batch["token_ids"].shape, np.uint32)}
    value = penalty.divergence(replace(problem, outputs=watch), start, with_seeds, {"start": start})
    assert float(value) == pytest.approx(0.0, abs=1e-6)
    assert seen == [False, False]


def test_the_frozen_argument_comes_apart_as_it_was_put_together():
    frozen, anchor = {"embedding": {"table": 1}}, {"start": {"layers": {"0": 2}}}
    assert take_anchor(with_anchor(frozen, anchor)) == (frozen, anchor)
    assert take_anchor(frozen) == (frozen, {})
    assert with_anchor(frozen, {}) == frozen


@pytest.mark.parametrize("coefficient", [0.0, -1.0, float("inf"), float("nan")])
def test_a_coefficient_that_weighs_nothing_is_refused(coefficient):
    with pytest.raises(ConfigError, match="coefficient is"):
        Penalty("l2", coefficient)
