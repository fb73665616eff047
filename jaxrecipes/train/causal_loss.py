"""The next-token loss of a decoder."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxrecipes.models import decoder
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.execution import ONE_DEVICE, Execution
from jaxrecipes.models.stacking import Layout, RematPolicy
from jaxrecipes.params.paths import Tree
from jaxrecipes.train.backbone import Batch, decoder_backbone
from jaxrecipes.train.loss import chunked_cross_entropy, next_token_targets


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
    backbone = decoder_backbone(
        config, layout=layout, compute_dtype=compute_dtype, remat=remat, execution=execution
    )
    states = backbone.states(params, backbone.embed(params, batch), batch)
    head = decoder.stored_head(config, params)
    return states_loss(config, states, head, batch, loss_chunk=loss_chunk, mesh=execution.mesh)


def states_loss(
    config: ModelConfig,
    states: jax.Array,
    head: jax.Array,
    batch: Batch,
    *,
    loss_chunk: int,
    mesh: Mesh | None,
) -> jax.Array:
    """Does what `batch_loss` does with hidden states that are there already.

    Args:
        config: The model.
        states: Float [rows, length, hidden_size], after the final norm.
        head: See `decoder.stored_head`.
        batch: As in `batch_loss`; its tokens are the targets.
        loss_chunk: Tokens of a device whose logits exist at the same time.
        mesh: The mesh of the arrays, if there is one.

    Returns:
        float32 scalar, in nats.
    """
    targets, weights = next_token_targets(
        batch["token_ids"], batch["segment_ids"], batch["loss_mask"]
    )
    return chunked_cross_entropy(
        states,
        head,
        targets,
        weights,
        vocab_first=config.tie_embeddings,
        softcap=config.final_softcap,
        chunk=loss_chunk,
        mesh=mesh,
    )
