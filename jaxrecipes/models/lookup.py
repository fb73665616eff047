"""Looking tokens up in an embedding table whose rows are spread over the devices."""

from __future__ import annotations

import jax
from jax.sharding import Mesh, PartitionSpec

from jaxrecipes.sharding.mesh import GATHERED_AXES
from jaxrecipes.sharding.rules import ACTIVATION_RULES, VOCABULARY_AXES, constrain, vocabulary_axes


def lookup(table: jax.Array, token_ids: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Returns the table's rows of the tokens.

    A table cut by rows would have to be gathered on every device. Instead the devices that share it
    exchange rows for columns: each then holds some columns of all rows, looks every token of the
    group up in them, and the results go back to where their tokens are. No device ever holds more
    than its share of the table, nor of its gradient; what travels is a share of the table and a
    share of the result.

    Args:
        table: [vocab_size, hidden_size].
        token_ids: int32 [batch, length].
        mesh: The mesh; None looks up on one device.

    Returns:
        [batch, length, hidden_size], dtype of the table.
    """
    if mesh is None:
        return table[token_ids]
    share = 1
    for axis in VOCABULARY_AXES:
        share *= mesh.shape[axis]
    if share == 1 or not vocabulary_axes(table.shape[0], mesh) or table.shape[1] % share:
        return constrain(table[token_ids], "hidden_states", mesh)

    def local(rows: jax.Array, ids: jax.Array) -> jax.Array:
        # [vocab_size / share, hidden_size] -> [vocab_size, hidden_size / share]
        columns = jax.lax.all_to_all(rows, VOCABULARY_AXES, 1, 0, tiled=True)
        batch, length = ids.shape
        everyone = jax.lax.all_gather(ids.reshape(-1), GATHERED_AXES, tiled=True)
        found = columns[everyone]  # [tokens of the group, hidden_size / share]
        found = jax.lax.all_gather(found, "tensor", axis=1, tiled=True)
        found = jax.lax.all_to_all(found, GATHERED_AXES, 0, 1, tiled=True)
        return found.reshape(batch, length, -1)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(VOCABULARY_AXES, None), ACTIVATION_RULES["tokens"]),
        out_specs=ACTIVATION_RULES["hidden_states"],
        check_vma=False,
    )(table, token_ids)
