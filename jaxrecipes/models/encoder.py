"""The encoder as pure functions over one parameter tree.

The canonical tree, with every kernel as [inputs, outputs]::

    embedding/token/table                                 [vocab_size, hidden_size]
    embedding/position/table                              [max_position_embeddings, hidden_size]
    embedding/type/table                                  [type_vocab_size, hidden_size]
    embedding_norm/{scale,bias}                           [hidden_size]
    layers/<i>/attention/{query,key,value,output}/kernel  [hidden_size, hidden_size]  and bias
    layers/<i>/attention_norm/{scale,bias}                [hidden_size]
    layers/<i>/mlp/up/kernel                              [hidden_size, intermediate_size]  and bias
    layers/<i>/mlp/down/kernel                            [intermediate_size, hidden_size]  and bias
    layers/<i>/mlp_norm/{scale,bias}                      [hidden_size]

A run-time layout (`jaxrecipes.params.layout`) has `segments` in place of `layers`. Heads
(`jaxrecipes.models.heads`) stand beside these leaves in the same tree.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxrecipes.models.attention import Places
from jaxrecipes.models.dropout import NO_DROPOUT, Dropout
from jaxrecipes.models.encoder_config import EncoderConfig
from jaxrecipes.models.encoder_layers import EncoderBlock, LayerNorm
from jaxrecipes.models.execution import ONE_DEVICE, Execution
from jaxrecipes.models.stacking import Layout, RematPolicy, Segment, string_layers
from jaxrecipes.sharding.rules import constrain

Tree = dict[str, Any]


def init_encoder_params(config: EncoderConfig, key: jax.Array, dtype: Any = jnp.float32) -> Tree:
    """Draws a canonical parameter tree: normal(0, 0.02) matrices, neutral norms, zero biases.

    Args:
        config: The model.
        key: PRNG key.
        dtype: dtype of every leaf.

    Returns:
        The tree described in this module's docstring.
    """
    token_key, position_key, type_key, *layer_keys = jax.random.split(key, config.num_layers + 3)

    def table(key: jax.Array, rows: int) -> Tree:
        return {"table": 0.02 * jax.random.normal(key, (rows, config.hidden_size))}

    one = jnp.ones((1, 1), jnp.int32)
    states = jnp.zeros((1, 1, config.hidden_size), jnp.float32)
    block = EncoderBlock(config)
    params: Tree = {
        "embedding": {
            "token": table(token_key, config.vocab_size),
            "position": table(position_key, config.max_position_embeddings),
            "type": table(type_key, config.type_vocab_size),
        },
        "embedding_norm": LayerNorm(config.norm_epsilon).init(key, states)["params"],
        "layers": {
            str(index): block.init(layer_key, states, Places.of_rows(one, one))["params"]
            for index, layer_key in enumerate(layer_keys)
        },
    }
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def abstract_encoder_params(config: EncoderConfig, dtype: Any = jnp.float32) -> Tree:
    """Returns the canonical tree as shapes and dtypes, without computing anything."""
    # One layer is traced: all of them are alike.
    one = replace(config, num_layers=1)
    params = jax.eval_shape(lambda: init_encoder_params(one, jax.random.key(0), dtype))
    layer = params["layers"]["0"]
    params["layers"] = {
        str(index): jax.tree.map(lambda leaf: leaf, layer) for index in range(config.num_layers)
    }
    return params


def encoder_layout(config: EncoderConfig) -> Layout:
    """Returns the layout with all layers in one scan: programs do not grow with the depth."""
    return Layout((Segment(0, (config.num_layers,), 1),))


def encode(
    config: EncoderConfig,
    params: Tree,
    token_ids: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    *,
    type_ids: jax.Array | None = None,
    dropout: Dropout = NO_DROPOUT,
    compute_dtype: Any = jnp.float32,
    layout: Layout | None = None,
    remat: RematPolicy = "none",
    execution: Execution = ONE_DEVICE,
) -> jax.Array:
    """Computes the hidden states of the last layer.

    A row can hold several texts, one a segment: a token sees all of its own segment and nothing
    else.

    Args:
        config: The model.
        params: Canonical tree, or the runtime tree of `layout`.
        token_ids: int32 [batch, length], special tokens included.
        segment_ids: int32 [batch, length]: 1, 2, ... for the texts of a row, 0 is padding.
        positions: int32 [batch, length], position of each token in its text, below
            `config.max_tokens`.
        type_ids: int32 [batch, length], rows of the type table: BERT tells the second text of a
            pair from the first. None for zeros.
        dropout: Of the embeddings after their norm and of what each part of a layer adds; the
            attention weights are never dropped.
        compute_dtype: dtype of activations and products.
        layout: The layout of `params`; None for the canonical tree.
        remat: What layers keep for the backward pass, see `stacking.rematerialise`.
        execution: Devices. The attention backend is always the reference: the kernels of
            `models.attention_backends` are causal.

    Returns:
        compute_dtype [batch, length, hidden_size]; padding tokens hold values that mean nothing.
    """
    return encode_embeddings(
        config,
        params,
        params["embedding"]["token"]["table"][token_ids],
        segment_ids,
        positions,
        type_ids=type_ids,
        dropout=dropout,
        compute_dtype=compute_dtype,
        layout=layout,
        remat=remat,
        execution=execution,
    )


def encode_embeddings(
    config: EncoderConfig,
    params: Tree,
    embeddings: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    *,
    type_ids: jax.Array | None = None,
    dropout: Dropout = NO_DROPOUT,
    compute_dtype: Any = jnp.float32,
    layout: Layout | None = None,
    remat: RematPolicy = "none",
    execution: Execution = ONE_DEVICE,
) -> jax.Array:
    """Does what `encode` does from given word embeddings: perturbed ones, for instance.

    Args:
        config: The model.
        params: Canonical tree, or the runtime tree of `layout`.
        embeddings: Float [batch, length, hidden_size], rows of the token table: before positions,
            types and LayerNorm, which are added here, once.
        segment_ids: As in `encode`, like everything that follows.
        positions: int32 [batch, length].
        type_ids: int32 [batch, length] or None.
        dropout: See `encode`.
        compute_dtype: dtype of activations and products.
        layout: The layout of `params`.
        remat: See `encode`.
        execution: Devices.

    Returns:
        compute_dtype [batch, length, hidden_size].
    """
    tables = params["embedding"]
    embedded = embeddings.astype(jnp.float32)
    embedded += tables["position"]["table"][positions + config.position_offset]
    embedded += tables["type"]["table"][0 if type_ids is None else type_ids]
    states = LayerNorm(config.norm_epsilon).apply({"params": params["embedding_norm"]}, embedded)
    assert isinstance(states, jax.Array)
    states = dropout(states.astype(compute_dtype), "embeddings")
    states = constrain(states, "hidden_states", execution.mesh)
    block = EncoderBlock(config, execution)
    places = Places.of_rows(segment_ids, positions)

    def layer(carry: tuple[jax.Array, jax.Array], parameters: Tree) -> tuple[Any, jax.Array]:
        # The layer's number goes along, since the layers of a scan share one function.
        states, number = carry
        here = dropout.at_layer(number)
        return block.apply({"params": parameters}, states, places, here), number + 1

    states, _ = string_layers(
        lambda _: layer,
        params,
        (states, jnp.zeros((), jnp.int32)),
        num_layers=config.num_layers,
        layout=layout,
        remat=remat,
    )
    return states
