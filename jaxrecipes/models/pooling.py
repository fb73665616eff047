"""From the hidden states of a text's tokens to one vector."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

PoolingMode = Literal["mean", "cls"]
POOLING_MODES: tuple[PoolingMode, ...] = ("mean", "cls")


def pool(
    hidden_states: jax.Array, segment_ids: jax.Array, mode: PoolingMode, *, segments: int = 1
) -> jax.Array:
    """Pools every text of every row.

    Args:
        hidden_states: [batch, length, hidden_size].
        segment_ids: int32 [batch, length]: 1 .. `segments` for the texts of a row, 0 is padding.
        mode: "mean" of all tokens of a text, special ones included, or "cls": its first token.
        segments: Texts that a row holds at most.

    Returns:
        float32 [batch, segments, hidden_size]; zeros where a row has no text of that number.
    """
    numbers = jnp.arange(1, segments + 1, dtype=segment_ids.dtype)
    member = segment_ids[:, None, :] == numbers[None, :, None]  # [batch, segments, length]
    if mode == "cls":
        first = jnp.argmax(member, axis=-1)  # [batch, segments]
        states = jnp.take_along_axis(hidden_states, first[:, :, None], axis=1)
        present = jnp.any(member, axis=-1)[:, :, None]
        return jnp.where(present, states.astype(jnp.float32), 0.0)
    total = jnp.einsum(
        "bsl,blh->bsh",
        member.astype(hidden_states.dtype),
        hidden_states,
        preferred_element_type=jnp.float32,
    )
    count = jnp.sum(member, axis=-1, dtype=jnp.float32)[:, :, None]
    return total / jnp.maximum(count, 1.0)


def normalize(vectors: jax.Array) -> jax.Array:
    """Divides float vectors [..., width] by their Euclidean length; zeros stay zeros."""
    length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(length, 1e-12)  # the floor of torch.nn.functional.normalize
