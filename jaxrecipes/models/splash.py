"""Attention on TPU: JAX's Pallas kernel "splash attention" over packed rows.

The kernel never writes the [heads, length, length] logits to memory and skips the blocks of the row
that the causal or sliding-window mask hides. It takes segment ids and grouped KV heads as they are.

It runs on one device: with sharded arrays, call it inside `jax.shard_map` (with `check_vma=False`,
a Pallas call states no varying axes). Batch and heads need nothing more. Where rows are sharded,
every device gathers the keys and values of the whole row (`jax.lax.all_gather`; its transpose sums
their gradients back) and computes its own queries, which `QueryShard` describes.
"""

from __future__ import annotations

import functools
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)

from jaxrecipes.errors import ConfigError
from jaxrecipes.models.attention import Places
from jaxrecipes.models.query_shard import QueryShard, check_queries, zigzag_order
from jaxrecipes.models.row_order import in_row_order, poison

# Name of what the backward pass reads: the output and the logarithms of the softmax's sums. With
# a remat policy that saves it (`save_only_these_names`) the forward kernel runs once.
RESIDUAL_NAME = "attention_residuals"

# The kernel works on registers of 128 lanes: its blocks are multiples of that.
LANES = 128
# Larger blocks spend less time between grid steps, smaller ones compute less that the mask hides.
# 1024 is the largest power of two with which bfloat16 kernels of heads up to 256 wide fit into the
# 16 MiB of vector memory that the compiler allows a kernel by default on v5e.
LARGEST_BLOCK = 1024
# Keys are worked on in parts of a block, so that a part's float32 logits stay small.
LARGEST_COMPUTE_BLOCK = 512


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    places: Places,
    *,
    scale: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
    query_shard: QueryShard | None = None,
    fused_backward: bool | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Grouped-query attention between tokens of the same segment, by the TPU kernel.

    Equal to `jaxrecipes.models.attention.attention` at every token that is not padding, for packed
    rows as `in_row_order` describes them. A row that is not so, or queries that are not the part of
    it that they are said to be, give NaN: the kernel masks by row index and would show them the
    wrong keys. Output and gradients of a document do not depend on the
    finite values of other documents, bit for bit: a hidden key's weight is exactly zero.

    The kernel takes the logits' factor as part of the query, so that `query * scale` is rounded to
    the query's dtype. Heads of any width are handled by the kernel itself (widths that are not a
    multiple of 128 occupy a multiple of 128 lanes on the chip, without a padded copy in memory).
    Lengths that are not a multiple of 128 are padded with tokens of segment 0.

    Args:
        query: [batch, query_length, heads, head_dim].
        key: [batch, key_length, kv_heads, head_dim].
        value: [batch, key_length, kv_heads, head_dim].
        places: Segments and positions of queries and keys.
        scale: Factor on the logits.
        softcap: Logits become `softcap * tanh(logits / softcap)` where given.
        sliding_window: Number of latest positions visible, the query's own included; None for all.
        query_shard: Where the queries lie in the row of keys; None when they are the whole row.
        fused_backward: Compute all three gradients in one kernel: 5 instead of 7 products for each
            block, for one copy of the query's gradient in its dtype for each block of keys. None:
            only where that costs no memory, that is, where one block holds all keys.
        interpret: Emulate the kernel without a TPU (slow; for tests).

    Returns:
        [batch, query_length, heads, head_dim], dtype of `query`. Padding holds averages over
        earlier padding and means nothing.

    Raises:
        ConfigError: The queries are not the row (or the stated part of it) that the keys are, or a
            part of a row is not a multiple of 128 tokens.
    """
    query_length, key_length = query.shape[1], key.shape[1]
    shards = 1 if query_shard is None else query_shard.count
    zigzag = query_shard is not None and query_shard.zigzag
    check_queries("splash", query_length, key_length, shards)
    chunk = query_length // 2 if zigzag else query_length
    if shards > 1 and chunk % LANES:
        needed = LANES * shards * (2 if zigzag else 1)
        raise ConfigError(
            f"model.attention: splash over a context axis of {shards} devices needs rows that "
            f"are a multiple of {needed} tokens, got {key_length}; change data.length or the mesh"
        )
    block = _block(chunk, sliding_window, query.dtype.itemsize, exact=shards > 1)
    padding = -query_length % block
    kernel = _kernel(
        shards * (query_length + padding),
        sliding_window,
        softcap,
        block,
        shards,
        zigzag,
        fused_backward if fused_backward is not None else key_length <= block,
        interpret,
    )
    if query_shard is not None:
        kernel = _part(kernel, query_shard)
    rows = jnp.asarray(kernel.fwd_mask_info.q_sequence)[:query_length]
    right_queries = (places.query_positions == jnp.take(places.key_positions, rows, axis=1)) & (
        places.query_segment_ids == jnp.take(places.key_segment_ids, rows, axis=1)
    )
    right = in_row_order(places.key_segment_ids, places.key_positions) & jnp.all(
        right_queries, axis=1
    )
    scale_of_row = poison(scale, right)
    query = (query * scale_of_row[:, None, None, None]).astype(query.dtype)

    def prepare(array: jax.Array) -> jax.Array:
        array = jnp.pad(array, ((0, 0), (0, padding)) + ((0, 0),) * (array.ndim - 2))
        return array.swapaxes(1, 2) if array.ndim == 4 else array  # heads come first

    segment_ids = splash_attention_kernel.SegmentIds(
        prepare(places.query_segment_ids), prepare(places.key_segment_ids)
    )
    mixed = jax.vmap(kernel)(prepare(query), prepare(key), prepare(value), segment_ids)
    return cast(jax.Array, mixed).swapaxes(1, 2)[:, :query_length]


def _block(length: int, sliding_window: int | None, itemsize: int, *, exact: bool) -> int:
    """Chooses the side of the kernel's blocks, the same for queries and keys.

    Args:
        length: Contiguous queries of one device, in tokens.
        sliding_window: See `splash_attention`; blocks far wider than it compute what it hides.
        itemsize: Bytes of one element of the query.
        exact: The block must divide the length (the parts of a row cannot be padded).

    Returns:
        The largest allowed power of two times 128 that lengthens the row by at most 1/8.
    """
    block = LARGEST_BLOCK if itemsize <= 2 else LARGEST_BLOCK // 2
    while block > LANES:
        added = -length % block
        fits_window = sliding_window is None or block <= max(sliding_window, LANES)
        if fits_window and (added == 0 if exact else added * 8 <= length):
            break
        block //= 2
    return block


@functools.lru_cache(maxsize=64)
def _kernel(
    length: int,
    sliding_window: int | None,
    softcap: float | None,
    block: int,
    shards: int,
    zigzag: bool,
    fused_backward: bool,
    interpret: bool,
) -> splash_attention_kernel.SplashAttentionKernel:
    """Builds the kernel: which blocks to visit, as small integer arrays on the host.

    One call a kind of layer: equal kernels must be the same object for `jax.jit` to compile them
    once. The masks are formulas, evaluated a block at a time here and inside the kernel.
    """
    shape = (length, length)
    if sliding_window is None:
        mask = splash_attention_mask.CausalMask(shape)
    else:
        mask = splash_attention_mask.LocalMask(shape, (sliding_window - 1, 0), offset=0)
    if zigzag:
        mask.q_sequence = zigzag_order(length, shards)
    compute = min(block, LARGEST_COMPUTE_BLOCK)
    separate = None if fused_backward else block
    # Concrete also inside a trace; then NumPy, so that the cache holds no device's memory.
    with jax.ensure_compile_time_eval():
        kernel = splash_attention_kernel.make_splash_mha(
            # One mask serves all heads.
            splash_attention_mask.MultiHeadMask([mask]),
            block_sizes=splash_attention_kernel.BlockSizes(
                block_q=block,
                block_kv=block,
                block_kv_compute=compute,
                block_q_dkv=block,
                block_kv_dkv=block,
                block_kv_dkv_compute=compute,
                block_q_dq=separate,
                block_kv_dq=separate,
                use_fused_bwd_kernel=fused_backward,
            ),
            head_shards=1,
            q_seq_shards=shards,
            attn_logits_soft_cap=softcap,
            residual_checkpoint_name=RESIDUAL_NAME,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)


def _part(
    kernel: splash_attention_kernel.SplashAttentionKernel, shard: QueryShard
) -> splash_attention_kernel.SplashAttentionKernel:
    """Cuts one shard's rows out of a kernel that was built for all of them.

    The kernel reads its list of blocks and the queries' row indices from arrays, so that the shard
    may be known at run time only. (`manual_sharding_spec` of the kernel does the same through the
    arguments of `jax.shard_map`.)
    """

    def rows(array: np.ndarray, axis: int) -> jax.Array:
        size = array.shape[axis] // shard.count
        return jax.lax.dynamic_slice_in_dim(jnp.asarray(array), shard.index * size, size, axis)

    def cut(info):
        if info is None:
            return None
        return info._replace(
            data_next=rows(info.data_next, 1),
            block_mask=rows(info.block_mask, 1),
            q_sequence=rows(info.q_sequence, 0),
        )

    infos, options = kernel.tree_flatten()
    return kernel.tree_unflatten(options, tuple(cut(info) for info in infos))
