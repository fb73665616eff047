"""Attention on NVIDIA GPUs: cuDNN's fused kernel, through `jax.nn.dot_product_attention`.

That function takes no segment ids. Packed rows are kept apart by a dense mask, which JAX turns into
a bias of the inputs' dtype: 0 where a key is visible and -2.2e12 (bfloat16) or -32768 (float16)
where it is not. The softmax is computed in float32, where the exponential of such a distance is
exactly 0: a hidden key has no weight at all for a query that sees some key, and every query does.

The mask takes `2 * batch * query_length * key_length` bytes (32 MiB for a row of 4096 tokens, 2 GiB
for one of 32768), once for all heads. With jax before 0.12 the backward pass writes a gradient of
it too, which nobody reads. The reference's logits are float32 and one such matrix for each head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrecipes.errors import ConfigError
from jaxrecipes.models.attention import Places, visible
from jaxrecipes.models.query_shard import QueryShard, check_queries
from jaxrecipes.models.row_order import in_row_order, poison

DTYPES = ("bfloat16", "float16")
# Before Hopper (compute capability 9.0) the kernel takes heads up to 128 wide.
LARGEST_HEAD_DIM = 256
LARGEST_HEAD_DIM_BEFORE_HOPPER = 128
# With a bias cuDNN needs even lengths; these are also the sizes its own tests use.
LENGTH_MULTIPLE = 64


def cudnn_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    places: Places,
    *,
    scale: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
    query_shard: QueryShard | None = None,
) -> jax.Array:
    """Grouped-query attention between tokens of the same segment, by cuDNN.

    Equal to `jaxrecipes.models.attention.attention` at every token that is not padding. The mask
    says everything, a sliding window too; for whole rows the kernel is told in addition that it is
    causal, so that it skips the half of the row that is hidden. It takes that by row index: rows
    that are not as `in_row_order` describes them give NaN.

    Args:
        query: [batch, query_length, heads, head_dim], bfloat16 or float16.
        key: [batch, key_length, kv_heads, head_dim].
        value: [batch, key_length, kv_heads, head_dim].
        places: Segments and positions of queries and keys.
        scale: Factor on the logits.
        softcap: Must be None: cuDNN's kernel has no soft-cap.
        sliding_window: Number of latest positions visible, the query's own included; None for all.
        query_shard: Where the queries lie in the row of keys; None when they are the whole row. Of
            a part of a row nothing is skipped.

    Returns:
        [batch, query_length, heads, head_dim], dtype of `query`. Padding means nothing.

    Raises:
        ConfigError: The kernel cannot compute this, see `cudnn_obstacle`, or the queries are not
            the row (or the stated part of it) that the keys are.
    """
    query_length, key_length = query.shape[1], key.shape[1]
    obstacle = cudnn_obstacle(str(query.dtype), query.shape[-1], softcap)
    if obstacle is not None:
        raise ConfigError(f"model.attention: cudnn cannot be used: {obstacle}")
    shards = 1 if query_shard is None else query_shard.count
    check_queries("cudnn", query_length, key_length, shards)
    if shards == 1:
        right = in_row_order(places.key_segment_ids, places.key_positions)
        query = query * poison(1.0, right)[:, None, None, None].astype(query.dtype)

    def pad(array: jax.Array) -> jax.Array:
        added = -array.shape[1] % LENGTH_MULTIPLE
        return jnp.pad(array, ((0, 0), (0, added)) + ((0, 0),) * (array.ndim - 2))

    mixed = jax.nn.dot_product_attention(
        pad(query),
        pad(key),
        pad(value),
        mask=packed_mask(Places(*map(pad, places)), sliding_window),
        scale=scale,
        is_causal=shards == 1,
        implementation="cudnn",
    )
    return mixed[:, :query_length]


def cudnn_obstacle(
    dtype: str, head_dim: int, softcap: float | None, compute_capability: float | None = None
) -> str | None:
    """Says why cuDNN cannot compute a model's attention, and what would help.

    Args:
        dtype: Name of the compute dtype.
        head_dim: Width of one head.
        softcap: The model's soft-cap of attention logits.
        compute_capability: The GPU's, such as 9.0; None where it is not known.

    Returns:
        One sentence, or None where cuDNN can.
    """
    if softcap is not None:
        return (
            f"the model soft-caps its attention logits (at {softcap}) and cuDNN's kernel does not; "
            "use model.attention: reference"
        )
    if dtype not in DTYPES:
        return (
            f"cuDNN's kernel takes {' or '.join(DTYPES)}, not {dtype}; use "
            "model.compute_dtype: bfloat16 or model.attention: reference"
        )
    largest = LARGEST_HEAD_DIM
    if compute_capability is not None and compute_capability < 9.0:
        largest = LARGEST_HEAD_DIM_BEFORE_HOPPER
    if head_dim > largest or head_dim % 8:
        return (
            f"cuDNN's kernel takes heads that are a multiple of 8 and on this GPU at most "
            f"{largest} wide, the model's are {head_dim}; use model.attention: reference"
        )
    return None


def packed_mask(places: Places, sliding_window: int | None) -> jax.Array:
    """Returns `visible`, where padding sees padding so that no query is without a key.

    Args:
        places: Segments and positions of queries and keys.
        sliding_window: See `visible`.

    Returns:
        bool [batch, 1, query_length, key_length], the same for all heads.
    """
    padding_queries, padding_keys = places.query_segment_ids == 0, places.key_segment_ids == 0
    both_padding = padding_queries[:, :, None] & padding_keys[:, None, :]
    return (visible(places, sliding_window) | both_padding)[:, None]
