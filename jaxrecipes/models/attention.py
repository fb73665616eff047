"""Attention over packed rows: one function, every mask from segment ids and positions."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Large, but finite: a row of padding that sees nothing must not become NaN.
MASKED_LOGIT = -2.0e38


class Places(NamedTuple):
    """Segments and positions, from which follows which keys a query may see.

    Attributes:
        query_segment_ids: int32 [batch, query_length]; 0 is padding.
        query_positions: int32 [batch, query_length], position inside the segment.
        key_segment_ids: int32 [batch, key_length]; 0 is padding.
        key_positions: int32 [batch, key_length].
    """

    query_segment_ids: jax.Array
    query_positions: jax.Array
    key_segment_ids: jax.Array
    key_positions: jax.Array

    @classmethod
    def of_rows(cls, segment_ids: jax.Array, positions: jax.Array) -> Places:
        """Returns the places where queries and keys are the same tokens, [batch, length] each."""
        return cls(segment_ids, positions, segment_ids, positions)


def visible(places: Places, sliding_window: int | None, *, causal: bool = True) -> jax.Array:
    """Returns which keys a query may see: same document, not later, inside the window.

    Args:
        places: Segments and positions of queries and keys.
        sliding_window: Number of latest positions visible, the query's own included; None for all.
        causal: Hide later keys, as a decoder does; an encoder sees its whole document.

    Returns:
        bool [batch, query_length, key_length].
    """
    distance = places.query_positions[:, :, None] - places.key_positions[:, None, :]
    mask = places.query_segment_ids[:, :, None] == places.key_segment_ids[:, None, :]
    mask &= (places.key_segment_ids != 0)[:, None, :]
    if causal:
        mask &= distance >= 0
    if sliding_window is not None:
        mask &= distance < sliding_window
    return mask


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    places: Places,
    *,
    scale: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
    causal: bool = True,
) -> jax.Array:
    """Grouped-query attention between tokens of the same segment.

    The softmax is computed in float32 whatever the inputs' dtype.

    Args:
        query: [batch, query_length, heads, head_dim].
        key: [batch, key_length, kv_heads, head_dim].
        value: [batch, key_length, kv_heads, head_dim].
        places: Segments and positions of queries and keys.
        scale: Factor on the logits.
        softcap: Logits become `softcap * tanh(logits / softcap)` where given.
        sliding_window: See `visible`.
        causal: See `visible`.

    Returns:
        [batch, query_length, heads, head_dim], dtype of `query`. Padding rows hold an average of
        the values and mean nothing.
    """
    batch, query_length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    group = heads // kv_heads
    # [batch, kv_heads, group * query_length, head_dim]: one large product for each KV head.
    query = query.reshape(batch, query_length, kv_heads, group, head_dim)
    query = query.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, group * query_length, head_dim)
    key = key.transpose(0, 2, 1, 3)  # [batch, kv_heads, key_length, head_dim]
    value = value.transpose(0, 2, 1, 3)
    logits = jnp.einsum("bkqd,bksd->bkqs", query, key, preferred_element_type=jnp.float32)
    logits = logits * scale
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    mask = visible(places, sliding_window, causal=causal)
    logits = logits.reshape(batch, kv_heads, group, query_length, key.shape[2])
    logits = jnp.where(mask[:, None, None], logits, MASKED_LOGIT)
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    total = jnp.sum(weights, axis=-1).reshape(batch, kv_heads, group * query_length, 1)
    weights = weights.astype(value.dtype).reshape(batch, kv_heads, -1, key.shape[2])
    # The division comes after the product: its result is the smaller array.
    mixed = jnp.einsum("bkqs,bksd->bkqd", weights, value, preferred_element_type=jnp.float32)
    mixed = (mixed / total).astype(query.dtype)
    mixed = mixed.reshape(batch, kv_heads, group, query_length, head_dim)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, query_length, heads, head_dim)
