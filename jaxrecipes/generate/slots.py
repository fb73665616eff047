"""What runs on the device: reading prompts, and writing tokens in all slots together.

Every shape is static. Layers are unrolled here, not scanned: a scan slices the weights of a layer
out of their stack at every step, which costs a copy of the whole model for each token (measured on
two CPU cores, SmolLM2-135M, batch 32: 1.5 to 2.8 times slower), and one token's graph compiles in
seconds.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxrecipes.generate.cache import Caches, key_positions
from jaxrecipes.generate.sampling import SamplingRows, choose
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import embed, final_norm, layer_tokens
from jaxrecipes.models.decoder import logits as output_logits
from jaxrecipes.models.layers import Block, LayerCache

Tree = dict[str, Any]

# Tokens whose logits over the vocabulary exist at the same time when prompts are scored.
_SCORED_TOGETHER = 128


class Slots(NamedTuple):
    """What the device has to know about each slot, beside its cache.

    Attributes:
        latest: int32 [slots], the newest token, which is not in the cache yet.
        lengths: int32 [slots], tokens in the cache.
        written: int32 [slots], tokens of the answer so far.
        limits: int32 [slots], tokens of the longest answer; 0 for a slot without a text.
        stop_ids: int32 [slots, most], tokens that end the text, and -1.
        keys: uint32 [slots, 2], the seed.
        sampling: How tokens are drawn.
    """

    latest: jax.Array
    lengths: jax.Array
    written: jax.Array
    limits: jax.Array
    stop_ids: jax.Array
    keys: jax.Array
    sampling: SamplingRows


class Steps(NamedTuple):
    """What some steps wrote.

    Attributes:
        taken: int32 scalar, the number of steps.
        counts: int32 [slots], tokens that each slot wrote: the first so many of `tokens`.
        tokens: int32 [slots, most].
        logprobs: float32 [slots, most], of the tokens, as the model gives them before anything in
            `Sampling`; 0 where they are not wanted.
    """

    taken: jax.Array
    counts: jax.Array
    tokens: jax.Array
    logprobs: jax.Array


def _run_layers(
    config: ModelConfig,
    params: Tree,
    caches: Caches,
    token_ids: jax.Array,
    query_positions: jax.Array,
    positions: jax.Array,
    offset: jax.Array,
    compute_dtype: Any,
) -> tuple[jax.Array, Caches]:
    """Runs tokens [batch, length] that go into the columns from `offset` on.

    `positions` are those of the cache's columns, [batch, columns], negative where there is nothing.
    """
    # One description for each kind of layer.
    kinds = {
        layer_type: layer_tokens(
            config,
            config.layer_types.index(layer_type),
            jnp.ones_like(query_positions),
            query_positions,
            key_segment_ids=(positions >= 0).astype(jnp.int32),
            key_positions=positions,
            cache_offset=offset,
        )
        for layer_type in sorted(set(config.layer_types))
    }
    states = embed(config, params, token_ids, compute_dtype)
    updated: Caches = []
    for index, cache in enumerate(caches):
        states, updated_cache = Block(config, config.window(index)).apply(
            {"params": params["layers"][str(index)]},
            states,
            kinds[config.layer_types[index]],
            cache,
        )
        updated.append(cast(LayerCache, updated_cache))
    return states, updated


@partial(jax.jit, static_argnames=("config", "compute_dtype"))
def read_prompts(
    params: Tree,
    prefix: Caches | None,
    token_ids: jax.Array,
    next_ids: jax.Array | None,
    *,
    config: ModelConfig,
    compute_dtype: Any,
) -> tuple[Caches, jax.Array | None]:
    """Computes the keys and values of texts.

    Args:
        params: Weights.
        prefix: What all texts begin with, as this function returned it for one row without any
            padding: [1, kv_heads, prefix, head_dim]; None if nothing.
        token_ids: int32 [rows, length], what follows, padded at the end with anything.
        next_ids: int32 [rows, length], the token after each of them, to be scored; or None.
        config: The model.
        compute_dtype: dtype of activations and caches.

    Returns:
        One cache a layer, [rows, kv_heads, prefix + length, head_dim]; and the log-probability of
        each of `next_ids`, float32 [rows, length].
    """
    rows, length = token_ids.shape
    start = 0 if prefix is None else prefix[0].key.shape[2]
    if prefix is None:
        shape = (rows, config.num_kv_heads, length, config.head_dim)
        caches = [LayerCache(*[jnp.zeros(shape, compute_dtype)] * 2)] * config.num_layers
    else:
        room = ((0, 0), (0, 0), (0, length), (0, 0))
        caches = jax.tree.map(
            lambda one: jnp.pad(jnp.broadcast_to(one, (rows, *one.shape[1:])), room), prefix
        )
    columns = jnp.broadcast_to(jnp.arange(start + length), (rows, start + length))
    states, caches = _run_layers(
        config,
        params,
        caches,
        token_ids,
        columns[:, start:],
        columns,
        jnp.int32(start),
        compute_dtype,
    )
    if next_ids is None:
        return caches, None

    def score(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits = output_logits(config, params, pair[0])
        return logits[pair[1]] - jax.nn.logsumexp(logits)

    states = final_norm(config, params, states).reshape(rows * length, -1)
    scores = jax.lax.map(score, (states, next_ids.reshape(-1)), batch_size=_SCORED_TOGETHER)
    return caches, scores.reshape(rows, length)


@partial(
    jax.jit,
    static_argnames=("config", "compute_dtype", "most"),
    donate_argnames=("caches", "seen"),
)
def write_tokens(
    params: Tree,
    caches: Caches,
    seen: jax.Array | None,
    slots: Slots,
    offset: jax.Array,
    steps: jax.Array,
    leave_at: jax.Array,
    want_logprobs: jax.Array,
    *,
    config: ModelConfig,
    compute_dtype: Any,
    most: int,
) -> tuple[Steps, Caches, jax.Array | None]:
    """Writes token after token in all slots.

    Args:
        params: Weights.
        caches: One a layer, [slots, kv_heads, columns, head_dim].
        seen: bool [slots, vocab_size], tokens of each slot's text, `latest` included; None if no
            slot has a repetition penalty.
        slots: The slots.
        offset: int32 scalar, the column that is written next.
        steps: int32 scalar, steps to take, at most `most`.
        leave_at: int32 scalar: return as soon as no more than so many texts go on.
        want_logprobs: bool scalar.
        config: The model.
        compute_dtype: dtype of activations.
        most: Size of the result.

    Returns:
        What was written, and `caches` and `seen`, which take the memory of those passed in.
    """
    columns = caches[0].key.shape[2]
    rows = jnp.arange(len(slots.latest))
    keys = jax.random.wrap_key_data(slots.keys, impl="threefry2x32")

    def going_on(state: tuple) -> jax.Array:
        step, _, active, *_ = state
        return (step < steps) & (jnp.sum(active) > leave_at)

    def write(state: tuple) -> tuple:
        step, latest, active, written, seen, caches = state
        lengths = slots.lengths + step
        column = (offset + step) % columns
        states, caches = _run_layers(
            config,
            params,
            caches,
            latest[:, None],
            lengths[:, None],
            key_positions(lengths, column, columns),
            column,
            compute_dtype,
        )
        logits = output_logits(config, params, final_norm(config, params, states)[:, 0])
        places = slots.written + step
        chosen = choose(logits, slots.sampling, jax.vmap(jax.random.fold_in)(keys, places), seen)
        if seen is not None:
            seen = seen.at[rows, chosen].set(True)
        logprobs = jax.lax.cond(
            want_logprobs,
            lambda: logits[rows, chosen] - jax.nn.logsumexp(logits, axis=-1),
            lambda: jnp.zeros(len(rows), jnp.float32),
        )
        written = Steps(
            step + 1,
            written.counts + active,
            jax.lax.dynamic_update_slice(written.tokens, chosen[:, None], (0, step)),
            jax.lax.dynamic_update_slice(written.logprobs, logprobs[:, None], (0, step)),
        )
        ended = jnp.any(chosen[:, None] == slots.stop_ids, axis=-1)
        active = active & ~ended & (places + 1 < slots.limits)
        return step + 1, chosen, active, written, seen, caches

    nothing = Steps(
        jnp.int32(0),
        jnp.zeros(len(rows), jnp.int32),
        jnp.zeros((len(rows), most), jnp.int32),
        jnp.zeros((len(rows), most), jnp.float32),
    )
    active = slots.written < slots.limits
    state = (jnp.int32(0), slots.latest, active, nothing, seen, caches)
    _, _, _, written, seen, caches = jax.lax.while_loop(going_on, write, state)
    return written, caches, seen
