"""What every training step has in common: parts of a batch added up, and one guarded update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrecipes.params.paths import Tree
from jaxrecipes.train.perturb.protocol import Batch, Result
from jaxrecipes.train.spikes import accepts, remember
from jaxrecipes.train.state import TrainState

Metrics = dict[str, jax.Array]


def accumulate(one: Callable[[Batch], Result], batch: Batch, micro_batches: int) -> Result:
    """Adds up loss, gradient and statistics of the parts of a batch, one part at a time.

    Args:
        one: Computes a part's share: divided by the tokens or examples of the whole batch.
        batch: Arrays [rows, ...].
        micro_batches: Parts that the rows are cut into.

    Returns:
        The sums.
    """
    if micro_batches == 1:
        return one(batch)
    parts = jax.tree.map(lambda rows: rows.reshape(micro_batches, -1, *rows.shape[1:]), batch)
    first = jax.eval_shape(one, jax.tree.map(lambda rows: rows[0], parts))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)

    def add(total: Result, part: Batch) -> tuple[Result, None]:
        return jax.tree.map(jnp.add, total, one(part)), None

    return jax.lax.scan(add, zero, parts)[0]


def guarded_update(
    state: TrainState,
    result: Result,
    optimizer: optax.GradientTransformation,
    *,
    count: jax.Array,
    schedule: optax.Schedule,
    spike_sigma: float,
    next_teacher: Callable[[Tree | None, Tree, jax.Array], Tree | None],
) -> tuple[TrainState, Metrics]:
    """Applies one update, or leaves everything as it is where the spike guard refuses it.

    Args:
        state: Before.
        result: Of the trainable tree; the loss is the mean that was differentiated.
        optimizer: The optimizer.
        count: float32 scalar, supervised examples or tokens; a batch without any is refused, since
            it has nothing to teach and must not decay the weights.
        schedule: The learning rate by updates made, for the metrics.
        spike_sigma: See `spikes.accepts`.
        next_teacher: See `Perturbation.next_teacher`.

    Returns:
        The next state, and metrics: the result's statistics among them.
    """
    loss, gradient, statistics = result
    norm = optax.tree.norm(gradient)
    accepted = accepts(state.spikes, loss, norm, spike_sigma) & (count > 0)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(accepted, n, o), new, old)

    kept = keep(trainable, state.trainable)
    after = replace(
        state,
        step=state.step + 1,
        trainable=kept,
        optimizer_state=keep(optimizer_state, state.optimizer_state),
        spikes=remember(state.spikes, loss, norm, accepted),
        teacher=next_teacher(state.teacher, kept, state.step),
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
