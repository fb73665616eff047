"""One training step: loss of the trainable tree, its gradient, one guarded update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.execution import ONE_DEVICE, Execution
from jaxrecipes.models.stacking import Layout, RematPolicy
from jaxrecipes.params.paths import Tree
from jaxrecipes.train.loss import next_token_targets
from jaxrecipes.train.perturb.causal import causal_problem
from jaxrecipes.train.perturb.protocol import Result
from jaxrecipes.train.perturb.schedule import UNPERTURBED, Perturbation
from jaxrecipes.train.perturb.segments import count_segments
from jaxrecipes.train.spikes import accepts, remember
from jaxrecipes.train.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
StepFunction = Callable[[TrainState, Tree, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    layout: Layout | None,
    micro_batches: int = 1,
    compute_dtype: Any = jnp.float32,
    remat: RematPolicy = "none",
    loss_chunk: int = 512,
    spike_sigma: float = 6.0,
    execution: Execution = ONE_DEVICE,
    perturbation: Perturbation = UNPERTURBED,
) -> StepFunction:
    """Builds the pure function from state and batch to the next state.

    Only the trainable tree is differentiated, so the gradient norm, clipping, the spike guard and
    the metrics cannot touch a frozen leaf. The loss of a micro-batch is divided by the supervised
    tokens of the whole batch, so that they add up: 1 x 32 rows and 32 x 1 are the same step.

    Args:
        config: The model.
        optimizer: From `optimizer.make_optimizer`.
        schedule: From `optimizer.learning_rate_schedule`, for the metrics.
        layout: Layout of the trees; None for canonical ones.
        micro_batches: Parts that the rows of a batch are cut into.
        compute_dtype: dtype of activations and products; gradients of float32 leaves are float32.
        remat: See `stacking.rematerialise`.
        loss_chunk: Tokens of a device whose logits exist at the same time.
        spike_sigma: See `spikes.accepts`.
        execution: Devices and attention backend.
        perturbation: What is done to the word embeddings; its statistics are among the metrics.

    Returns:
        `step(state, frozen, batch) -> (state, metrics)`; jit it with the state donated.
    """

    def loss_and_gradient(
        state: TrainState, frozen: Tree, batch: Batch, count: jax.Array
    ) -> Result:
        problem = causal_problem(
            config,
            frozen,
            count=count,
            examples=count_segments(batch["segment_ids"]),
            layout=layout,
            compute_dtype=compute_dtype,
            remat=remat,
            loss_chunk=loss_chunk,
            execution=execution,
        )

        def part(rows: Batch) -> Result:
            return perturbation(problem, state.trainable, rows, state.step, state.teacher)

        if micro_batches == 1:
            return part(batch)
        parts = jax.tree.map(lambda rows: rows.reshape(micro_batches, -1, *rows.shape[1:]), batch)
        names = jax.eval_shape(part, jax.tree.map(lambda rows: rows[0], parts)).statistics
        zero = jnp.zeros((), jnp.float32)
        nothing = Result(
            zero, jax.tree.map(jnp.zeros_like, state.trainable), dict.fromkeys(names, zero)
        )

        def add(total: Result, rows: Batch) -> tuple[Result, None]:
            return jax.tree.map(jnp.add, total, part(rows)), None

        return jax.lax.scan(add, nothing, parts)[0]

    def step(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, Metrics]:
        _, weights = next_token_targets(
            batch["token_ids"], batch["segment_ids"], batch["loss_mask"]
        )
        count = jnp.sum(weights)
        loss, gradient, statistics = loss_and_gradient(
            state, frozen, batch, jnp.maximum(count, 1.0)
        )
        norm = optax.tree.norm(gradient)
        # A batch without supervised tokens has nothing to teach and must not decay the weights.
        accepted = accepts(state.spikes, loss, norm, spike_sigma) & (count > 0)
        updates, optimizer_state = optimizer.update(
            gradient, state.optimizer_state, state.trainable
        )
        trainable = optax.apply_updates(state.trainable, updates)

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(accepted, n, o), new, old)

        metrics = {
            **statistics,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": schedule(_updates_made(state)),
            "supervised_tokens": count,
            "accepted": accepted,
            "skipped": state.spikes.skipped + (~accepted).astype(jnp.int32),
        }
        kept = keep(trainable, state.trainable)
        return TrainState(
            step=state.step + 1,
            trainable=kept,
            optimizer_state=keep(optimizer_state, state.optimizer_state),
            spikes=remember(state.spikes, loss, norm, accepted),
            teacher=perturbation.next_teacher(state.teacher, kept, state.step),
        ), metrics

    return step


def _updates_made(state: TrainState) -> jax.Array:
    """The optimizer counts the updates that were applied, and so does its schedule."""
    return state.spikes.accepted
