"""What one layer is: RMSNorm, attention, gated feed-forward and the block, as Flax Linen modules.

The modules are pure `init`/`apply` and carry no partition metadata: their parameters are plain
nested dicts of arrays, named as in the canonical tree (see `jaxrecipes.models.decoder`).
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxrecipes.models.attend import attend
from jaxrecipes.models.attention import Places
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.dense import Dense
from jaxrecipes.models.execution import ONE_DEVICE, Execution
from jaxrecipes.models.rope import rotate
from jaxrecipes.sharding.rules import constrain


class LayerCache(NamedTuple):
    """Keys and values that one layer has computed for earlier tokens.

    Attributes:
        key: [batch, kv_heads, cache_length, head_dim], already rotated.
        value: [batch, kv_heads, cache_length, head_dim].
    """

    key: jax.Array
    value: jax.Array


class Tokens(NamedTuple):
    """What every layer needs to know about the tokens that it processes.

    Attributes:
        segment_ids: int32 [batch, length]; 0 is padding.
        positions: int32 [batch, length], position inside the segment.
        cosines: float32 [batch, length, head_dim / 2], for the layer's own rotary embedding.
        sines: float32 [batch, length, head_dim / 2].
        key_segment_ids: int32 [batch, key_length]: `segment_ids`, or those of the cache.
        key_positions: int32 [batch, key_length], likewise.
        cache_offset: int32 scalar, where in the cache the first token is written; None without.
        dropout_seeds: uint32 [batch, length], random bits of the step and the token, for the
            dropout of adapters; None for none.
    """

    segment_ids: jax.Array
    positions: jax.Array
    cosines: jax.Array
    sines: jax.Array
    key_segment_ids: jax.Array
    key_positions: jax.Array
    cache_offset: jax.Array | None
    dropout_seeds: jax.Array | None = None


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (arXiv 1910.07467, equation 4), computed in float32.

    Attributes:
        epsilon: Added to the mean square.
        plus_one: Multiply by `1 + scale` instead of `scale` (Gemma).
    """

    epsilon: float
    plus_one: bool

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Normalises the last axis; returns the inputs' shape and dtype."""
        initializer = nn.initializers.zeros if self.plus_one else nn.initializers.ones
        scale = self.param("scale", initializer, (inputs.shape[-1],))
        values = inputs.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(values), axis=-1, keepdims=True)
        values = values * jax.lax.rsqrt(mean_square + self.epsilon)
        if self.plus_one:
            return (values * (1.0 + scale.astype(jnp.float32))).astype(inputs.dtype)
        return values.astype(inputs.dtype) * scale.astype(inputs.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions.

    Attributes:
        config: The model.
        sliding_window: Window of this layer in tokens, or None.
        execution: Devices and attention backend.
    """

    config: ModelConfig
    sliding_window: int | None
    execution: Execution = ONE_DEVICE

    @nn.compact
    def __call__(
        self, inputs: jax.Array, tokens: Tokens, cache: LayerCache | None
    ) -> tuple[jax.Array, LayerCache | None]:
        """Mixes tokens of the same segment.

        Args:
            inputs: [batch, length, hidden_size], normalised.
            tokens: Segments, positions and rotations.
            cache: Earlier keys and values; the new ones are written at `tokens.cache_offset`.

        Returns:
            [batch, length, hidden_size] and the updated cache.
        """
        config, mesh = self.config, self.execution.mesh
        batch, length, _ = inputs.shape

        def project(name: str, heads: int) -> jax.Array:
            features = heads * config.head_dim
            dense = Dense(features, config.attention_bias, inputs.dtype, name=name)
            projected = checkpoint_name(dense(inputs, tokens.dropout_seeds), name)
            projected = projected.reshape(batch, length, heads, config.head_dim)
            return constrain(projected, "heads", mesh)

        query = project("query", config.num_heads)  # [batch, length, heads, head_dim]
        key = project("key", config.num_kv_heads)  # [batch, length, kv_heads, head_dim]
        value = project("value", config.num_kv_heads)
        if config.query_key_norm:
            query = RMSNorm(config.norm_epsilon, config.norm_plus_one, name="query_norm")(query)
            key = RMSNorm(config.norm_epsilon, config.norm_plus_one, name="key_norm")(key)
        query = rotate(query, tokens.cosines, tokens.sines)
        key = rotate(key, tokens.cosines, tokens.sines)
        if cache is not None and tokens.cache_offset is not None:
            heads_first = (0, 2, 1, 3)
            start = (0, 0, tokens.cache_offset, 0)
            key = key.transpose(heads_first).astype(cache.key.dtype)
            value = value.transpose(heads_first).astype(cache.value.dtype)
            cache = LayerCache(
                jax.lax.dynamic_update_slice(cache.key, key, start),
                jax.lax.dynamic_update_slice(cache.value, value, start),
            )
            # `attention` transposes back, so that the products read the cache as it lies.
            key = cache.key.transpose(heads_first)
            value = cache.value.transpose(heads_first)
        mixed = attend(
            self.execution,
            query,
            key,
            value,
            Places(
                tokens.segment_ids, tokens.positions, tokens.key_segment_ids, tokens.key_positions
            ),
            scale=config.query_scale,
            softcap=config.attention_softcap,
            sliding_window=self.sliding_window,
        )
        mixed = mixed.reshape(batch, length, config.num_heads * config.head_dim)
        mixed = checkpoint_name(mixed, "attention")
        output = Dense(
            config.hidden_size, config.attention_output_bias, inputs.dtype, name="output"
        )
        return output(mixed, tokens.dropout_seeds), cache


class MLP(nn.Module):
    """Gated feed-forward layer: `down(activation(gate(x)) * up(x))` (arXiv 2002.05202).

    Attributes:
        config: The model.
        execution: Devices.
    """

    config: ModelConfig
    execution: Execution = ONE_DEVICE

    @nn.compact
    def __call__(self, inputs: jax.Array, dropout_seeds: jax.Array | None = None) -> jax.Array:
        """Maps [batch, length, hidden_size] to the same shape; the seeds are as in `Tokens`."""
        config, mesh = self.config, self.execution.mesh

        def project(name: str, features: int, values: jax.Array, point: str) -> jax.Array:
            dense = Dense(features, config.mlp_bias, inputs.dtype, name=name)
            return checkpoint_name(constrain(dense(values, dropout_seeds), point, mesh), name)

        gate = project("gate", config.intermediate_size, inputs, "mlp")
        up = project("up", config.intermediate_size, inputs, "mlp")
        activation = nn.silu if config.activation == "silu" else nn.gelu  # gelu: tanh form
        gate = activation(gate)
        return project("down", config.hidden_size, gate * up, "hidden_states")


class Block(nn.Module):
    """One pre-norm residual block, with Gemma's second norms where the family has them.

    Attributes:
        config: The model.
        sliding_window: Window of this layer in tokens, or None.
        execution: Devices and attention backend.
    """

    config: ModelConfig
    sliding_window: int | None
    execution: Execution = ONE_DEVICE

    @nn.compact
    def __call__(
        self, hidden_states: jax.Array, tokens: Tokens, cache: LayerCache | None = None
    ) -> tuple[jax.Array, LayerCache | None]:
        """Applies attention and the feed-forward layer to the residual stream.

        Args:
            hidden_states: [batch, length, hidden_size].
            tokens: Segments, positions and rotations.
            cache: Earlier keys and values of this layer, or None.

        Returns:
            [batch, length, hidden_size] and the updated cache.
        """
        config, execution = self.config, self.execution

        def norm(name: str, values: jax.Array) -> jax.Array:
            return RMSNorm(config.norm_epsilon, config.norm_plus_one, name=name)(values)

        mixed, cache = Attention(config, self.sliding_window, execution, name="attention")(
            norm("attention_norm", hidden_states), tokens, cache
        )
        if config.sandwich_norms:
            mixed = norm("attention_post_norm", mixed)
        hidden_states = checkpoint_name(
            constrain(hidden_states + mixed, "hidden_states", execution.mesh), "after_attention"
        )
        changed = MLP(config, execution, name="mlp")(
            norm("mlp_norm", hidden_states), tokens.dropout_seeds
        )
        if config.sandwich_norms:
            changed = norm("mlp_post_norm", changed)
        return constrain(hidden_states + changed, "hidden_states", execution.mesh), cache
