"""A model up to its hidden states, encoder or decoder, as what heads are put on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxrecipes.models import decoder
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.dropout import Dropout
from jaxrecipes.models.encoder import encode_embeddings
from jaxrecipes.models.encoder_config import EncoderConfig
from jaxrecipes.models.execution import ONE_DEVICE, Execution
from jaxrecipes.models.stacking import Layout, RematPolicy
from jaxrecipes.params.paths import Tree

Batch = dict[str, jax.Array]


@dataclass(frozen=True)
class Backbone:
    """Two functions, so that word embeddings can be perturbed between them.

    Attributes:
        embed: (params, batch) -> word embeddings, float [rows, length, hidden_size].
        states: (params, word embeddings, batch) -> hidden states of the last layer, [rows, length,
            hidden_size].
    """

    embed: Callable[[Tree, Batch], jax.Array]
    states: Callable[[Tree, jax.Array, Batch], jax.Array]


def encoder_backbone(
    config: EncoderConfig,
    *,
    layout: Layout | None = None,
    dropout: float = 0.0,
    compute_dtype: Any = jnp.float32,
    remat: RematPolicy = "none",
    execution: Execution = ONE_DEVICE,
) -> Backbone:
    """Makes an encoder a backbone.

    Args:
        config: The model.
        layout: Layout of the trees; None for canonical ones.
        dropout: See `models.encoder.encode`; only where the batch has `dropout_keys`.
        compute_dtype: dtype of activations and products.
        remat: See `stacking.rematerialise`.
        execution: Devices.

    Returns:
        The backbone. Batches have `token_ids`, `segment_ids` and `positions`, int32 [rows, length],
        and can have `type_ids`, int32 [rows, length], and `dropout_keys` [rows].
    """

    def embed(params: Tree, batch: Batch) -> jax.Array:
        return params["embedding"]["token"]["table"][batch["token_ids"]]

    def states(params: Tree, embeddings: jax.Array, batch: Batch) -> jax.Array:
        return encode_embeddings(
            config,
            params,
            embeddings,
            batch["segment_ids"],
            batch["positions"],
            type_ids=batch.get("type_ids"),
            dropout=Dropout(dropout, batch.get("dropout_keys")),
            compute_dtype=compute_dtype,
            layout=layout,
            remat=remat,
            execution=execution,
        )

    return Backbone(embed, states)


def decoder_backbone(
    config: ModelConfig,
    *,
    layout: Layout | None = None,
    compute_dtype: Any = jnp.float32,
    remat: RematPolicy = "none",
    execution: Execution = ONE_DEVICE,
) -> Backbone:
    """Makes a decoder a backbone; arguments as for `encoder_backbone`.

    Batches can have `dropout_seeds`, see `train.dropout`, where adapters have dropout.
    """

    def embed(params: Tree, batch: Batch) -> jax.Array:
        return decoder.embed(config, params, batch["token_ids"], compute_dtype, execution)

    def states(params: Tree, embeddings: jax.Array, batch: Batch) -> jax.Array:
        return decoder.hidden_states_of_embeddings(
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

    return Backbone(embed, states)
