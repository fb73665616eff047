"""How fast a compiled step can be at best on a chip: the largest of three times.

compute      executed operations / peak operations per second
memory       bytes that instructions move from and to device memory / its bandwidth
network      bytes that each device sends along each mesh axis / bandwidth of the links it has there

With perfect overlap a step takes as long as the longest of them (a lower bound of the time, upper
bound of the speed); with none, as long as their sum. A real step lies between the two when its
instructions reach their peaks, and above the sum when they do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrecipes.plan.chips import Chip
from jaxrecipes.plan.hlo import Account
from jaxrecipes.plan.topology import Topology


@dataclass(frozen=True)
class Bound:
    """The bound of one step. Times in seconds.

    Attributes:
        compute: Time of the operations at the chip's bfloat16 peak.
        memory: Time of the memory traffic.
        network: Time of the collectives, by the mesh axes they run over.
        tokens: Tokens of the step, over all devices.
        model_flops: Model operations of one device, see `plan.flops`.
        peak_flops: Operations per second of one device.
    """

    compute: float
    memory: float
    network: Mapping[tuple[str, ...], float]
    tokens: int
    model_flops: float
    peak_flops: float

    @property
    def overlapped(self) -> float:
        """Seconds of a step when compute, memory and network fully overlap.

        Collectives over different axes are added: they share links, and depend on each other.
        """
        return max(self.compute, self.memory, sum(self.network.values()))

    @property
    def sequential(self) -> float:
        """Seconds of a step when nothing overlaps."""
        return self.compute + self.memory + sum(self.network.values())

    @property
    def limit(self) -> str:
        """What bounds the step: "compute", "memory" or "network"."""
        times = {
            "compute": self.compute,
            "memory": self.memory,
            "network": sum(self.network.values()),
        }
        return max(times, key=lambda name: times[name])

    @property
    def tokens_per_second(self) -> float:
        """Upper bound of the speed, over all devices."""
        return self.tokens / self.overlapped

    @property
    def model_flops_utilisation(self) -> float:
        """Upper bound of MFU: model operations / (peak x time)."""
        return self.model_flops / (self.peak_flops * self.overlapped)


def bound(
    account: Account,
    chip: Chip,
    bandwidths: Mapping[tuple[str, ...], float],
    *,
    tokens: int,
    model_flops: float,
    kernel_flops: float = 0.0,
) -> Bound | None:
    """Computes the bound of a step.

    Args:
        account: Of the compiled step, with collectives attributed to mesh axes.
        chip: What it runs on.
        bandwidths: Bytes per second into one device for each set of axes that collectives run
            over: `axes_bandwidth`.
        tokens: Tokens of the step, over all devices.
        model_flops: Model operations of one device.
        kernel_flops: Executed operations of one device in kernels that the compiler does not see
            (`account.custom_calls`).

    Returns:
        The bound; None for a chip whose peaks are not known (the CPU).
    """
    if chip.device_flops is None or chip.device_memory_bandwidth is None:
        return None
    network: dict[tuple[str, ...], float] = {}
    for (_, axes), sent in account.sent_bytes().items():
        if sent:
            network[axes] = network.get(axes, 0.0) + sent / bandwidths[axes]
    return Bound(
        compute=(account.matmul_flops + kernel_flops) / chip.device_flops,
        memory=account.hbm_bytes / chip.device_memory_bandwidth,
        network=network,
        tokens=tokens,
        model_flops=model_flops,
        peak_flops=chip.device_flops,
    )


def axes_bandwidth(
    topology: Topology, mesh_devices: np.ndarray, names: Sequence[str], axes: Sequence[str]
) -> float:
    """Computes the bytes per second that a device can send to the others along some mesh axes.

    The devices that differ along these axes only form a part of the torus. Along each of its
    physical axes a chip sends over two links where the part closes a ring, else over one (a chip at
    the end of a line has no more). Chips in other slices are reached over the data centre's
    network. The two devices of one chip share its links; between them, nothing limits.

    Args:
        topology: The slices.
        mesh_devices: The mesh's device array (`mesh.devices`), with `coords` on each device.
        names: Names of its axes.
        axes: Axes that a collective runs over.

    Returns:
        Bytes per second of one device; infinite where only the devices of one chip take part.
    """
    chip = topology.chip
    first = tuple(slice(None) if name in axes else 0 for name in names)
    devices: list[Any] = list(np.atleast_1d(np.asarray(mesh_devices)[first]).reshape(-1))
    places = np.array([one.coords[: len(topology.shape)] for one in devices])
    links = 0
    for axis, length in enumerate(topology.shape):
        extent = len(np.unique(places[:, axis]))
        if extent > 1:
            closed = extent == length and topology.is_ring(axis)
            links += 2 if closed and length > 2 else 1
    cores = {getattr(one, "core_on_chip", 0) for one in devices}
    # Where a group has one device of each chip, the group of the others uses the same links.
    sharing = 1 if len(cores) > 1 else chip.devices_per_chip
    inside = links * (chip.link_bandwidth or 0.0) / sharing if links else float("inf")
    if len({getattr(one, "slice_index", 0) or 0 for one in devices}) == 1:
        return inside
    # Every device of a slice's part can carry its share to the other slices.
    outside = (chip.network_bandwidth or 0.0) / sharing * len(np.unique(places, axis=0))
    return min(inside, outside)


def switch_bandwidths(account: Account, chip: Chip) -> dict[tuple[str, ...], float]:
    """Gives every set of axes the bandwidth of the switch between the GPUs of one host.

    Args:
        account: Of the compiled step.
        chip: The GPU.

    Returns:
        Bytes per second of one device, by axes of the account's collectives.
    """
    return {one.axes: chip.link_bandwidth or float("inf") for one in account.collectives}
