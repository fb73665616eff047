"""TPU slices by name ("v5e:4x4"), and their devices ahead of time on a machine without a TPU."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxrecipes.errors import ConfigError
from jaxrecipes.plan.chips import CHIPS, Chip

_NAME = re.compile(r"([a-z0-9]+):(\d+(?:x\d+)*)(?:\*(\d+))?")


@dataclass(frozen=True)
class Topology:
    """Slices of TPU chips.

    Attributes:
        chip: What they are made of.
        shape: Chips along the axes of one slice's torus.
        slices: Slices of this shape, connected by the data centre's network.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    def __str__(self) -> str:
        """Formats the name that `parse_topology` reads."""
        text = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        return f"{text}*{self.slices}" if self.slices > 1 else text

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """JAX devices of all slices: two a chip on tpu7x, else one."""
        return self.chips * self.chip.devices_per_chip

    @property
    def hosts(self) -> int:
        """Host machines of all slices."""
        chips = math.prod(self.shape)
        if chips <= self.chip.single_host_chips:
            return self.slices
        return self.slices * (chips // self.chip.chips_per_host)

    def is_ring(self, axis: int) -> bool:
        """Tells whether an axis of the torus is closed: its last chip is wired to the first."""
        small = len(self.shape) == 3 and any(length % self.chip.wraps_at for length in self.shape)
        return not small and self.shape[axis] % self.chip.wraps_at == 0


def parse_topology(text: str) -> Topology:
    """Reads a topology's name.

    Args:
        text: "v5e:4x4", "v5p:4x4x8", or with several slices "v5e:16x16*2".

    Returns:
        The topology.

    Raises:
        ConfigError: No such chip, or no such slice of it; lists what there is.
    """
    tpus = [name for name, chip in CHIPS.items() if chip.torus_axes]
    found = _NAME.fullmatch(text.strip().lower())
    if found is None:
        raise ConfigError(
            f"topology {text!r} is not understood; write chip:shape, such as v5e:4x4 or v5p:4x4x8 "
            f"(chips: {', '.join(tpus)}), with *2 for two slices{_hint(text)}"
        )
    name, shape_text, slices = found.groups()
    chip = CHIPS.get(name)
    if chip is None or not chip.torus_axes:
        raise ConfigError(f"topology {text!r}: there is no TPU {name!r}; use {', '.join(tpus)}")
    shape = tuple(int(length) for length in shape_text.split("x"))
    if slices is not None and int(slices) < 1:
        raise ConfigError(f"topology {text!r}: the number of slices must be at least 1")
    if shape not in slice_shapes(chip):
        near = ", ".join(f"{chip.name}:{'x'.join(map(str, one))}" for one in _nearest(chip, shape))
        raise ConfigError(f"topology {text!r}: {chip.name} has no such slice; near it are {near}")
    return Topology(chip, shape, int(slices or 1))


def slice_shapes(chip: Chip) -> list[tuple[int, ...]]:
    """Lists the slices of a chip that exist, smallest first.

    On a 3D torus, beside the small ones: whole 4x4x4 cubes, axes in increasing order. Axes go up
    to 24, the longest of the documented slices (12x12x24, 16x16x24).
    """
    shapes = set(chip.slice_shapes)
    if chip.torus_axes == 3:
        lengths = range(4, 25, 4)
        shapes |= {
            (a, b, c)
            for a in lengths
            for b in lengths
            for c in lengths
            if a <= b <= c and a * b * c <= chip.largest_slice
        }
    return sorted(shapes, key=lambda shape: (math.prod(shape), shape))


def _nearest(chip: Chip, shape: Sequence[int], count: int = 4) -> list[tuple[int, ...]]:
    size = max(math.prod(shape), 1)
    same = sorted(length for length in shape if length > 1)

    def distance(one: tuple[int, ...]) -> tuple[bool, float]:
        return sorted(n for n in one if n > 1) != same, abs(math.log(math.prod(one) / size))

    return sorted(slice_shapes(chip), key=distance)[:count]


def _hint(text: str) -> str:
    """Turns Google Cloud's accelerator type ("v5litepod-16", "v4-32") into a topology."""
    found = re.fullmatch(r"(v5litepod|v[456][ep]?|tpu7x)-(\d+)", text.strip().lower())
    if found is None:
        return ""
    name = "v5e" if found[1] == "v5litepod" else found[1]
    if name not in CHIPS:
        return ""
    # The types of v4, v5p and tpu7x count cores, two a chip.
    chips = int(found[2]) // (2 if CHIPS[name].torus_axes == 3 else 1)
    shapes = [one for one in slice_shapes(CHIPS[name]) if math.prod(one) == chips]
    names = " or ".join(f"{name}:{'x'.join(map(str, one))}" for one in shapes)
    return f"; {text.strip()} is {names}" if names else ""


def topology_devices(topology: Topology) -> list[Any]:
    """Gets the devices of slices that need not exist, to compile for.

    Must run before anything else loads libtpu in this process.

    Args:
        topology: What to compile for.

    Returns:
        The `jax.Device`s in libtpu's order: along the first axis of the torus first, the two
        devices of a tpu7x chip beside each other, slice after slice.

    Raises:
        ConfigError: libtpu is not installed, or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"planning for {topology} needs the TPU compiler (libtpu), which is not installed: "
            "pip install 'jaxrecipes[tpu]' (Linux on x86-64 only)"
        )
    if not _has_tpu():
        # Without them libtpu asks the cloud's metadata server what machine this is, and waits.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        # Several processes of a machine without a TPU may compile at the same time.
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    import jax
    from jax.experimental import topologies

    shape = "x".join(map(str, topology.shape))
    options: dict[str, Any] = {}
    if topology.chip.compiler_config:
        options["chip_config_name"] = topology.chip.compiler_config
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    if topology.chips // topology.slices <= topology.chip.single_host_chips:
        options["chips_per_host_bounds"] = (*topology.shape, 1, 1)[:3]
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{topology.chip.name}:{shape}", **options
        )
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise ConfigError(f"libtpu does not know the topology {topology}: {error}") from error
    devices = list(described.devices)
    if len(devices) != topology.devices:
        raise ConfigError(
            f"libtpu describes {topology} with {len(devices)} devices, expected "
            f"{topology.devices}: this version of libtpu is not supported"
        )
    return devices


def _has_tpu() -> bool:
    return bool(list(Path("/dev").glob("accel[0-9]*"))) or Path("/dev/vfio/0").exists()
