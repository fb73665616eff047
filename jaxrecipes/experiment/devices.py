"""The devices of a run: the mesh and the attention backend that a config asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from jaxrecipes.config import Config
from jaxrecipes.errors import ConfigError
from jaxrecipes.models.attention_backends import choose_backend
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import abstract_params
from jaxrecipes.models.execution import ONE_DEVICE, Execution
from jaxrecipes.params.paths import Tree
from jaxrecipes.sharding.mesh import MeshShape, make_mesh, resolve_mesh_shape
from jaxrecipes.sharding.rules import tree_shardings


@dataclass(frozen=True)
class Devices:
    """Where a run computes, and why so.

    Attributes:
        execution: Mesh and attention backend; no mesh where there is one device.
        kind: Name of the devices, such as "TPU v5e".
        count: Number of devices, over all hosts.
        attention_reason: Why the attention backend was chosen, in one line.
    """

    execution: Execution
    kind: str
    count: int
    attention_reason: str


def choose_devices(
    config: Config, model: ModelConfig, devices: Sequence[Any] | None = None
) -> Devices:
    """Arranges the devices as the config's section `mesh` says, and chooses the attention backend.

    Args:
        config: The experiment.
        model: The base model.
        devices: Devices to use; None for all of the run, over all hosts. Those of a topology
            description will do.

    Returns:
        The devices.

    Raises:
        ConfigError: The mesh does not fit the devices, the model or the batch, or the attention
            backend cannot compute the model there.
    """
    devices = jax.devices() if devices is None else list(devices)
    section = config.mesh
    shape = resolve_mesh_shape(
        MeshShape(section.data, section.fsdp, section.context, section.tensor, section.slices),
        len(devices),
    )
    _check(config, model, shape)
    first = devices[0]
    platform = "gpu" if first.platform in ("cuda", "rocm") else str(first.platform)
    capability = getattr(first, "compute_capability", None)
    backend, reason = choose_backend(
        config.model.attention,
        platform,
        model,
        config.model.compute_dtype,
        compute_capability=float(capability) if capability else None,
    )
    needs_mesh = len(devices) > 1 or devices != jax.devices()
    mesh = make_mesh(shape, devices) if needs_mesh else None
    return Devices(Execution(mesh, backend), first.device_kind, len(devices), reason)


def _check(config: Config, model: ModelConfig, shape: MeshShape) -> None:
    rows = config.train.micro_batch_size or config.train.batch_size
    key = "train.micro_batch_size" if config.train.micro_batch_size else "train.batch_size"
    takers = shape.data * shape.fsdp
    if rows % takers:
        raise ConfigError(
            f"{key}: {rows} rows cannot be shared by {takers} devices (mesh data: {shape.data}, "
            f"fsdp: {shape.fsdp}); use a multiple of {takers}, or give devices to mesh.context or "
            "mesh.tensor"
        )
    if config.data.length % shape.context:
        raise ConfigError(
            f"mesh.context: {shape.context} does not divide data.length ({config.data.length})"
        )
    for name in ("num_heads", "num_kv_heads", "intermediate_size"):
        value = getattr(model, name)
        if value % shape.tensor:
            common = math.gcd(model.num_heads, model.num_kv_heads, model.intermediate_size)
            raise ConfigError(
                f"mesh.tensor: {shape.tensor} does not divide the model's {name} ({value}); it "
                f"has to divide {common}"
            )


def model_shardings(model: ModelConfig, mesh: Mesh | None) -> Tree | None:
    """Returns where the leaves of a canonical tree are born; None for the default device."""
    return None if mesh is None else tree_shardings(abstract_params(model), mesh)


def local_execution() -> Execution:
    """Returns an execution on this host's devices alone: it needs no other host.

    Each device gets a part of the weights; attention is the reference, which decodes, too.
    """
    devices = jax.local_devices()
    if len(devices) == 1:
        return ONE_DEVICE
    return Execution(make_mesh(MeshShape(fsdp=len(devices)), devices))
