"""From arrays that are spread over devices, and over hosts, to NumPy."""

from __future__ import annotations

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
