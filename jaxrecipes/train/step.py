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
from jaxrecipes.train.penalty import Penalty, take_anchor
from jaxrecipes.train.perturb.causal import causal_problem
from jaxrecipes.train.perturb.schedule import UNPERTURBED, Perturbation
from jaxrecipes.train.perturb.segments import count_segments
from jaxrecipes.train.state import TrainState
from jaxrecipes.train.update import Metrics, make_update

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
    penalty: Penalty | None = None,
    dropout: bool = False,
    key: jax.Array | None = None,
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
        penalty: What is added to the loss; its anchor is then in the frozen argument.
        dropout: Drop what adapters that have dropout say.
        key: PRNG key of the run, of which noise and dropout are a function; None for key 0.

    Returns:
        `step(state, frozen, batch) -> (state, metrics)`; jit it with the state donated.
    """
    update = make_update(
        optimizer,
        schedule,
        perturbation=perturbation,
        micro_batches=micro_batches,
        spike_sigma=spike_sigma,
        penalty=penalty,
    )
    run_key = jax.random.key(0) if key is None else key

    def step(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, Metrics]:
        frozen, anchor = take_anchor(frozen)
        _, weights = next_token_targets(
            batch["token_ids"], batch["segment_ids"], batch["loss_mask"]
        )
        count = jnp.sum(weights)
        if dropout:
            dropout_key = jax.random.fold_in(jax.random.fold_in(run_key, 1), state.step)
            batch = {**batch, "dropout_seeds": dropout_seeds(dropout_key, batch)}
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
        noise_key = jax.random.fold_in(run_key, state.step)
        after, metrics = update(state, problem, batch, noise_key, count, anchor)
        return after, {**metrics, "supervised_tokens": count}

    return step
