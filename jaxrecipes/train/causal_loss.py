"""The next-token loss of a decoder: from tokens, or from given word embeddings."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrecipes.models import decoder
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.execution import ONE_DEVICE, Execution
from jaxrecipes.models.stacking import Layout, RematPolicy
from jaxrecipes.params.paths import Tree
from jaxrecipes.train.loss import chunked_cross_entropy, next_token_targets

Batch = dict[str, jax.Array]


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
        dropout_seeds=batch.get("dropout_seeds"),
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
