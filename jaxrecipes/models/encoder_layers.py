"""What one encoder layer is: LayerNorm, bidirectional attention, feed-forward, as Linen modules.

As in `jaxrecipes.models.layers` the parameters are plain nested dicts of arrays, named as in the
canonical tree (see `jaxrecipes.models.encoder`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrecipes.models.attention import Places, attention
from jaxrecipes.models.dense import Dense
from jaxrecipes.models.dropout import NO_DROPOUT, Dropout
from jaxrecipes.models.encoder_config import EncoderConfig
from jaxrecipes.models.execution import ONE_DEVICE, Execution
from jaxrecipes.sharding.rules import constrain

# Queries of a long row are answered in blocks of at most this many, so that the attention weights
# of 8192 tokens need not exist at one time (16 heads: 4 GiB a row). Where the length has no divisor
# between the two sizes the row is answered as a whole.
QUERY_BLOCK, SMALLEST_QUERY_BLOCK = 512, 32

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda values: nn.gelu(values, approximate=False),
    "gelu_tanh": lambda values: nn.gelu(values, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
}


class LayerNorm(nn.Module):
    """Layer normalisation (arXiv 1607.06450), computed in float32.

    Attributes:
        epsilon: Added to the variance.
    """

    epsilon: float

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Normalises the last axis; returns the inputs' shape and dtype."""
        scale = self.param("scale", nn.initializers.ones, (inputs.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (inputs.shape[-1],))
        values = inputs.astype(jnp.float32)
        values = values - jnp.mean(values, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(values), axis=-1, keepdims=True)
        values = values * jax.lax.rsqrt(variance + self.epsilon)
        values = values * scale.astype(jnp.float32) + bias.astype(jnp.float32)
        return values.astype(inputs.dtype)


def attend_both_ways(
    query: jax.Array, key: jax.Array, value: jax.Array, places: Places, *, scale: float
) -> jax.Array:
    """Attention to every token of the same segment, in blocks of queries where the row is long.

    Args:
        query: [batch, length, heads, head_dim].
        key: [batch, length, heads, head_dim].
        value: [batch, length, heads, head_dim].
        places: Segments and positions of the tokens.
        scale: Factor on the logits.

    Returns:
        [batch, length, heads, head_dim], dtype of `query`.
    """
    length = query.shape[1]
    size = math.gcd(length, QUERY_BLOCK)
    if length <= QUERY_BLOCK or size < SMALLEST_QUERY_BLOCK:
        return attention(query, key, value, places, scale=scale, causal=False)

    def block(start: jax.Array) -> jax.Array:
        def part(array: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(array, start, size, axis=1)

        seen_from = places._replace(
            query_segment_ids=part(places.query_segment_ids),
            query_positions=part(places.query_positions),
        )
        return attention(part(query), key, value, seen_from, scale=scale, causal=False)

    mixed = jax.lax.map(block, jnp.arange(0, length, size))
    # [blocks, batch, block, heads, head_dim] -> [batch, length, heads, head_dim]
    return jnp.moveaxis(mixed, 0, 1).reshape(query.shape)


class EncoderAttention(nn.Module):
    """Self-attention of every token to its whole segment.

    Attributes:
        config: The model.
        execution: Devices.
    """

    config: EncoderConfig
    execution: Execution = ONE_DEVICE

    @nn.compact
    def __call__(self, inputs: jax.Array, places: Places) -> jax.Array:
        """Mixes tokens of the same segment: [batch, length, hidden_size] to the same shape."""
        config = self.config
        batch, length, _ = inputs.shape

        def project(name: str) -> jax.Array:
            projected = Dense(config.hidden_size, True, inputs.dtype, name=name)(inputs)
            projected = projected.reshape(batch, length, config.num_heads, config.head_dim)
            return constrain(projected, "heads", self.execution.mesh)

        query, key, value = project("query"), project("key"), project("value")
        mixed = attend_both_ways(query, key, value, places, scale=config.head_dim**-0.5)
        mixed = mixed.reshape(batch, length, config.hidden_size)
        return Dense(config.hidden_size, True, inputs.dtype, name="output")(mixed)


class EncoderMLP(nn.Module):
    """Feed-forward layer: `down(activation(up(x)))`.

    Attributes:
        config: The model.
        execution: Devices.
    """

    config: EncoderConfig
    execution: Execution = ONE_DEVICE

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [batch, length, hidden_size] to the same shape."""
        config = self.config
        up = Dense(config.intermediate_size, True, inputs.dtype, name="up")(inputs)
        activated = ACTIVATIONS[config.activation](constrain(up, "mlp", self.execution.mesh))
        return Dense(config.hidden_size, True, inputs.dtype, name="down")(activated)


class EncoderBlock(nn.Module):
    """One post-norm block (arXiv 1706.03762, section 3.1): a norm after each residual sum.

    Attributes:
        config: The model.
        execution: Devices.
    """

    config: EncoderConfig
    execution: Execution = ONE_DEVICE

    @nn.compact
    def __call__(
        self, hidden_states: jax.Array, places: Places, dropout: Dropout = NO_DROPOUT
    ) -> jax.Array:
        """Applies attention and the feed-forward layer.

        Args:
            hidden_states: [batch, length, hidden_size].
            places: Segments and positions of the tokens.
            dropout: Of what attention and the feed-forward layer add to the residual stream.

        Returns:
            [batch, length, hidden_size].
        """
        config, execution = self.config, self.execution
        mixed = EncoderAttention(config, execution, name="attention")(hidden_states, places)
        mixed = dropout(mixed, "attention")
        hidden_states = LayerNorm(config.norm_epsilon, name="attention_norm")(hidden_states + mixed)
        hidden_states = constrain(hidden_states, "hidden_states", execution.mesh)
        changed = EncoderMLP(config, execution, name="mlp")(hidden_states)
        changed = dropout(changed, "mlp")
        hidden_states = LayerNorm(config.norm_epsilon, name="mlp_norm")(hidden_states + changed)
        return constrain(hidden_states, "hidden_states", execution.mesh)
