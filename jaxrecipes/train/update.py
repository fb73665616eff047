"""What every training step has in common: parts of a batch added up, and one guarded update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrecipes.params.paths import Tree
from jaxrecipes.train.penalty import Penalty
from jaxrecipes.train.perturb.protocol import Batch, Problem, Result
from jaxrecipes.train.perturb.schedule import Perturbation
from jaxrecipes.train.spikes import accepts, remember
from jaxrecipes.train.state import TrainState

Metrics = dict[str, jax.Array]
Update = Callable[
    [TrainState, Problem, Batch, jax.Array, jax.Array, Mapping[str, Tree]],
    tuple[TrainState, Metrics],
]


def make_update(
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    perturbation: Perturbation,
    micro_batches: int,
    spike_sigma: float,
    penalty: Penalty | None = None,
) -> Update:
    """Builds what follows in a step when the problem of its batch is known.

    Args:
        optimizer: From `optimizer.make_optimizer`.
        schedule: From `optimizer.learning_rate_schedule`, for the metrics.
        perturbation: What is done to the word embeddings; its statistics are among the metrics.
        micro_batches: Parts that the rows of a batch are cut into.
        spike_sigma: See `spikes.accepts`.
        penalty: What is added to the loss; its value is among the metrics.

    Returns:
        (state, problem, batch, PRNG key of the step, count, anchor of the penalty) -> (next state,
        metrics). The problem's loss of a part is its share of the whole batch's. The count, float32
        scalar, is that of supervised examples or tokens; a batch without any is refused like one
        that the spike guard refuses, since it has nothing to teach and must not decay the weights.
    """

    def update(
        state: TrainState,
        problem: Problem,
        batch: Batch,
        key: jax.Array,
        count: jax.Array,
        anchor: Mapping[str, Tree],
    ) -> tuple[TrainState, Metrics]:
        params = state.trainable

        def part(rows: Batch) -> Result:
            result = perturbation(problem, params, rows, key, state.step, state.teacher)
            if penalty is not None:
                result = penalty.on_rows(result, problem, params, rows, anchor)
            return result

        result = _accumulate(part, batch, micro_batches)
        if penalty is not None:
            result = penalty.on_parameters(result, params, anchor)
        loss, gradient, statistics = result
        norm = optax.tree.norm(gradient)
        accepted = accepts(state.spikes, loss, norm, spike_sigma) & (count > 0)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, params)

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(accepted, n, o), new, old)

        trainable = keep(optax.apply_updates(params, updates), params)
        after = TrainState(
            step=state.step + 1,
            trainable=trainable,
            optimizer_state=keep(optimizer_state, state.optimizer_state),
            spikes=remember(state.spikes, loss, norm, accepted),
            teacher=perturbation.next_teacher(state.teacher, trainable, state.step),
        )
        return after, {
            **statistics,
            "loss": loss,
            "gradient_norm": norm,
            # The optimizer counts the updates that were applied, and so does its schedule.
            "learning_rate": jnp.asarray(schedule(state.spikes.accepted)),
            "accepted": accepted,
            "skipped": after.spikes.skipped,
        }

    return update


def _accumulate(one: Callable[[Batch], Result], batch: Batch, micro_batches: int) -> Result:
    """Adds up loss, gradient and statistics of the parts of a batch, one part at a time."""
    if micro_batches == 1:
        return one(batch)
    parts = jax.tree.map(lambda rows: rows.reshape(micro_batches, -1, *rows.shape[1:]), batch)
    first = jax.eval_shape(one, jax.tree.map(lambda rows: rows[0], parts))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)

    def add(total: Result, part: Batch) -> tuple[Result, None]:
        return jax.tree.map(jnp.add, total, one(part)), None

    return jax.lax.scan(add, zero, parts)[0]
