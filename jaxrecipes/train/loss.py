"""Cross-entropy from hidden states, in chunks of tokens: all logits never exist at once.

The loss is a scalar, so its gradient with respect to the logits is known as soon as the logits of
a chunk are: softmax minus one-hot. The forward pass therefore computes the gradients with respect
to hidden states and head right away, chunk by chunk, and the backward pass only scales them. No
logit is computed twice, and a frozen head costs no gradient.

On a mesh the head is cut along the vocabulary, and stays so: the devices that share it exchange
the hidden states of a chunk, each computes the logits of its part of the vocabulary for all of
them, and what has to be known of all parts (the normaliser, the target's logit) is a number per
token. The head is never gathered, and the gradient of a part exists on one device only.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxrecipes.sharding.mesh import GATHERED_AXES
from jaxrecipes.sharding.rules import ACTIVATION_RULES, vocabulary_axes


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
    mesh: Mesh | None = None,
) -> jax.Array:
    """Sums the weighted negative log-likelihoods of the targets.

    Args:
        hidden_states: [batch, length, hidden_size], after the final norm.
        head: [hidden_size, vocab_size], or [vocab_size, hidden_size] with `vocab_first` (a tied
            embedding table, used as it is stored).
        targets: int32 [batch, length].
        weights: float32 [batch, length]; zero for tokens that are not supervised.
        vocab_first: The orientation of `head`.
        softcap: Logits become `softcap * tanh(logits / softcap)` where given.
        chunk: Tokens of a device whose logits exist at the same time.
        mesh: The mesh; None computes on one device.

    Returns:
        float32 scalar, in nats; divide by the supervised tokens of the whole batch.
    """
    options = _Options(vocab_first, softcap, chunk, mesh)
    return _cross_entropy(options, hidden_states, head, targets, weights)


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


class _Options(NamedTuple):
    vocab_first: bool
    softcap: float | None
    chunk: int
    mesh: Mesh | None


class _Axes(NamedTuple):
    """Mesh axes of a loss; none of them on one device.

    Attributes:
        vocabulary: Cut the head.
        shared: Devices along these hold different tokens and parts of one head.
        apart: Devices along these hold different tokens and copies of the head.
    """

    vocabulary: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()


def _axes(mesh: Mesh | None, vocab_size: int) -> _Axes:
    if mesh is None:
        return _Axes()
    tokens = ("data", *GATHERED_AXES)
    vocabulary = vocabulary_axes(vocab_size, mesh)
    shared = tuple(axis for axis in tokens if axis in vocabulary)
    return _Axes(vocabulary, shared, tuple(axis for axis in tokens if axis not in shared))


def _losses_of_parts(
    logits: jax.Array, targets: jax.Array, axes: tuple[str, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Does what `_losses` does where each device holds the logits of a part of the vocabulary.

    Args:
        logits: float32 [tokens, part of the vocabulary].
        targets: int32 [tokens], in the whole vocabulary.
        axes: Mesh axes that cut the vocabulary; empty where it is whole.

    Returns:
        Losses [tokens], log normalisers [tokens], and targets as numbers of this part, which may be
        outside of it.
    """
    if not axes:
        return *_losses(logits, targets), targets
    targets = targets - jax.lax.axis_index(axes) * logits.shape[-1]
    largest = jax.lax.pmax(jnp.max(logits, axis=-1), axes)
    total = jnp.sum(jnp.exp(logits - largest[:, None]), axis=-1)
    is_target = jnp.arange(logits.shape[-1])[None, :] == targets[:, None]
    target_logits = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    total, target_logits = jax.lax.psum((total, target_logits), axes)
    normalizers = largest + jnp.log(total)
    return normalizers - target_logits, normalizers, targets


def _pass(
    options: _Options,
    axes: _Axes,
    wanted: tuple[bool, bool],
    hidden_states: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, ...]:
    """Sums the losses of all devices' tokens, and finds the wanted gradients, chunk by chunk.

    Args:
        options: Of the loss.
        axes: Of the loss.
        wanted: Whether the gradients of hidden states and of the head are wanted.
        hidden_states: [batch, length, hidden_size] of this device's tokens.
        head: This device's part of the head.
        targets: int32 [batch, length].
        weights: float32 [batch, length].

    Returns:
        The sum, float32, and the wanted gradients, of this device's tokens and part of the head.
    """
    vocab_first, softcap, chunk, _ = options
    states_train, head_trains = wanted

    def together(array: jax.Array) -> jax.Array:
        return jax.lax.all_gather(array, axes.shared, tiled=True) if axes.shared else array

    def step(
        carry: tuple[jax.Array, jax.Array | None], one: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array | None], jax.Array | None]:
        total, head_gradient = carry
        states, target, weight = (together(array) for array in one)
        logits, slope = _logits(states, head, vocab_first, softcap)
        losses, normalizers, target = _losses_of_parts(logits, target, axes.vocabulary)
        total = total + jnp.sum(losses * weight)
        if not any(wanted):
            return (total, None), None
        probabilities = jnp.exp(logits - normalizers[:, None])
        one_hot = jnp.arange(logits.shape[-1])[None, :] == target[:, None]
        gradient = (probabilities - one_hot) * weight[:, None]  # [tokens, vocab]
        if slope is not None:
            gradient = gradient * slope
        gradient = gradient.astype(states.dtype)
        states_gradient = None
        if states_train:
            equation = "tv,vh->th" if vocab_first else "tv,hv->th"
            states_gradient = jnp.einsum(equation, gradient, head.astype(states.dtype))
            # Every part of the vocabulary has its share in the gradient of every token.
            for axis in axes.vocabulary:
                if axis not in axes.shared:
                    states_gradient = jax.lax.psum(states_gradient, axis)
            if axes.shared:
                states_gradient = jax.lax.psum_scatter(states_gradient, axes.shared, tiled=True)
        if head_gradient is not None:
            equation = "tv,th->vh" if vocab_first else "tv,th->hv"
            head_gradient = head_gradient + jnp.einsum(
                equation, gradient, states, preferred_element_type=jnp.float32
            )
        return (total, head_gradient), states_gradient

    rows, length, width = hidden_states.shape
    chunks, count = _chunks(
        chunk, hidden_states.reshape(-1, width), targets.reshape(-1), weights.reshape(-1)
    )
    start = jnp.zeros(head.shape, jnp.float32) if head_trains else None
    (total, head_gradient), states_gradient = jax.lax.scan(
        step, (jnp.zeros((), jnp.float32), start), chunks
    )
    results = [jax.lax.psum(total, axes.apart)]
    if states_gradient is not None:
        results.append(states_gradient.reshape(-1, width)[:count].reshape(rows, length, width))
    if head_gradient is not None:
        results.append(jax.lax.psum(head_gradient, axes.apart))
    return tuple(results)


def _run(
    options: _Options,
    wanted: tuple[bool, bool],
    hidden_states: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, ...]:
    """Runs `_pass` on one device, or on each device of the mesh with its part."""
    axes = _axes(options.mesh, head.shape[0 if options.vocab_first else 1])
    function = partial(_pass, options, axes, wanted)
    if options.mesh is None:
        return function(hidden_states, head, targets, weights)
    cut = axes.vocabulary or None
    part = PartitionSpec(cut, None) if options.vocab_first else PartitionSpec(None, cut)
    tokens, states = ACTIVATION_RULES["tokens"], ACTIVATION_RULES["hidden_states"]
    gradients = [spec for spec, is_wanted in zip((states, part), wanted, strict=True) if is_wanted]
    return jax.shard_map(
        function,
        mesh=options.mesh,
        in_specs=(states, part, tokens, tokens),
        out_specs=(PartitionSpec(), *gradients),
        check_vma=False,
    )(hidden_states, head, targets, weights)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(
    options: _Options,
    hidden_states: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    return _run(options, (False, False), hidden_states, head, targets, weights)[0]


def _forward(
    options: _Options, hidden_states: Any, head: Any, targets: Any, weights: Any
) -> tuple[jax.Array, tuple[Any, ...]]:
    wanted = hidden_states.perturbed, head.perturbed
    arrays = (hidden_states.value, head.value, targets.value, weights.value)
    total, *gradients = _run(options, wanted, *arrays)
    states_gradient = gradients.pop(0) if wanted[0] else None
    head_gradient = gradients.pop(0) if wanted[1] else None
    # Zero-sized arrays carry the dtypes through the residuals, which must be arrays.
    dtypes = jnp.zeros((0,), arrays[0].dtype), jnp.zeros((0,), arrays[1].dtype)
    return total, (states_gradient, head_gradient, dtypes)


def _backward(options: _Options, residuals: tuple[Any, ...], cotangent: Any) -> tuple[Any, ...]:
    states_gradient, head_gradient, (states_like, head_like) = residuals

    def scaled(gradient: jax.Array | None, like: jax.Array) -> jax.Array | None:
        if gradient is None:
            return None
        return (cotangent * gradient).astype(like.dtype)

    return scaled(states_gradient, states_like), scaled(head_gradient, head_like), None, None


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)
