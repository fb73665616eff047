"""Cross-entropy from hidden states, in chunks of tokens: all logits never exist at once.

The loss is a scalar, so its gradient with respect to the logits is known as soon as the logits of
a chunk are: softmax minus one-hot. The forward pass therefore computes the gradients with respect
to hidden states and head right away, chunk by chunk, and the backward pass only scales them. No
logit is computed twice, and a frozen head costs no gradient.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def next_token_targets(
    token_ids: jax.Array, segment_ids: jax.Array, loss_mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Shifts a packed batch: the token at t predicts the one at t + 1 of the same segment.

    Args:
        token_ids: int32 [batch, length].
        segment_ids: int32 [batch, length]; 0 is padding.
        loss_mask: bool [batch, length]; True where the token is supervised as a target.

    Returns:
        targets int32 [batch, length] and weights float32 [batch, length]; the last column weighs
        nothing.
    """
    targets = jnp.pad(token_ids[:, 1:], ((0, 0), (0, 1)))
    same = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] != 0)
    weights = jnp.pad(same & (loss_mask[:, 1:] != 0), ((0, 0), (0, 1)))
    return targets, weights.astype(jnp.float32)


def chunked_cross_entropy(
    hidden_states: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    vocab_first: bool = False,
    softcap: float | None = None,
    chunk: int = 512,
) -> jax.Array:
    """Sums the weighted negative log-likelihoods of the targets.

    Args:
        hidden_states: [tokens, hidden_size], after the final norm.
        head: [hidden_size, vocab_size], or [vocab_size, hidden_size] with `vocab_first` (a tied
            embedding table, used as it is stored).
        targets: int32 [tokens].
        weights: float32 [tokens]; zero for tokens that are not supervised.
        vocab_first: The orientation of `head`.
        softcap: Logits become `softcap * tanh(logits / softcap)` where given.
        chunk: Tokens whose logits exist at the same time.

    Returns:
        float32 scalar, in nats; divide by the supervised tokens of the whole batch.
    """
    return _cross_entropy(vocab_first, softcap, chunk, hidden_states, head, targets, weights)


def token_losses(
    hidden_states: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    vocab_first: bool = False,
    softcap: float | None = None,
    chunk: int = 512,
) -> jax.Array:
    """Returns the negative log-likelihood of each target, float32 [tokens] in nats.

    For evaluation; arguments as in `chunked_cross_entropy`.
    """
    chunks, count = _chunks(chunk, hidden_states, targets)
    losses = jax.lax.map(
        lambda one: _losses(_logits(one[0], head, vocab_first, softcap)[0], one[1])[0], chunks
    )
    return losses.reshape(-1)[:count]


def _chunks(chunk: int, *arrays: jax.Array) -> tuple[tuple[jax.Array, ...], int]:
    """Pads and splits the first axis: [tokens, …] -> [chunks, chunk, …]."""
    count = arrays[0].shape[0]
    size = min(chunk, count)
    number = -(-count // size)

    def split(array: jax.Array) -> jax.Array:
        padding = [(0, number * size - count)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(number, size, *array.shape[1:])

    return tuple(split(array) for array in arrays), count


def _logits(
    hidden_states: jax.Array, head: jax.Array, vocab_first: bool, softcap: float | None
) -> tuple[jax.Array, jax.Array | None]:
    """Returns float32 logits [chunk, vocab] and, with a cap, d capped / d raw."""
    equation = "th,vh->tv" if vocab_first else "th,hv->tv"
    logits = jnp.einsum(
        equation,
        hidden_states,
        head.astype(hidden_states.dtype),
        preferred_element_type=jnp.float32,
    )
    if softcap is None:
        return logits, None
    squashed = jnp.tanh(logits / softcap)
    return softcap * squashed, 1.0 - jnp.square(squashed)


def _losses(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the negative log-likelihoods [chunk] and log normalisers [chunk]."""
    normalizers = jax.nn.logsumexp(logits, axis=-1)
    return normalizers - jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0], normalizers


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _cross_entropy(
    vocab_first: bool,
    softcap: float | None,
    chunk: int,
    hidden_states: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    def add(total: jax.Array, one: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        states, target, weight = one
        logits, _ = _logits(states, head, vocab_first, softcap)
        return total + jnp.sum(_losses(logits, target)[0] * weight), None

    chunks, _ = _chunks(chunk, hidden_states, targets, weights)
    return jax.lax.scan(add, jnp.zeros((), jnp.float32), chunks)[0]


def _forward(
    vocab_first: bool,
    softcap: float | None,
    chunk: int,
    hidden_states: Any,
    head: Any,
    targets: Any,
    weights: Any,
) -> tuple[jax.Array, tuple[Any, ...]]:
    head_trains = head.perturbed
    states_train = hidden_states.perturbed
    hidden_states, head = hidden_states.value, head.value
    targets, weights = targets.value, weights.value

    def step(
        carry: tuple[jax.Array, jax.Array | None], one: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array | None], jax.Array | None]:
        total, head_gradient = carry
        states, target, weight = one
        logits, slope = _logits(states, head, vocab_first, softcap)
        losses, normalizers = _losses(logits, target)
        probabilities = jnp.exp(logits - normalizers[:, None])
        one_hot = jnp.arange(logits.shape[-1])[None, :] == target[:, None]
        gradient = (probabilities - one_hot) * weight[:, None]  # [chunk, vocab]
        if slope is not None:
            gradient = gradient * slope
        gradient = gradient.astype(states.dtype)
        states_gradient = None
        if states_train:
            equation = "tv,vh->th" if vocab_first else "tv,hv->th"
            states_gradient = jnp.einsum(equation, gradient, head.astype(states.dtype))
        if head_gradient is not None:
            equation = "tv,th->vh" if vocab_first else "tv,th->hv"
            head_gradient = head_gradient + jnp.einsum(
                equation, gradient, states, preferred_element_type=jnp.float32
            )
        return (total + jnp.sum(losses * weight), head_gradient), states_gradient

    chunks, count = _chunks(chunk, hidden_states, targets, weights)
    start = jnp.zeros(head.shape, jnp.float32) if head_trains else None
    (total, head_gradient), states_gradient = jax.lax.scan(
        step, (jnp.zeros((), jnp.float32), start), chunks
    )
    if states_gradient is not None:
        states_gradient = states_gradient.reshape(-1, hidden_states.shape[-1])[:count]
    # Zero-sized arrays carry the dtypes through the residuals, which must be arrays.
    dtypes = jnp.zeros((0,), hidden_states.dtype), jnp.zeros((0,), head.dtype)
    return total, (states_gradient, head_gradient, dtypes)


def _backward(
    vocab_first: bool, softcap: float | None, chunk: int, residuals: tuple[Any, ...], cotangent: Any
) -> tuple[Any, ...]:
    states_gradient, head_gradient, (states_like, head_like) = residuals

    def scaled(gradient: jax.Array | None, like: jax.Array) -> jax.Array | None:
        if gradient is None:
            return None
        return (cotangent * gradient).astype(like.dtype)

    return scaled(states_gradient, states_like), scaled(head_gradient, head_like), None, None


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)
