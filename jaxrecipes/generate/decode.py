"""Decoding with a key-value cache: prompts of mixed length in, continuations out.

Prompts are sorted by length, cut into batches and padded on the left, so that all rows of a batch
write the same slot of the cache. Everything has a static shape: one compilation for each padded
prompt length. Layers are unrolled here, not scanned: a scan slices the weights of a layer out of
their stack at every step, which costs a copy of the whole model for each token (measured on two
CPU cores, SmolLM2-135M, batch 32: 1.5 to 2.8 times slower), and one token's graph compiles in
seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxrecipes.errors import DataError
from jaxrecipes.generate.sampling import GREEDY, Sampling, choose, penalise_repetition
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import embed, final_norm, layer_tokens
from jaxrecipes.models.decoder import logits as output_logits
from jaxrecipes.models.layers import Block, LayerCache
from jaxrecipes.sharding.host import to_host

Tree = dict[str, Any]
Caches = list[LayerCache]


def generate(
    config: ModelConfig,
    params: Tree,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int] = (),
    sampling: Sampling = GREEDY,
    seed: int | Sequence[int] = 0,
    batch_size: int = 32,
    compute_dtype: Any = jnp.float32,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continues each prompt.

    What is drawn for a prompt depends on its own seed and on nothing else in the call: neither on
    its neighbours nor on `batch_size` (up to the rounding of matrix products, which a backend may
    do differently for another batch shape).

    Args:
        config: The model.
        params: Canonical tree (of a runtime tree: `params.layout.to_canonical`). Weights that are
            in `compute_dtype` already save the conversion.
        prompts: Token ids of each prompt, at least one each.
        max_new_tokens: Longest continuation, in tokens.
        eos_ids: A continuation ends with the first of these tokens.
        sampling: How tokens are drawn; greedy by default.
        seed: One seed a prompt; or one number, from which each prompt gets its own seed by its
            index.
        batch_size: Most prompts decoded together.
        compute_dtype: dtype of activations, products and cache.
        on_batch: Called after each batch with the number of prompts done and their total.

    Returns:
        For each prompt its new token ids, without the prompt, with the end token if one came.

    Raises:
        DataError: A prompt is empty, holds a token id outside of the vocabulary or leaves no room
            for `max_new_tokens` in the model's context; or an option is out of range.
    """
    _check(config, prompts, max_new_tokens, batch_size)
    if not prompts:
        return []
    keys = _request_keys(seed, len(prompts))
    # Neighbours of like length share a batch; batches of one size share a compilation.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    batches = -(-len(prompts) // batch_size)
    size = -(-len(prompts) // batches)
    continuations: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(prompts), size):
        chosen = order[start : start + size]
        length = _padded_length(max(len(prompts[index]) for index in chosen))
        token_ids = np.zeros((size, length), np.int32)
        lengths = np.zeros(size, np.int32)
        for row, index in enumerate(chosen):
            lengths[row] = len(prompts[index])
            token_ids[row, length - lengths[row] :] = prompts[index]
        batch_keys = keys[np.resize(np.asarray(chosen), size)]
        static = {"config": config, "compute_dtype": jnp.dtype(compute_dtype)}
        caches, first_logits = _prefill(
            params, token_ids, lengths, cache_length=length + max_new_tokens, **static
        )
        seen = np.zeros((size, config.vocab_size), bool)
        for row, index in enumerate(chosen):
            seen[row, list(prompts[index])] = True
        written, _ = _decode(
            params,
            caches,
            first_logits,
            lengths,
            batch_keys,
            seen,
            max_new_tokens=max_new_tokens,
            eos_ids=tuple(eos_ids),
            sampling=sampling,
            **static,
        )
        for row, index in zip(to_host(written), chosen, strict=False):
            continuations[index] = _until_end(row.tolist(), eos_ids)
        if on_batch is not None:
            on_batch(min(start + size, len(prompts)), len(prompts))
    return continuations


def _check(
    config: ModelConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int
) -> None:
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise DataError(f"{name} is {value}; expected at least 1")
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise DataError(
                f"prompt {index} has no tokens; give it at least one, for instance the "
                "tokenizer's beginning-of-text token"
            )
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise DataError(
                f"prompt {index} holds token ids from {min(prompt)} to {max(prompt)}; the model's "
                f"vocabulary is 0 to {config.vocab_size - 1}: use the checkpoint's own tokenizer"
            )
        if len(prompt) + max_new_tokens > config.max_position_embeddings:
            raise DataError(
                f"prompt {index} has {len(prompt)} tokens, which with max_new_tokens "
                f"{max_new_tokens} is beyond the model's context of "
                f"{config.max_position_embeddings}: shorten the prompt or lower max_new_tokens"
            )


def _request_keys(seed: int | Sequence[int], requests: int) -> jax.Array:
    """Returns one PRNG key a request, [requests]."""
    if isinstance(seed, int):
        return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(requests))
    if len(seed) != requests:
        raise DataError(f"{len(seed)} seeds for {requests} prompts; expected one each, or one int")
    return jax.vmap(jax.random.key)(np.asarray(seed, np.uint32))


def _padded_length(length: int) -> int:
    """Rounds up to 16, 24, 32, 48, 64, 96, …: few compilations, at most half more tokens."""
    padded = 16
    while padded < length:
        padded += padded // 2 if padded & (padded - 1) == 0 else padded // 3
    return padded


def _until_end(token_ids: list[int], eos_ids: Sequence[int]) -> list[int]:
    ends = [index for index, token_id in enumerate(token_ids) if token_id in eos_ids]
    return token_ids[: ends[0] + 1] if ends else token_ids


def _forward(
    config: ModelConfig,
    params: Tree,
    caches: Caches,
    token_ids: jax.Array,
    *,
    offset: jax.Array,
    lengths: jax.Array,
    prompt_length: int,
    compute_dtype: Any,
) -> tuple[jax.Array, Caches]:
    """Runs tokens that lie at cache slots `offset` and after; returns the last one's logits.

    Slot s of a row holds position s - (prompt_length - lengths): negative before the prompt, which
    is padding, and beyond the query's position, hence invisible, where nothing was written yet.
    """
    first_slot = (prompt_length - lengths)[:, None]
    slots = jnp.arange(caches[0].key.shape[2])[None]
    query_positions = offset + jnp.arange(token_ids.shape[1])[None] - first_slot
    key_positions = slots - first_slot
    # One description for each kind of layer.
    kinds = {
        layer_type: layer_tokens(
            config,
            config.layer_types.index(layer_type),
            (query_positions >= 0).astype(jnp.int32),
            query_positions,
            key_segment_ids=(key_positions >= 0).astype(jnp.int32),
            key_positions=key_positions,
            cache_offset=offset,
        )
        for layer_type in sorted(set(config.layer_types))
    }
    states = embed(config, params, token_ids, compute_dtype)
    updated: Caches = []
    for index, cache in enumerate(caches):
        block = Block(config, config.window(index))
        states, updated_cache = block.apply(
            {"params": params["layers"][str(index)]},
            states,
            kinds[config.layer_types[index]],
            cache,
        )
        updated.append(cast(LayerCache, updated_cache))
    states = final_norm(config, params, states[:, -1:])
    return output_logits(config, params, states[:, 0]), updated


@partial(jax.jit, static_argnames=("config", "cache_length", "compute_dtype"))
def _prefill(
    params: Tree,
    token_ids: jax.Array,
    lengths: jax.Array,
    *,
    config: ModelConfig,
    cache_length: int,
    compute_dtype: Any,
) -> tuple[Caches, jax.Array]:
    """Reads the prompts.

    Args:
        params: Weights.
        token_ids: int32 [batch, prompt_length], padded on the left.
        lengths: int32 [batch], tokens of each prompt; 0 for a row that only fills the batch.
        config: The model.
        cache_length: Slots of the returned caches.
        compute_dtype: dtype of activations and cache.

    Returns:
        One cache a layer, and the logits of the first new token, float32 [batch, vocab_size].
    """
    batch, prompt_length = token_ids.shape
    shape = (batch, config.num_kv_heads, prompt_length, config.head_dim)
    empty = jnp.zeros(shape, compute_dtype)
    first_logits, caches = _forward(
        config,
        params,
        [LayerCache(empty, empty)] * config.num_layers,
        token_ids,
        offset=jnp.int32(0),
        lengths=lengths,
        prompt_length=prompt_length,
        compute_dtype=compute_dtype,
    )
    # Grown only now: the prompt need not look at slots that are still empty.
    room = ((0, 0), (0, 0), (0, cache_length - prompt_length), (0, 0))
    return jax.tree.map(lambda cache: jnp.pad(cache, room), caches), first_logits


@partial(
    jax.jit,
    static_argnames=("config", "max_new_tokens", "eos_ids", "sampling", "compute_dtype"),
    donate_argnames=("caches",),
)
def _decode(
    params: Tree,
    caches: Caches,
    first_logits: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    seen: jax.Array,
    *,
    config: ModelConfig,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    sampling: Sampling,
    compute_dtype: Any,
) -> tuple[jax.Array, Caches]:
    """Writes token after token until every row has ended.

    Args:
        params: Weights.
        caches: What `_prefill` returned.
        first_logits: float32 [batch, vocab_size].
        lengths: int32 [batch], tokens of each prompt; a row of length 0 counts as ended.
        keys: PRNG keys [batch].
        seen: bool [batch, vocab_size], tokens of the prompts.
        config: The model.
        max_new_tokens: Tokens to write.
        eos_ids: Tokens that end a row.
        sampling: How tokens are drawn.
        compute_dtype: dtype of activations.

    Returns:
        int32 [batch, max_new_tokens], where what follows a row's end token means nothing; and the
        caches, which take the memory of those passed in.
    """
    prompt_length = caches[0].key.shape[2] - max_new_tokens

    rows = jnp.arange(len(lengths))

    def next_tokens(logits: jax.Array, seen: jax.Array, step: jax.Array) -> jax.Array:
        if sampling.repetition_penalty != 1:
            logits = penalise_repetition(logits, seen, sampling.repetition_penalty)
        return choose(logits, sampling, jax.vmap(jax.random.fold_in, (0, None))(keys, step))

    def ends(token_ids: jax.Array) -> jax.Array:
        return jnp.isin(token_ids, jnp.asarray(eos_ids, jnp.int32))

    def unfinished(state: tuple) -> jax.Array:
        step, _, _, ended, _, _ = state
        return (step < max_new_tokens) & ~jnp.all(ended)

    def write(state: tuple) -> tuple:
        step, latest, written, ended, seen, caches = state
        logits, caches = _forward(
            config,
            params,
            caches,
            latest[:, None],
            offset=prompt_length + step - 1,
            lengths=lengths,
            prompt_length=prompt_length,
            compute_dtype=compute_dtype,
        )
        seen = seen.at[rows, latest].set(True)
        latest = next_tokens(logits, seen, step)
        written = jax.lax.dynamic_update_slice(written, latest[:, None], (0, step))
        return step + 1, latest, written, ended | ends(latest), seen, caches

    latest = next_tokens(first_logits, seen, jnp.int32(0))
    written = jnp.zeros((len(lengths), max_new_tokens), jnp.int32).at[:, 0].set(latest)
    state = (jnp.int32(1), latest, written, (lengths == 0) | ends(latest), seen, caches)
    _, _, written, _, _, caches = jax.lax.while_loop(unfinished, write, state)
    return written, caches
