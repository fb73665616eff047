"""How a model is computed, as opposed to what it computes."""

from __future__ import annotations

from dataclasses import dataclass

from jax.sharding import Mesh


@dataclass(frozen=True)
class Execution:
    """Devices and kernels of a forward pass; the result is the same for every value.

    Attributes:
        mesh: Devices, see `sharding.mesh.make_mesh`; None computes on one.
        attention: Backend, a row of `models.attention_backends`.
    """

    mesh: Mesh | None = None
    attention: str = "reference"


# The default of everything that takes an execution.
ONE_DEVICE = Execution()
