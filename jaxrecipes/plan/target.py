"""What a plan is made for: a TPU topology that need not be there, or the devices at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrecipes.errors import ConfigError
from jaxrecipes.plan.chips import Chip, chip_of
from jaxrecipes.plan.hlo import Account
from jaxrecipes.plan.roofline import axes_bandwidth, switch_bandwidths
from jaxrecipes.plan.topology import Topology, parse_topology, topology_devices


@dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
        devices: JAX devices; of a topology, descriptions of devices.
        topology: The TPU slices; None for local devices.
        chip: Peak figures; None for a kind that is not listed.
    """

    devices: tuple[Any, ...]
    topology: Topology | None
    chip: Chip | None

    @property
    def name(self) -> str:
        """Names the target: "v5e:4x4", or the kind and number of local devices."""
        if self.topology is not None:
            return str(self.topology)
        return f"{len(self.devices)} x {self.devices[0].device_kind}"

    @property
    def memory_bytes(self) -> int | None:
        """Bytes of one device that a program can use; None where that is not known."""
        return self.chip.memory_bytes if self.chip else None

    def bandwidths(self, mesh: Mesh | None, account: Account) -> dict[tuple[str, ...], float]:
        """Gives each set of mesh axes that collectives run over its bytes per second a device.

        Args:
            mesh: The mesh; None for one device.
            account: Of the program.

        Returns:
            Bandwidths by axes, empty for a chip whose links are not known.
        """
        if mesh is None or self.chip is None or self.chip.link_bandwidth is None:
            return {}
        if self.topology is None:
            return switch_bandwidths(account, self.chip)
        devices = np.asarray(mesh.devices)
        return {
            one.axes: axes_bandwidth(self.topology, devices, mesh.axis_names, one.axes)
            for one in account.collectives
        }


def find_target(topology: str | None) -> Target:
    """Finds what to compile for.

    Args:
        topology: Name of TPU slices ("v5e:4x4"), or None for the devices at hand.

    Returns:
        The target.

    Raises:
        ConfigError: There is no such topology, or libtpu, its compiler, is not installed.
    """
    if topology is not None:
        parsed = parse_topology(topology)
        # Traced on the host's processor: a TPU that is there is left to whoever uses it.
        jax.config.update("jax_platforms", "cpu")
        return Target(tuple(topology_devices(parsed)), parsed, parsed.chip)
    devices = tuple(jax.devices())
    return Target(devices, None, chip_of(devices[0].device_kind))


def check_slices(target: Target, slices: int) -> None:
    """Checks that the mesh spans the slices of the topology.

    Args:
        target: What is compiled for.
        slices: The config's `mesh.slices`.

    Raises:
        ConfigError: It spans another number.
    """
    if target.topology is None or target.topology.slices == slices:
        return
    count = target.topology.slices
    raise ConfigError(
        f"mesh.slices: {slices}, but the topology {target.topology} has {count} slices; give "
        f"mesh.slices={count} and a multiple of it for mesh.data"
    )
