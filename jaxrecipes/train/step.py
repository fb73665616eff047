"""One training step: loss of the trainable tree, its gradient, one guarded update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrecipes.models import decoder
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.execution import ONE_DEVICE, Execution
from jaxrecipes.models.stacking import Layout, RematPolicy
from jaxrecipes.params.partition import combine
from jaxrecipes.params.paths import Tree
from jaxrecipes.train.loss import chunked_cross_entropy, next_token_targets
from jaxrecipes.train.spikes import accepts, remember
from jaxrecipes.train.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
StepFunction = Callable[[TrainState, Tree, Batch], tuple[TrainState, Metrics]]


def batch_loss(
    config: ModelConfig,
    params: Tree,
    batch: Batch,
    *,
    layout: Layout | None = None,
    compute_dtype: Any = jnp.float32,
    remat: RematPolicy = "none",
    loss_chunk: int = 512,
    execution: Execution = ONE_DEVICE,
) -> jax.Array:
    """Sums the negative log-likelihoods of a batch's supervised tokens.

    Args:
        config: The model.
        params: Tree in the given layout.
        batch: `token_ids`, `segment_ids`, `positions`, `loss_mask`, each [rows, length].
        layout: Layout of `params`; None for the canonical tree.
        compute_dtype: dtype of activations and products.
        remat: See `stacking.rematerialise`.
        loss_chunk: Tokens of a device whose logits exist at the same time.
        execution: Devices and attention backend.

    Returns:
        float32 scalar, in nats.
    """
    return embeddings_loss(
        config,
        params,
        decoder.embed(config, params, batch["token_ids"], compute_dtype, execution),
        batch,
        layout=layout,
        compute_dtype=compute_dtype,
        remat=remat,
        loss_chunk=loss_chunk,
        execution=execution,
    )


def embeddings_loss(
    config: ModelConfig,
    params: Tree,
    embeddings: jax.Array,
    batch: Batch,
    *,
    layout: Layout | None = None,
    compute_dtype: Any = jnp.float32,
    remat: RematPolicy = "none",
    loss_chunk: int = 512,
    execution: Execution = ONE_DEVICE,
) -> jax.Array:
    """Does what `batch_loss` does with given word embeddings in place of the tokens' own.

    Args:
        config: The model.
        params: Tree in the given layout.
        embeddings: Float [rows, length, hidden_size], see `decoder.embed`.
        batch: As in `batch_loss`, like everything that follows; its tokens are the targets.
        layout: Layout of `params`.
        compute_dtype: dtype of activations and products.
        remat: See `stacking.rematerialise`.
        loss_chunk: Tokens of a device whose logits exist at the same time.
        execution: Devices and attention backend.

    Returns:
        float32 scalar, in nats.
    """
    states = decoder.hidden_states_of_embeddings(
        config,
        params,
        embeddings,
        batch["segment_ids"],
        batch["positions"],
        compute_dtype=compute_dtype,
        layout=layout,
        remat=remat,
        execution=execution,
    )
    targets, weights = next_token_targets(
        batch["token_ids"], batch["segment_ids"], batch["loss_mask"]
    )
    return chunked_cross_entropy(
        states,
        decoder.stored_head(config, params),
        targets,
        weights,
        vocab_first=config.tie_embeddings,
        softcap=config.final_softcap,
        chunk=loss_chunk,
        mesh=execution.mesh,
    )


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
) -> StepFunction:
    """Builds the pure function from state and batch to the next state.

    Only the trainable tree is differentiated, so the gradient norm, clipping, the spike guard and
    the metrics cannot touch a frozen leaf. Micro-batches add up sums, and the sum is divided by the
    supervised tokens of the whole batch: 1 x 32 rows and 32 x 1 are the same step.

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

    Returns:
        `step(state, frozen, batch) -> (state, metrics)`; jit it with the state donated.
    """

    def loss_sum(trainable: Tree, frozen: Tree, batch: Batch) -> jax.Array:
        return batch_loss(
            config,
            combine(trainable, frozen),
            batch,
            layout=layout,
            compute_dtype=compute_dtype,
            remat=remat,
            loss_chunk=loss_chunk,
            execution=execution,
        )

    def mean_loss_and_gradient(
        trainable: Tree, frozen: Tree, batch: Batch, count: jax.Array
    ) -> tuple[jax.Array, Tree]:
        def mean_loss(trainable: Tree, micro_batch: Batch) -> jax.Array:
            return loss_sum(trainable, frozen, micro_batch) / count

        if micro_batches == 1:
            return jax.value_and_grad(mean_loss)(trainable, batch)

        def add(total: tuple[jax.Array, Tree], micro_batch: Batch) -> tuple[Any, None]:
            return jax.tree.map(
                jnp.add, total, jax.value_and_grad(mean_loss)(trainable, micro_batch)
            ), None

        parts = jax.tree.map(lambda rows: rows.reshape(micro_batches, -1, *rows.shape[1:]), batch)
        zero = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, trainable))
        return jax.lax.scan(add, zero, parts)[0]

    def step(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, Metrics]:
        _, weights = next_token_targets(
            batch["token_ids"], batch["segment_ids"], batch["loss_mask"]
        )
        count = jnp.sum(weights)
        loss, gradient = mean_loss_and_gradient(
            state.trainable, frozen, batch, jnp.maximum(count, 1.0)
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
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": schedule(_updates_made(state)),
            "supervised_tokens": count,
            "accepted": accepted,
            "skipped": state.spikes.skipped + (~accepted).astype(jnp.int32),
        }
        return TrainState(
            step=state.step + 1,
            trainable=keep(trainable, state.trainable),
            optimizer_state=keep(optimizer_state, state.optimizer_state),
            spikes=remember(state.spikes, loss, norm, accepted),
        ), metrics

    return step


def _updates_made(state: TrainState) -> jax.Array:
    """The optimizer counts the updates that were applied, and so does its schedule."""
    return state.spikes.accepted
