"""Refusing a step that would damage the weights, without asking the host."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrecipes.train.state import SpikeState


def accepts(spikes: SpikeState, loss: jax.Array, norm: jax.Array, sigma: float) -> jax.Array:
    """Says whether a step may be applied.

    A step is refused when its loss or gradient norm is not finite, or lies more than `sigma`
    standard deviations above the mean of the accepted steps in the window. Until the window is
    half full only finiteness is asked for.

    Args:
        spikes: What was accepted before.
        loss: float32 scalar.
        norm: float32 scalar, global norm of the trainable gradient before clipping.
        sigma: Number of standard deviations.

    Returns:
        bool scalar.
    """
    window = spikes.losses.shape[0]
    filled = jnp.minimum(spikes.accepted, window)
    counted = jnp.arange(window) < filled

    def ordinary(value: jax.Array, history: jax.Array) -> jax.Array:
        count = jnp.maximum(filled, 1)
        mean = jnp.sum(jnp.where(counted, history, 0.0)) / count
        variance = jnp.sum(jnp.where(counted, jnp.square(history - mean), 0.0)) / count
        return value <= mean + sigma * jnp.sqrt(variance)

    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    judged = filled >= max(window // 2, 2)
    return finite & (~judged | (ordinary(loss, spikes.losses) & ordinary(norm, spikes.norms)))


def remember(
    spikes: SpikeState, loss: jax.Array, norm: jax.Array, accepted: jax.Array
) -> SpikeState:
    """Returns the memory after a step; a refused step is counted and otherwise forgotten."""
    place = spikes.accepted % spikes.losses.shape[0]

    def write(history: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.where(accepted, history.at[place].set(value), history)

    return SpikeState(
        losses=write(spikes.losses, loss),
        norms=write(spikes.norms, norm),
        accepted=spikes.accepted + accepted.astype(jnp.int32),
        skipped=spikes.skipped + (~accepted).astype(jnp.int32),
    )
