"""Norms, steps, projections and noise by example, where an example is a segment of a packed row.

Everything is [rows, length] or [rows, length, width]: a token carries the number of its example.
Padding (segment 0) is zero in every result.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

Norm = Literal["l2", "linf"]
# The floor under the norm of a gradient, FreeLB's.
SMALLEST_NORM = 1e-8


def segment_sums(values: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Sums by segment.

    Args:
        values: [rows, length].
        segment_ids: int32 [rows, length], at most `length`; 0 is padding.

    Returns:
        [rows, length]: at each token the sum over its segment.
    """
    sums = jax.vmap(lambda row, ids: jax.ops.segment_sum(row, ids, row.shape[0] + 1))
    totals = jnp.take_along_axis(sums(values, segment_ids), segment_ids, axis=1)
    return jnp.where(segment_ids > 0, totals, 0)


def segment_lengths(segment_ids: jax.Array) -> jax.Array:
    """Returns int32 [rows, length]: at each token the true length of its segment; 0 on padding."""
    return segment_sums(jnp.ones_like(segment_ids), segment_ids)


def norms(vectors: jax.Array, segment_ids: jax.Array, norm: Norm = "l2") -> jax.Array:
    """Computes one norm an example, over all its tokens together.

    Args:
        vectors: Float [rows, length, width].
        segment_ids: int32 [rows, length].
        norm: "l2" (Frobenius) or "linf" (largest absolute entry).

    Returns:
        float32 [rows, length]: at each token the norm of its example; 0 on padding.
    """
    vectors = vectors.astype(jnp.float32)
    if norm == "l2":
        return jnp.sqrt(segment_sums(jnp.sum(jnp.square(vectors), axis=-1), segment_ids))
    largest = jnp.max(jnp.abs(vectors), axis=-1)
    maxima = jax.vmap(lambda row, ids: jax.ops.segment_max(row, ids, row.shape[0] + 1))
    found = jnp.take_along_axis(maxima(largest, segment_ids), segment_ids, axis=1)
    return jnp.where(segment_ids > 0, found, 0.0)


def direction(gradient: jax.Array, segment_ids: jax.Array, norm: Norm = "l2") -> jax.Array:
    """Divides a gradient by its norm, example by example; a zero gradient stays zero.

    Args:
        gradient: Float [rows, length, width].
        segment_ids: int32 [rows, length].
        norm: See `norms`.

    Returns:
        float32 [rows, length, width], zero on padding.
    """
    size = jnp.maximum(norms(gradient, segment_ids, norm), SMALLEST_NORM)
    return mask(gradient.astype(jnp.float32) / size[..., None], segment_ids)


def project(
    delta: jax.Array, segment_ids: jax.Array, radius: float | jax.Array, norm: Norm = "l2"
) -> jax.Array:
    """Moves each example's perturbation to the nearest point of its ball.

    Args:
        delta: float32 [rows, length, width].
        segment_ids: int32 [rows, length].
        radius: One number, or [rows, length] at each token that of its example.
        norm: See `norms`.

    Returns:
        float32 [rows, length, width].
    """
    limit = jnp.broadcast_to(jnp.asarray(radius, jnp.float32), segment_ids.shape)
    if norm == "linf":
        return jnp.clip(delta, -limit[..., None], limit[..., None])
    size = norms(delta, segment_ids)
    return delta * jnp.where(size > limit, limit / jnp.maximum(size, 1e-30), 1.0)[..., None]


def mask(vectors: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Sets padding to zero, whatever stood there."""
    return jnp.where((segment_ids > 0)[..., None], vectors, 0)


def example_mean(
    values: jax.Array, segment_ids: jax.Array, examples: jax.Array | None = None
) -> jax.Array:
    """Averages over examples.

    Args:
        values: [rows, length], equal at all tokens of an example.
        segment_ids: int32 [rows, length].
        examples: What the sum is divided by; None for the number of examples.

    Returns:
        float32 scalar; 0 without examples.
    """
    count = count_segments(segment_ids) if examples is None else examples
    return jnp.sum(values * _shares(segment_ids)) / jnp.maximum(count, 1.0)


def count_segments(segment_ids: jax.Array) -> jax.Array:
    """Counts the examples of all rows: float32 scalar."""
    return jnp.sum(_shares(segment_ids))


def _shares(segment_ids: jax.Array) -> jax.Array:
    """At each token one over the length of its example; the sum over an example is 1."""
    return jnp.where(segment_ids > 0, 1.0 / jnp.maximum(segment_lengths(segment_ids), 1), 0.0)


def uniform_noise(key: jax.Array, batch: dict[str, jax.Array], width: int) -> jax.Array:
    """Draws from U(-1, 1) by example: float32 [rows, length, width], zero on padding.

    See `token_keys` for what the numbers depend on.
    """
    return _draw(key, batch, lambda one: jax.random.uniform(one, (width,), minval=-1.0))


def normal_noise(key: jax.Array, batch: dict[str, jax.Array], width: int) -> jax.Array:
    """Draws from N(0, 1) by example: float32 [rows, length, width], zero on padding."""
    return _draw(key, batch, lambda one: jax.random.normal(one, (width,)))


def token_keys(key: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Makes one PRNG key a token, which is the same however its example is packed.

    Args:
        key: Key of the step.
        batch: `token_ids`, `segment_ids` and `positions`, int32 [rows, length].

    Returns:
        Keys [rows, length]: a function of `key`, of the tokens of the example and of the position
        in it. Examples of the same tokens in one step share their noise.
    """
    segment_ids, positions = batch["segment_ids"], batch["positions"]
    # Every (token, position) as one random-looking number; sums modulo 2**32 have no order.
    mixed = _mix(_mix(batch["token_ids"].astype(jnp.uint32) + 1) ^ positions.astype(jnp.uint32))
    examples = segment_sums(mixed, segment_ids)
    fold = jax.vmap(jax.vmap(lambda one, at: jax.random.fold_in(jax.random.fold_in(key, one), at)))
    return fold(examples, positions)


def _draw(key: jax.Array, batch: dict[str, jax.Array], draw: Any) -> jax.Array:
    return mask(jax.vmap(jax.vmap(draw))(token_keys(key, batch)), batch["segment_ids"])


def _mix(values: jax.Array) -> jax.Array:
    """Scrambles uint32 (the finaliser of MurmurHash3)."""
    values = (values ^ (values >> 16)) * jnp.uint32(0x85EBCA6B)
    values = (values ^ (values >> 13)) * jnp.uint32(0xC2B2AE35)
    return values ^ (values >> 16)
