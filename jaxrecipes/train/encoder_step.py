"""One training step of a model with a head: any objective, any perturbation, one guarded update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrecipes.models.dropout import row_keys
from jaxrecipes.params.paths import Tree
from jaxrecipes.train.backbone import Batch
from jaxrecipes.train.objectives import Objective
from jaxrecipes.train.perturb import Clean, Perturber, Problem, Result
from jaxrecipes.train.spikes import accepts, remember
from jaxrecipes.train.state import TrainState

Metrics = dict[str, jax.Array]
# (state, frozen tree, batch, PRNG key of the run, teacher or None) -> (next state, metrics).
ObjectiveStep = Callable[..., tuple[TrainState, Metrics]]
# Means over the examples of a part of a batch; everything else adds up.
_MEANS = ("delta_norm", "relative_delta")


def make_objective_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    perturber: Perturber | None = None,
    dropout: bool = False,
    micro_batches: int = 1,
    spike_sigma: float = 6.0,
) -> ObjectiveStep:
    """Builds the pure function from state and batch to the next state.

    As in `train.step` only the trainable tree is differentiated, and micro-batches add up sums that
    are divided by the examples (or masked tokens) of the whole batch. All that is random (masks,
    dropout, noise) follows from the run's key and the number of the step, so that a run that goes
    on from a saved state draws what it would have drawn; none of it depends on `micro_batches`.

    Args:
        objective: From `objectives`.
        optimizer: From `optimizer.make_optimizer`.
        schedule: From `optimizer.learning_rate_schedule`, for the metrics.
        perturber: From `perturb`; None for no perturbation.
        dropout: Give the batch `dropout_keys`; rates are those of the backbone and the head.
        micro_batches: Parts that the rows of a batch are cut into.
        spike_sigma: See `spikes.accepts`.

    Returns:
        `step(state, frozen, batch, key, teacher=None) -> (state, metrics)`; jit it with the state
        donated. `key` is the PRNG key of the whole run; the teacher is a tree like
        `state.trainable`, for perturbers that need one.
    """
    method = perturber or Clean()

    def result_of(
        problem: Problem, trainable: Tree, batch: Batch, key: jax.Array, teacher: Tree | None
    ) -> Result:
        def one(part: Batch) -> Result:
            return method(problem, trainable, part, key, teacher)

        if micro_batches == 1:
            return one(batch)
        parts = jax.tree.map(lambda rows: rows.reshape(micro_batches, -1, *rows.shape[1:]), batch)
        first = jax.eval_shape(one, jax.tree.map(lambda rows: rows[0], parts))
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)

        def add(total: Result, part: Batch) -> tuple[Result, None]:
            return jax.tree.map(jnp.add, total, one(part)), None

        total = jax.lax.scan(add, zero, parts)[0]
        statistics = {
            name: value / micro_batches if name in _MEANS else value
            for name, value in total.statistics.items()
        }
        return total._replace(statistics=statistics)

    def step(
        state: TrainState,
        frozen: Tree,
        batch: Batch,
        key: jax.Array,
        teacher: Tree | None = None,
    ) -> tuple[TrainState, Metrics]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), 3)
        prepare_key, dropout_key, noise_key = keys
        batch = objective.prepare(batch, prepare_key)
        if dropout:
            rows = batch["token_ids"].shape[0]
            batch = {**batch, "dropout_keys": row_keys(dropout_key, rows)}
        count = objective.count(batch)
        problem = objective.problem(frozen, jnp.maximum(count, 1.0))
        loss, gradient, statistics = result_of(problem, state.trainable, batch, noise_key, teacher)
        return guarded_update(
            state,
            gradient,
            optimizer,
            loss=loss,
            count=count,
            rate=schedule(state.spikes.accepted),
            spike_sigma=spike_sigma,
            metrics=statistics,
        )

    return step


def guarded_update(
    state: TrainState,
    gradient: Tree,
    optimizer: optax.GradientTransformation,
    *,
    loss: jax.Array,
    count: jax.Array,
    rate: Any,
    spike_sigma: float,
    metrics: Metrics,
) -> tuple[TrainState, Metrics]:
    """Applies one update, or leaves everything as it is where the spike guard refuses it.

    Args:
        state: Before.
        gradient: Of the trainable tree.
        optimizer: The optimizer.
        loss: float32 scalar, the mean that was differentiated.
        count: float32 scalar, supervised examples or tokens; a batch without any is refused, since
            it has nothing to teach and must not decay the weights.
        rate: The learning rate, for the metrics.
        spike_sigma: See `spikes.accepts`.
        metrics: More of them.

    Returns:
        The next state, and metrics.
    """
    norm = optax.tree.norm(gradient)
    accepted = accepts(state.spikes, loss, norm, spike_sigma) & (count > 0)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(accepted, n, o), new, old)

    after = replace(
        state,
        step=state.step + 1,
        trainable=keep(trainable, state.trainable),
        optimizer_state=keep(optimizer_state, state.optimizer_state),
        spikes=remember(state.spikes, loss, norm, accepted),
    )
    return after, {
        "loss": loss,
        "gradient_norm": norm,
        "learning_rate": rate,
        "supervised": count,
        "accepted": accepted,
        "skipped": after.spikes.skipped,
        **metrics,
    }
