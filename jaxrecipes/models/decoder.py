"""The decoder as pure functions over one parameter tree.

The canonical tree, with every kernel as [inputs, outputs]::

    embedding/table                                 [vocab_size, hidden_size]
    layers/<i>/attention_norm/scale                 [hidden_size]
    layers/<i>/attention/{query,key,value}/kernel   [hidden_size, heads * head_dim]  (and bias)
    layers/<i>/attention/{query,key}_norm/scale     [head_dim]      with query_key_norm
    layers/<i>/attention/output/kernel              [heads * head_dim, hidden_size]  (and bias)
    layers/<i>/attention_post_norm/scale            [hidden_size]   with sandwich_norms
    layers/<i>/mlp_norm/scale                       [hidden_size]
    layers/<i>/mlp/{gate,up}/kernel                 [hidden_size, intermediate_size] (and bias)
    layers/<i>/mlp/down/kernel                      [intermediate_size, hidden_size] (and bias)
    layers/<i>/mlp_post_norm/scale                  [hidden_size]   with sandwich_norms
    final_norm/scale                                [hidden_size]
    head/kernel                                     [hidden_size, vocab_size]  unless tied

Adapters (`jaxrecipes.params.lora`) add leaves beside kernels, see `jaxrecipes.models.dense`, and

    embedding/lora_{a,b,scale,magnitude}            an adapter of the input embedding, not of a tied
                                                    head
    embedding/token_delta                           [tokens, hidden_size], rows that stand in place
    embedding/token_ids                             of the table's: int32 [tokens]

A run-time layout (`jaxrecipes.params.layout`) has `segments` in place of `layers`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.dense import join_adapter
from jaxrecipes.models.execution import ONE_DEVICE, Execution
from jaxrecipes.models.layers import Block, RMSNorm, Tokens
from jaxrecipes.models.lookup import lookup
from jaxrecipes.models.rope import rotation
from jaxrecipes.models.stacking import Layout, RematPolicy, apply_layers

Tree = dict[str, Any]


def init_params(config: ModelConfig, key: jax.Array, dtype: Any = jnp.float32) -> Tree:
    """Draws a canonical parameter tree: normal(0, 0.02) matrices, neutral norms, zero biases.

    Args:
        config: The model.
        key: PRNG key.
        dtype: dtype of every leaf.

    Returns:
        The tree described in this module's docstring.
    """
    embedding_key, head_key, *layer_keys = jax.random.split(key, config.num_layers + 2)
    one = jnp.zeros((1, 1), jnp.int32)
    states = jnp.zeros((1, 1, config.hidden_size), jnp.float32)
    params: Tree = {
        "embedding": {
            "table": 0.02
            * jax.random.normal(embedding_key, (config.vocab_size, config.hidden_size))
        },
        "layers": {},
        "final_norm": {
            "scale": (jnp.zeros if config.norm_plus_one else jnp.ones)((config.hidden_size,))
        },
    }
    for index, layer_key in enumerate(layer_keys):
        tokens = layer_tokens(config, index, one + 1, one)
        block = Block(config, config.window(index))
        params["layers"][str(index)] = block.init(layer_key, states, tokens)["params"]
    if not config.tie_embeddings:
        params["head"] = {
            "kernel": 0.02 * jax.random.normal(head_key, (config.hidden_size, config.vocab_size))
        }
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def abstract_params(config: ModelConfig, dtype: Any = jnp.float32) -> Tree:
    """Returns the canonical tree as shapes and dtypes, without computing anything.

    The one source of shapes for restoring, importing, sharding and counting.
    """
    # One layer of each kind is traced: tracing all of them takes a second for thirty.
    kinds = sorted(set(config.layer_types))
    one_of_each = replace(config, num_layers=len(kinds), layer_types=tuple(kinds), new_blocks=())
    params = jax.eval_shape(lambda: init_params(one_of_each, jax.random.key(0), dtype))
    params["layers"] = {
        str(index): jax.tree.map(lambda leaf: leaf, params["layers"][str(kinds.index(kind))])
        for index, kind in enumerate(config.layer_types)
    }
    return params


def layer_tokens(
    config: ModelConfig,
    layer: int,
    segment_ids: jax.Array,
    positions: jax.Array,
    *,
    key_segment_ids: jax.Array | None = None,
    key_positions: jax.Array | None = None,
    cache_offset: jax.Array | None = None,
    dropout_seeds: jax.Array | None = None,
) -> Tokens:
    """Gathers what a layer needs to know about its tokens.

    Args:
        config: The model.
        layer: Index of the layer; decides which rotary embedding is used.
        segment_ids: int32 [batch, length]; 0 is padding.
        positions: int32 [batch, length].
        key_segment_ids: int32 [batch, cache_length], with a cache.
        key_positions: int32 [batch, cache_length], with a cache.
        cache_offset: int32 scalar, with a cache.
        dropout_seeds: See `Tokens`.

    Returns:
        The tokens' description.
    """
    cosines, sines = rotation(config.layer_rope(layer), config.head_dim, positions)
    return Tokens(
        segment_ids=segment_ids,
        positions=positions,
        cosines=cosines,
        sines=sines,
        key_segment_ids=segment_ids if key_segment_ids is None else key_segment_ids,
        key_positions=positions if key_positions is None else key_positions,
        cache_offset=cache_offset,
        dropout_seeds=dropout_seeds,
    )


def embed(
    config: ModelConfig,
    params: Tree,
    token_ids: jax.Array,
    compute_dtype: Any,
    execution: Execution = ONE_DEVICE,
) -> jax.Array:
    """Looks tokens up: int32 [batch, length] -> compute_dtype [batch, length, hidden_size]."""
    leaves = params["embedding"]
    states = lookup(embedding_table(params), token_ids, execution.mesh).astype(compute_dtype)
    if "lora_a" in leaves:
        reduced = lookup(leaves["lora_a"], token_ids, execution.mesh)
        states = join_adapter(states, reduced, leaves)
    if config.embedding_scale is not None:
        # Gemma rounds the factor to the compute dtype before it multiplies.
        states = states * jnp.asarray(config.embedding_scale, compute_dtype)
    return states


def final_norm(config: ModelConfig, params: Tree, hidden_states: jax.Array) -> jax.Array:
    """Applies the last RMSNorm to [batch, length, hidden_size]."""
    norm = RMSNorm(config.norm_epsilon, config.norm_plus_one)
    normalised = norm.apply({"params": params["final_norm"]}, hidden_states)
    assert isinstance(normalised, jax.Array)
    return normalised


def hidden_states(
    config: ModelConfig,
    params: Tree,
    token_ids: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    *,
    compute_dtype: Any = jnp.float32,
    layout: Layout | None = None,
    remat: RematPolicy = "none",
    execution: Execution = ONE_DEVICE,
) -> jax.Array:
    """Computes the hidden states after the final norm.

    Args:
        config: The model.
        params: Canonical tree, or the runtime tree of `layout`.
        token_ids: int32 [batch, length].
        segment_ids: int32 [batch, length]; tokens see their own segment only, 0 is padding.
        positions: int32 [batch, length], position of each token inside its segment.
        compute_dtype: dtype of activations and products.
        layout: The layout of `params`; None for the canonical tree.
        remat: What layers keep for the backward pass, see `stacking.rematerialise`.
        execution: Devices and attention backend.

    Returns:
        compute_dtype [batch, length, hidden_size].
    """
    return hidden_states_of_embeddings(
        config,
        params,
        embed(config, params, token_ids, compute_dtype, execution),
        segment_ids,
        positions,
        compute_dtype=compute_dtype,
        layout=layout,
        remat=remat,
        execution=execution,
    )


def hidden_states_of_embeddings(
    config: ModelConfig,
    params: Tree,
    embeddings: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    *,
    compute_dtype: Any = jnp.float32,
    layout: Layout | None = None,
    remat: RematPolicy = "none",
    execution: Execution = ONE_DEVICE,
    dropout_seeds: jax.Array | None = None,
) -> jax.Array:
    """Does what `hidden_states` does from given word embeddings: perturbed ones, for instance.

    Args:
        config: The model.
        params: Canonical tree, or the runtime tree of `layout`; the table is not looked at.
        embeddings: Float [batch, length, hidden_size] as `embed` returns them, the family's factor
            included: what `transformers` takes as `inputs_embeds`.
        segment_ids: As in `hidden_states`, like everything that follows.
        positions: int32 [batch, length].
        compute_dtype: dtype of activations and products.
        layout: The layout of `params`.
        remat: See `stacking.rematerialise`.
        execution: Devices and attention backend.
        dropout_seeds: uint32 [batch, length], random bits of the step and the token: adapters that
            have dropout use it. None, as in every evaluation, for none.

    Returns:
        compute_dtype [batch, length, hidden_size].
    """
    # One description for each kind of layer, made outside of the scans that use it.
    kinds = {
        layer_type: layer_tokens(
            config,
            config.layer_types.index(layer_type),
            segment_ids,
            positions,
            dropout_seeds=dropout_seeds,
        )
        for layer_type in sorted(set(config.layer_types))
    }
    states = apply_layers(
        config,
        params,
        embeddings.astype(compute_dtype),
        lambda index: kinds[config.layer_types[index]],
        layout=layout,
        remat=remat,
        execution=execution,
    )
    return final_norm(config, params, states)


def embedding_table(params: Tree) -> jax.Array:
    """Returns the embedding, [vocab_size, hidden_size], with the rows of trained tokens in it."""
    leaves = params["embedding"]
    if "token_delta" not in leaves:
        return leaves["table"]
    rows = leaves["token_delta"].astype(leaves["table"].dtype)
    return jnp.asarray(leaves["table"]).at[leaves["token_ids"]].set(rows)


def stored_head(config: ModelConfig, params: Tree) -> jax.Array:
    """Returns the output head as it is stored, which saves a transposed copy of a large leaf.

    [vocab_size, hidden_size] where it is tied to the embedding, else [hidden_size, vocab_size].
    """
    return embedding_table(params) if config.tie_embeddings else params["head"]["kernel"]


def head_kernel(config: ModelConfig, params: Tree) -> jax.Array:
    """Returns the output head, [hidden_size, vocab_size]; the transposed embedding when tied."""
    head = stored_head(config, params)
    return head.T if config.tie_embeddings else head


def logits(config: ModelConfig, params: Tree, hidden_states: jax.Array) -> jax.Array:
    """Computes output logits.

    Args:
        config: The model.
        params: Canonical or runtime tree; only the head is read.
        hidden_states: [..., hidden_size], after the final norm.

    Returns:
        float32 [..., vocab_size], soft-capped where the family does that.
    """
    kernel = head_kernel(config, params).astype(hidden_states.dtype)
    values = jnp.matmul(hidden_states, kernel, preferred_element_type=jnp.float32)
    if config.final_softcap is not None:
        values = config.final_softcap * jnp.tanh(values / config.final_softcap)
    return values
