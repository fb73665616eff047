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
from jaxrecipes.train.dropout import dropout_seeds
from jaxrecipes.train.loss import next_token_targets
from jaxrecipes.train.perturb.causal import causal_problem
from jaxrecipes.train.perturb.protocol import Result
from jaxrecipes.train.perturb.schedule import UNPERTURBED, Perturbation
from jaxrecipes.train.perturb.segments import count_segments
from jaxrecipes.train.state import TrainState
from jaxrecipes.train.update import Metrics, accumulate, guarded_update

Batch = dict[str, jax.Array]
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
    dropout_key: jax.Array | None = None,
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
        dropout_key: PRNG key of the run, where adapters have dropout; None for none.

    Returns:
        `step(state, frozen, batch) -> (state, metrics)`; jit it with the state donated.
    """

    def step(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, Metrics]:
        _, weights = next_token_targets(
            batch["token_ids"], batch["segment_ids"], batch["loss_mask"]
        )
        count = jnp.sum(weights)
        if dropout_key is not None:
            step_key = jax.random.fold_in(dropout_key, state.step)
            batch = {**batch, "dropout_seeds": dropout_seeds(step_key, batch)}
        problem = causal_problem(
            config,
            frozen,
            count=jnp.maximum(count, 1.0),
            examples=count_segments(batch["segment_ids"]),
            layout=layout,
            compute_dtype=compute_dtype,
            remat=remat,
            loss_chunk=loss_chunk,
            execution=execution,
        )
        key = perturbation.key(state.step)

        def part(rows: Batch) -> Result:
            return perturbation(problem, state.trainable, rows, key, state.step, state.teacher)

        after, metrics = guarded_update(
            state,
            accumulate(part, batch, micro_batches),
            optimizer,
            count=count,
            schedule=schedule,
            spike_sigma=spike_sigma,
            next_teacher=perturbation.next_teacher,
        )
        return after, {**metrics, "supervised_tokens": count}

    return step
