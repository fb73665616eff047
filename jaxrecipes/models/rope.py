"""Rotary position embedding (RoFormer, arXiv 2104.09864), in Hugging Face's half-split form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxrecipes.models.config import LinearScaling, Llama3Scaling, RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Returns the angular frequency of each pair of dimensions.

    Args:
        rope: Base and scaling.
        head_dim: Width of a head; even.

    Returns:
        float32 [head_dim / 2], radians per token.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = (1.0 / np.power(np.float32(rope.theta), exponent)).astype(np.float32)
    scaling = rope.scaling
    if scaling is None:
        return frequencies
    if isinstance(scaling, LinearScaling):
        return (frequencies / scaling.factor).astype(np.float32)
    return _llama3_frequencies(frequencies, scaling)


def _llama3_frequencies(frequencies: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    wavelengths = 2 * np.pi / frequencies
    context = scaling.original_max_position
    # 0 for wavelengths that are divided by the whole factor, 1 for those that stay as they are.
    kept = (context / wavelengths - scaling.low_frequency_factor) / (
        scaling.high_frequency_factor - scaling.low_frequency_factor
    )
    kept = np.clip(kept, 0.0, 1.0)
    return ((1 - kept) * frequencies / scaling.factor + kept * frequencies).astype(np.float32)


def rotation(rope: RopeConfig, head_dim: int, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the cosines and sines that `rotate` needs.

    Args:
        rope: Base and scaling.
        head_dim: Width of a head.
        positions: int32 [batch, length], position of each token inside its document.

    Returns:
        Two float32 arrays [batch, length, head_dim / 2].
    """
    angles = positions.astype(jnp.float32)[..., None] * inverse_frequencies(rope, head_dim)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(heads: jax.Array, cosines: jax.Array, sines: jax.Array) -> jax.Array:
    """Rotates each pair (i, i + head_dim / 2) of a head by the angle of its position.

    Args:
        heads: [batch, length, heads, head_dim].
        cosines: float32 [batch, length, head_dim / 2].
        sines: float32 [batch, length, head_dim / 2].

    Returns:
        The rotated heads, same shape and dtype as `heads`; computed in float32.
    """
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    cosines = cosines[:, :, None, :]  # [batch, length, 1, head_dim / 2]
    sines = sines[:, :, None, :]
    rotated = [first * cosines - second * sines, second * cosines + first * sines]
    return jnp.concatenate(rotated, axis=-1).astype(heads.dtype)
