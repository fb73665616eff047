"""One training step of a model with a head: any objective, any perturbation, one guarded update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax

from jaxrecipes.models.dropout import row_keys
from jaxrecipes.params.paths import Tree
from jaxrecipes.train.backbone import Batch
from jaxrecipes.train.objectives import Objective
from jaxrecipes.train.perturb.schedule import UNPERTURBED, Perturbation
from jaxrecipes.train.perturb.segments import count_segments
from jaxrecipes.train.state import TrainState
from jaxrecipes.train.update import Metrics, make_update

# (state, frozen tree, batch, PRNG key of the run) -> (next state, metrics).
ObjectiveStep = Callable[..., tuple[TrainState, Metrics]]


def make_objective_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    perturbation: Perturbation = UNPERTURBED,
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
        perturbation: What is done to the word embeddings.
        dropout: Give the batch `dropout_keys`; rates are those of the backbone and the head.
        micro_batches: Parts that the rows of a batch are cut into.
        spike_sigma: See `spikes.accepts`.

    Returns:
        `step(state, frozen, batch, key) -> (state, metrics)`; jit it with the state donated. `key`
        is the PRNG key of the whole run.
    """
    update = make_update(
        optimizer,
        schedule,
        perturbation=perturbation,
        micro_batches=micro_batches,
        spike_sigma=spike_sigma,
    )

    def step(
        state: TrainState,
        frozen: Tree,
        batch: Batch,
        key: jax.Array,
    ) -> tuple[TrainState, Metrics]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), 3)
        prepare_key, dropout_key, noise_key = keys
        batch = objective.prepare(batch, prepare_key)
        if dropout:
            rows = batch["token_ids"].shape[0]
            batch = {**batch, "dropout_keys": row_keys(dropout_key, rows)}
        count = objective.count(batch)
        problem = objective.problem(frozen, jnp.maximum(count, 1.0))
        problem = replace(problem, examples=count_segments(batch["segment_ids"]))
        after, metrics = update(state, problem, batch, noise_key, count, {})
        return after, {**metrics, "supervised": count}

    return step
