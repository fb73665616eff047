"""Attention on a mesh: each device mixes its rows, its heads, and its part of the queries."""

from __future__ import annotations

from functools import partial

import jax
from jax.sharding import PartitionSpec

from jaxrecipes.models.attention import Places, attention
from jaxrecipes.models.attention_backends import BACKENDS
from jaxrecipes.models.execution import Execution
from jaxrecipes.models.query_shard import QueryShard
from jaxrecipes.sharding.mesh import BATCH_AXES
from jaxrecipes.sharding.rules import ACTIVATION_RULES


def attend(
    execution: Execution,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    places: Places,
    *,
    scale: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
) -> jax.Array:
    """Grouped-query attention by the backend of an execution, on its devices.

    Rows and heads are independent of each other, so that devices exchange nothing for them. Along
    the context axis keys and values of the whole row are gathered (grouped-query models have few of
    them), and each device answers the queries of its part of the row.

    Args:
        execution: Mesh and backend. With a cache (other keys than queries) the backend is the
            reference: kernels are made for whole rows.
        query: [batch, query_length, heads, head_dim].
        key: [batch, key_length, kv_heads, head_dim].
        value: [batch, key_length, kv_heads, head_dim].
        places: Segments and positions of queries and keys.
        scale: Factor on the logits.
        softcap: Logits become `softcap * tanh(logits / softcap)` where given.
        sliding_window: Number of latest positions visible, the query's own included; None for all.

    Returns:
        [batch, query_length, heads, head_dim], dtype of `query`.
    """
    cached = query.shape[1] != key.shape[1]
    backend = BACKENDS["reference" if cached else execution.attention]
    options = {"scale": scale, "softcap": softcap, "sliding_window": sliding_window}
    mesh = execution.mesh
    if mesh is None:
        return backend(
            query,
            key,
            value,
            places,
            **options,
        )
    parts = mesh.shape["context"]

    def local(query, key, value, places):
        function = backend
        if parts > 1 and backend is not attention:
            shard = QueryShard(jax.lax.axis_index("context"), parts)
            function = partial(backend, query_shard=shard)
        return function(
            query,
            key,
            value,
            places,
            **options,
        )

    tokens, whole = ACTIVATION_RULES["tokens"], PartitionSpec(BATCH_AXES, None)
    places_spec = Places._make([tokens, tokens, whole, whole])
    heads, whole_heads = ACTIVATION_RULES["heads"], ACTIVATION_RULES["whole_row"]
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(heads, whole_heads, whole_heads, places_spec),
        out_specs=heads,
        check_vma=False,
    )(query, key, value, places)
