"""The mesh: how the devices of a run are arranged, and what each of its axes is for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxrecipes.errors import ConfigError

# Outermost first: neighbours on the last axes are neighbours in the machine, because tensor
# parallelism talks most often and replicas talk least.
AXES = ("data", "fsdp", "context", "tensor")
# Rows of a batch are spread over these; each holds a copy of the program's state or a part of it.
BATCH_AXES = ("data", "fsdp")
# Parameters are cut along these and gathered for the layer that is computed.
GATHERED_AXES = ("fsdp", "context")


@dataclass(frozen=True)
class MeshShape:
    """How many devices each axis has.

    Attributes:
        data: Replicas of the whole state; between slices, over the data-centre network.
        fsdp: Parts that parameters and optimizer state are cut into; each part takes rows, too.
        context: Parts that the tokens of a row are cut into.
        tensor: Parts that heads and feed-forward units are cut into.
        slices: TPU slices that the data axis spans; divides `data`.
    """

    data: int = 1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1
    slices: int = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes in the order of `AXES`."""
        return self.data, self.fsdp, self.context, self.tensor

    @property
    def devices(self) -> int:
        """Number of devices."""
        return math.prod(self.sizes)


def resolve_mesh_shape(shape: MeshShape, devices: int) -> MeshShape:
    """Fills in the one axis that is given as -1.

    Args:
        shape: Sizes; at most one of them is -1, which takes the devices that the others leave.
        devices: Number of devices there are.

    Returns:
        The shape with `devices` devices.

    Raises:
        ConfigError: The axes do not use every device exactly once, or slices do not divide data.
    """
    open_axes = [name for name in AXES if getattr(shape, name) == -1]
    if len(open_axes) > 1:
        raise ConfigError(
            f"mesh: {' and '.join(open_axes)} are both -1; only one axis can take what is left"
        )
    if open_axes:
        fixed = math.prod(size for size in shape.sizes if size != -1)
        if devices % fixed:
            raise ConfigError(
                f"mesh: {_text(shape)} asks for multiples of {fixed} devices; there are {devices}"
            )
        shape = replace(shape, **{open_axes[0]: devices // fixed})
    if shape.devices != devices:
        raise ConfigError(
            f"mesh: {_text(shape)} is {shape.devices} devices; there are {devices}. Set one axis "
            "to -1 to take what the others leave"
        )
    if shape.data % shape.slices:
        raise ConfigError(
            f"mesh.slices: {shape.slices} slices do not divide data: {shape.data}; slices are "
            "replicas, only the data axis crosses between them"
        )
    return shape


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges devices.

    Args:
        shape: Sizes of the axes, resolved.
        devices: Devices; None for all of the run, over all hosts.

    Returns:
        A mesh with the axes `AXES`, all of them `AxisType.Auto`: the compiler propagates shardings
        between the constraints that the program states.

    Raises:
        ConfigError: The devices cannot be arranged so.
    """
    devices = jax.devices() if devices is None else devices
    try:
        if shape.slices > 1:
            within = (shape.data // shape.slices, *shape.sizes[1:])
            across = (shape.slices, *[1] * (len(AXES) - 1))
            array = mesh_utils.create_hybrid_device_mesh(
                within,
                across,
                devices,
                # Hosts stand for slices where devices do not know theirs, as simulated ones.
                process_is_granule=getattr(devices[0], "slice_index", None) is None,
            )
        else:
            array = mesh_utils.create_device_mesh(
                shape.sizes, devices, allow_split_physical_axes=True
            )
    except (ValueError, NotImplementedError, AssertionError) as error:
        raise ConfigError(f"mesh: {_text(shape)} does not fit the devices: {error}") from error
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def describe_mesh(mesh: Mesh | None) -> str:
    """Returns the axes that have more than one device, for people."""
    if mesh is None:
        return "one device"
    wide = [f"{name} {size}" for name, size in mesh.shape.items() if size > 1]
    return " x ".join(wide) if wide else "one device"


def _text(shape: MeshShape) -> str:
    return ", ".join(f"{name}: {size}" for name, size in zip(AXES, shape.sizes, strict=True))
