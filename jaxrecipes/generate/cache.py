"""The key-value cache of the slots: a ring of columns that all slots write together.

At each step every slot writes its newest key and value into the same column, `offset`, and the next
step takes the next column, round and round. A slot that holds n tokens holds them in the n columns
before `offset`, wherever in its text they are: keys are rotated by their position already, and
where a column stands does not matter. So a step writes one slice, whatever the lengths of the texts
are (writing at a place of its own for each slot is a scatter, slow on every backend), and a text
that ends leaves its slot to another one of any length. The ring grows when a text needs it to.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.layers import LayerCache
from jaxrecipes.sharding.mesh import BATCH_AXES

Caches = list[LayerCache]


def empty_caches(
    config: ModelConfig, slots: int, columns: int, dtype: Any, mesh: Mesh | None
) -> Caches:
    """Returns one cache a layer, [slots, kv_heads, columns, head_dim] each, spread over a mesh."""
    shape = (slots, config.num_kv_heads, columns, config.head_dim)
    sharding = None if mesh is None else cache_sharding(mesh, slots, config.num_kv_heads)
    return [
        LayerCache(*(jnp.zeros(shape, dtype, device=sharding) for _ in range(2)))
        for _ in range(config.num_layers)
    ]


def cache_sharding(mesh: Mesh, slots: int, kv_heads: int) -> NamedSharding:
    """Returns where a cache lives: slots where batches live, heads where heads live."""
    batch = mesh.shape[BATCH_AXES[0]] * mesh.shape[BATCH_AXES[1]]
    return NamedSharding(
        mesh,
        PartitionSpec(
            BATCH_AXES if slots % batch == 0 else None,
            "tensor" if kv_heads % mesh.shape["tensor"] == 0 else None,
        ),
    )


def key_positions(lengths: jax.Array, offset: jax.Array, columns: int) -> jax.Array:
    """Returns which position of its text each column of each slot holds.

    Args:
        lengths: int32 [slots], tokens that a slot holds before the one that is written now.
        offset: int32 scalar, the column that is written now.
        columns: Columns of the ring.

    Returns:
        int32 [slots, columns]; negative where a column holds nothing of the text.
    """
    age = (offset - jnp.arange(columns)) % columns
    return lengths[:, None] - age[None]


@partial(jax.jit, donate_argnames=("caches",))
def insert(
    caches: Caches,
    read: Caches,
    sources: jax.Array,
    targets: jax.Array,
    lengths: jax.Array,
    count: jax.Array,
    offset: jax.Array,
) -> Caches:
    """Copies texts that were read into slots, so that they end before `offset`.

    Args:
        caches: The slots'; they are overwritten.
        read: [rows, kv_heads, width, head_dim], each text from the first column on.
        sources: int32 [most], the row of each text.
        targets: int32 [most], its slot.
        lengths: int32 [most], its tokens, at most as many as the ring has columns.
        count: int32 scalar, how many of `most` there are.
        offset: int32 scalar, the column that is written next.

    Returns:
        The slots' caches.
    """
    columns = caches[0].key.shape[2]

    def copy(index: jax.Array, caches: Caches) -> Caches:
        def one(cache: jax.Array, rows: jax.Array) -> jax.Array:
            row = jax.lax.dynamic_index_in_dim(rows, sources[index])[:, :, :columns]
            row = jnp.pad(row, ((0, 0), (0, 0), (0, columns - row.shape[2]), (0, 0)))
            row = jnp.roll(row, offset - lengths[index], axis=2).astype(cache.dtype)
            return jax.lax.dynamic_update_slice(cache, row, (targets[index], 0, 0, 0))

        return jax.tree.map(one, caches, read)

    return jax.lax.fori_loop(0, count, copy, caches)


@partial(jax.jit, static_argnames=("columns", "mesh"))
def rearrange(
    caches: Caches, rows: jax.Array, offset: jax.Array, *, columns: int, mesh: Mesh | None
) -> Caches:
    """Returns caches of other slots and another number of columns, whose `offset` is 0.

    Args:
        caches: [slots, kv_heads, columns, head_dim].
        rows: int32 [new slots], which slot each new one was.
        offset: int32 scalar, the column that is written next.
        columns: Columns of the new ring; at least the tokens of the longest text.
        mesh: Devices, or None.

    Returns:
        [new slots, kv_heads, new columns, head_dim].
    """

    def one(cache: jax.Array) -> jax.Array:
        kept = jnp.roll(cache[rows], -offset, axis=2)  # the oldest column first
        more = columns - kept.shape[2]
        if more > 0:
            kept = jnp.pad(kept, ((0, 0), (0, 0), (more, 0), (0, 0)))
        else:
            kept = kept[:, :, -more:]
        if mesh is None:
            return kept
        sharding = cache_sharding(mesh, kept.shape[0], kept.shape[1])
        return jax.lax.with_sharding_constraint(kept, sharding)

    return jax.tree.map(one, caches)
