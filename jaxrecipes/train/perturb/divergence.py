"""How far predictions are apart: of classes, of numbers, of next tokens."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp


def kl_divergence(logits: jax.Array, other: jax.Array) -> jax.Array:
    """Computes KL(p || q) of two distributions given by logits.

    Args:
        logits: Float [..., classes], of p.
        other: Float [..., classes], of q.

    Returns:
        float32 [...] in nats. Summed as p * (exp(-d) - 1 + d) with d = log(p / q): all terms are
        positive, so that the small divergence of a small perturbation is not lost in rounding.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    log_q = jax.nn.log_softmax(other.astype(jnp.float32), axis=-1)
    difference = log_p - log_q
    return jnp.sum(jnp.exp(log_p) * (jnp.expm1(-difference) + difference), axis=-1)


def squared_difference(values: jax.Array, other: jax.Array) -> jax.Array:
    """Computes half the squared difference, so that both directions add up to SMART's square.

    Args:
        values: Float [...].
        other: Float [...].

    Returns:
        float32 [...].
    """
    return 0.5 * jnp.square(values.astype(jnp.float32) - other.astype(jnp.float32))


def chunked_kl(
    states: jax.Array,
    head: jax.Array,
    other_states: jax.Array,
    other_head: jax.Array,
    weights: jax.Array,
    *,
    vocab_first: bool = False,
    softcap: float | None = None,
    chunk: int = 512,
) -> jax.Array:
    """Sums KL(p || q) of next-token distributions without all logits at one time.

    Args:
        states: Float [rows, length, hidden_size] after the final norm, of p.
        head: [hidden_size, vocab_size], or [vocab_size, hidden_size] with `vocab_first`.
        other_states: Like `states`, of q.
        other_head: Like `head`, of q.
        weights: float32 [rows, length]; 0 where a token does not count.
        vocab_first: The orientation of the heads.
        softcap: Logits become `softcap * tanh(logits / softcap)` where given.
        chunk: Tokens whose logits exist at the same time, also in the backward pass.

    Returns:
        float32 scalar in nats.
    """
    count = weights.size
    size = min(chunk, count)
    padding = -count % size

    def split(array: jax.Array) -> jax.Array:
        flat = array.reshape(count, *array.shape[2:])
        flat = jnp.pad(flat, [(0, padding)] + [(0, 0)] * (flat.ndim - 1))
        return flat.reshape(-1, size, *flat.shape[1:])

    logits = partial(_logits, vocab_first=vocab_first, softcap=softcap)

    @jax.checkpoint
    def add(total: jax.Array, one: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        p, q, weight = one
        divergences = kl_divergence(logits(p, head), logits(q, other_head))
        return total + jnp.sum(divergences * weight), None

    chunks = (split(states), split(other_states), split(weights))
    return jax.lax.scan(add, jnp.zeros((), jnp.float32), chunks)[0]


def _logits(
    states: jax.Array, head: jax.Array, *, vocab_first: bool, softcap: float | None
) -> jax.Array:
    equation = "th,vh->tv" if vocab_first else "th,hv->tv"
    logits = jnp.einsum(
        equation, states, head.astype(states.dtype), preferred_element_type=jnp.float32
    )
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)
