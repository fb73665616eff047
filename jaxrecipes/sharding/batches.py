"""Batches on a mesh: each host reads the rows that its devices need, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxrecipes.sharding.rules import ACTIVATION_RULES


def local_rows(mesh: Mesh | None, shape: tuple[int, int]) -> list[int]:
    """Lists the rows of a batch that the devices of this host take part in.

    Args:
        mesh: The mesh; None for one device, which needs all rows.
        shape: (rows, length) of the whole batch.

    Returns:
        Row numbers, ascending. Hosts that share rows (their devices hold other tokens or other
        heads of them) list the same ones.
    """
    if mesh is None:
        return list(range(shape[0]))
    places = NamedSharding(mesh, ACTIVATION_RULES["tokens"]).addressable_devices_indices_map(shape)
    rows: set[int] = set()
    for index in places.values():
        assert index is not None
        rows.update(range(*index[0].indices(shape[0])))
    return sorted(rows)


def place_batch(
    mesh: Mesh | None, shape: tuple[int, int], batch: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Turns this host's rows into arrays of the whole batch.

    Args:
        mesh: The mesh; None changes nothing.
        shape: (rows, length) of the whole batch.
        batch: Arrays [local rows, length] of the rows that `local_rows` lists; arrays of one axis
            are passed on as they are.

    Returns:
        The same names; two-dimensional arrays are jax arrays [rows, length] over all hosts.
    """
    if mesh is None:
        return dict(batch)
    sharding = NamedSharding(mesh, ACTIVATION_RULES["tokens"])
    at = {row: number for number, row in enumerate(local_rows(mesh, shape))}

    def place(array: np.ndarray) -> Any:
        if array.ndim == 1:
            return array

        def part(index: Any) -> np.ndarray:
            chosen = [at[row] for row in range(*index[0].indices(shape[0]))]
            return array[chosen][:, index[1]]

        return jax.make_array_from_callback(shape, sharding, part)

    return {name: place(array) for name, array in batch.items()}
