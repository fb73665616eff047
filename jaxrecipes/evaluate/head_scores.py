"""The output head on a fixed number of tokens at a time: losses, divergences, nothing else kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import embedding_table
from jaxrecipes.sharding.host import to_host

Tree = dict[str, Any]


def head_subtree(config: ModelConfig, params: Tree) -> Tree:
    """Returns the part of a tree that makes logits, as it is stored (nothing is transposed).

    Trained tokens' rows are put into a tied head, so that it is one leaf.
    """
    if config.tie_embeddings:
        return {"embedding": {"table": embedding_table(params)}}
    return {"head": {"kernel": params["head"]["kernel"]}}


def same_head(head: Tree, base_head: Tree) -> bool:
    """Tells whether two heads are equal, leaf for leaf."""
    ours, theirs = jax.tree.leaves(head), jax.tree.leaves(base_head)
    return all(bool(jnp.array_equal(a, b)) for a, b in zip(ours, theirs, strict=True))


_CHUNK_STEP = 64


def in_chunks(function: Any, chunk: int, *arrays: np.ndarray) -> list[np.ndarray]:
    """Applies a function to at most `chunk` tokens at a time and concatenates its results."""
    count = arrays[0].shape[0]
    # Few tokens, as of choice items, do not pay for a whole chunk; few sizes, for few programs.
    chunk = min(chunk, -(-count // _CHUNK_STEP) * _CHUNK_STEP)
    results = []
    for start in range(0, count, chunk):
        parts = [array[start : start + chunk] for array in arrays]
        size = parts[0].shape[0]
        padded = [np.pad(part, [(0, chunk - size)] + [(0, 0)] * (part.ndim - 1)) for part in parts]
        results.append([to_host(result)[:size] for result in function(*padded)])
    return [np.concatenate(parts) for parts in zip(*results, strict=True)]


def head_kind(config: ModelConfig) -> tuple[bool, float | None]:
    """Returns all that the functions below need to know of a model: (tied, soft-cap).

    Base and expanded model share what is compiled for it, and so agree bit for bit.
    """
    return config.tie_embeddings, config.final_softcap


def _logits(tied: bool, softcap: float | None, head: Tree, states: jax.Array) -> jax.Array:
    """Returns float32 [chunk, vocab] at full precision.

    Unlike a training loss, KL is a small difference of large numbers, and its shortcut assumes
    that logits are exact products: float32 states must not be rounded on the way, which is what
    accelerators do by default.
    """
    if tied:
        kernel, axis = head["embedding"]["table"], 1
    else:
        kernel, axis = head["head"]["kernel"], 0
    logits = jax.lax.dot_general(
        states,
        kernel.astype(states.dtype),
        (((1,), (axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    return logits


def _losses(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns nll, whether the target is ranked first, and log normalizer, each [chunk]."""
    largest = jnp.max(logits, axis=-1)
    normalizer = largest + jnp.log(jnp.sum(jnp.exp(logits - largest[:, None]), axis=-1))
    target_logits = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return normalizer - target_logits, target_logits >= largest, normalizer


@partial(jax.jit, static_argnums=(0, 1))
def score(
    tied: bool, softcap: float | None, head: Tree, states: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores [chunk] targets from states [chunk, hidden_size].

    Returns:
        nll, whether the target is ranked first, and log normalizer, each [chunk].
    """
    return _losses(_logits(tied, softcap, head, states), targets)


@partial(jax.jit, static_argnums=0)
def expected_embedding(tied: bool, head: Tree, states: jax.Array) -> tuple[jax.Array]:
    """Averages output embeddings with the model's probabilities, for heads without a soft-cap.

    Returns:
        float32 [chunk, hidden_size], alone in a tuple.
    """
    probabilities = jax.nn.softmax(_logits(tied, None, head, states), axis=-1)
    if tied:
        kernel, axis = head["embedding"]["table"], 0
    else:
        kernel, axis = head["head"]["kernel"], 1
    # The kernel as the logits saw it: rounded to the compute dtype, then exact.
    kernel = kernel.astype(states.dtype).astype(jnp.float32)
    return (
        jax.lax.dot_general(
            probabilities,
            kernel,
            (((1,), (axis,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST,
        ),
    )


@partial(jax.jit, static_argnums=(0, 1))
def score_against(
    tied: bool,
    softcap: float | None,
    head: Tree,
    base_head: Tree,
    states: jax.Array,
    targets: jax.Array,
    base_states: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores targets and compares the whole distribution with the base's, of its own head.

    Returns:
        nll, whether the target is ranked first, and KL(base || model), each [chunk].
    """
    logits = _logits(tied, softcap, head, states)
    base_logits = _logits(tied, softcap, base_head, base_states)
    nll, correct, normalizer = _losses(logits, targets)
    base_normalizer = jax.nn.logsumexp(base_logits, axis=-1)
    base_log_probability = base_logits - base_normalizer[:, None]
    difference = base_log_probability - (logits - normalizer[:, None])
    terms = jnp.exp(base_log_probability) * (jnp.expm1(-difference) + difference)
    return nll, correct, jnp.sum(terms, axis=-1)
