"""A decoder's next-token loss as a problem for perturbations."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrecipes.models import decoder
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.execution import ONE_DEVICE, Execution
from jaxrecipes.models.stacking import Layout, RematPolicy
from jaxrecipes.params.partition import combine
from jaxrecipes.params.paths import Tree
from jaxrecipes.train.backbone import decoder_backbone
from jaxrecipes.train.causal_loss import states_loss
from jaxrecipes.train.loss import next_token_targets
from jaxrecipes.train.perturb.divergence import chunked_kl
from jaxrecipes.train.perturb.protocol import Batch, Problem


def causal_problem(
    config: ModelConfig,
    frozen: Tree,
    *,
    count: jax.Array | float = 1.0,
    examples: jax.Array | None = None,
    layout: Layout | None = None,
    compute_dtype: Any = jnp.float32,
    remat: RematPolicy = "none",
    loss_chunk: int = 512,
    execution: Execution = ONE_DEVICE,
) -> Problem:
    """Describes the next-token loss of a decoder whose trainable tree is differentiated.

    Args:
        config: The model.
        frozen: The leaves that do not train; the problem's `params` are the others.
        count: What the loss is divided by: the supervised tokens of the whole batch.
        examples: See `Problem`.
        layout: Layout of the trees; None for canonical ones.
        compute_dtype: dtype of activations and products.
        remat: See `stacking.rematerialise`.
        loss_chunk: Tokens of a device whose logits exist at the same time.
        execution: Devices and attention backend.

    Returns:
        The problem; the divergence is KL of the next-token distributions at supervised tokens.
    """
    backbone = decoder_backbone(
        config, layout=layout, compute_dtype=compute_dtype, remat=remat, execution=execution
    )

    def embed(trainable: Tree, batch: Batch) -> jax.Array:
        return backbone.embed(combine(trainable, frozen), batch)

    def outputs(
        trainable: Tree, embeddings: jax.Array, batch: Batch
    ) -> tuple[jax.Array, jax.Array]:
        params = combine(trainable, frozen)
        return backbone.states(params, embeddings, batch), decoder.stored_head(config, params)

    def loss(trainable: Tree, embeddings: jax.Array, batch: Batch) -> jax.Array:
        states, head = outputs(trainable, embeddings, batch)
        mesh = execution.mesh
        return states_loss(config, states, head, batch, loss_chunk=loss_chunk, mesh=mesh) / count

    def divergence(first: Any, second: Any, batch: Batch) -> jax.Array:
        _, weights = next_token_targets(
            batch["token_ids"], batch["segment_ids"], batch["loss_mask"]
        )
        (states, head), (other_states, other_head) = first, second
        total = chunked_kl(
            states,
            head,
            other_states,
            other_head,
            weights,
            vocab_first=config.tie_embeddings,
            softcap=config.final_softcap,
            chunk=loss_chunk,
        )
        return total / count

    return Problem(embed, loss, outputs, divergence, examples)
