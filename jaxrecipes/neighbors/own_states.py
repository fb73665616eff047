"""Vectors of texts without an encoder: the mean of a decoder's own hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import hidden_states
from jaxrecipes.models.pooling import normalize, pool

_STEP = 64


def mean_state_vectors(
    config: ModelConfig,
    params: Any,
    token_ids: Sequence[Sequence[int]],
    *,
    rows: int = 16,
    compute_dtype: Any = jnp.float32,
) -> np.ndarray:
    """Pools the last hidden states of each text over its tokens.

    Args:
        config: The model.
        params: Canonical tree.
        token_ids: Tokens of each text, at least one.
        rows: Texts of one forward pass.
        compute_dtype: dtype of activations.

    Returns:
        float32 [texts, hidden_size], of length one.
    """
    order = sorted(range(len(token_ids)), key=lambda number: len(token_ids[number]))
    result = np.zeros((len(token_ids), config.hidden_size), np.float32)
    for start in range(0, len(order), rows):
        members = order[start : start + rows]
        longest = max(len(token_ids[number]) for number in members)
        length = -(-longest // _STEP) * _STEP
        tokens, segments = np.zeros((2, rows, length), np.int32)
        for row, number in enumerate(members):
            size = len(token_ids[number])
            tokens[row, :size] = token_ids[number]
            segments[row, :size] = 1
        vectors = _pooled(config, jnp.dtype(compute_dtype), params, tokens, segments)
        result[members] = np.asarray(vectors)[: len(members)]
    return result


@partial(jax.jit, static_argnums=(0, 1))
def _pooled(
    config: ModelConfig, compute_dtype: Any, params: Any, tokens: Any, segments: Any
) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    states = hidden_states(config, params, tokens, segments, positions, compute_dtype=compute_dtype)
    return normalize(pool(states, segments, "mean"))[:, 0]
