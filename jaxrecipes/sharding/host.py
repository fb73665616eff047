"""From arrays that are spread over devices, and over hosts, to the memory of one host."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def to_host(array: Any) -> np.ndarray:
    """Returns the whole array on this host.

    Args:
        array: A jax array. Where parts of it are on devices of other hosts every host has to call
            this, and each gets the whole.

    Returns:
        Its values.
    """
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        if array.is_fully_replicated:
            return np.asarray(array.addressable_data(0))
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def on_host() -> AbstractContextManager[Any]:
    """Computes inside the block in the host's memory, which holds a model that no one chip does.

    Where JAX is kept from the CPU (JAX_PLATFORMS names others alone), nothing changes.
    """
    if jax.default_backend() == "cpu":
        return nullcontext()
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return nullcontext()
