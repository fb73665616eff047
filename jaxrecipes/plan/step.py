"""The real training step of an arm, compiled for a target and not run: what it takes at best."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrecipes.checkpoint.huggingface import Imported
from jaxrecipes.config import Config
from jaxrecipes.experiment.devices import Devices, choose_devices
from jaxrecipes.experiment.program import (
    ArmProgram,
    CompiledStep,
    build_program,
    lower_step,
)
from jaxrecipes.experiment.summary import summarise
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import abstract_params
from jaxrecipes.params.layout import to_canonical
from jaxrecipes.params.lora import adapter_ranks
from jaxrecipes.plan.cache import cached, content_key
from jaxrecipes.plan.flops import StepFlops, step_flops
from jaxrecipes.plan.kernels import kernel_flops
from jaxrecipes.plan.measurement import Measurement, measure, to_json
from jaxrecipes.plan.roofline import Bound, bound
from jaxrecipes.plan.target import Target, check_slices


@dataclass(frozen=True)
class PlannedStep:
    """The step of one arm on a target. Sizes and operations are of one device.

    Attributes:
        name: The arm's name.
        summary: As the run folder's `summary.json`: what trains, steps, tokens, devices.
        measurement: What the compiler says.
        limit_bytes: Memory of a device that the compiler allows; None where it is not known.
        flops: The hand count, by part.
        kernel_flops: Operations inside attention kernels, which come on top of the compiler's.
        bound: How fast the step can be at best; None for a chip whose peaks are not known.
        lower_seconds: Time to trace the step.
    """

    name: str
    summary: dict[str, Any]
    measurement: Measurement
    limit_bytes: int | None
    flops: StepFlops
    kernel_flops: float
    bound: Bound | None
    lower_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the compiler accepted the step, and it is not larger than a local device."""
        return self.measurement.fits

    @property
    def executed_flops(self) -> float:
        """Operations of matrix products that the step executes, those of kernels included."""
        return self.measurement.account.matmul_flops + self.kernel_flops

    @property
    def tokens_per_second(self) -> float | None:
        """Upper bound of the speed over all devices; None where no bound is known."""
        return self.bound.tokens_per_second if self.bound else None

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON values; times in seconds, sizes in bytes."""
        result = {
            "arm": self.name,
            "fits": self.fits,
            "limit_bytes": self.limit_bytes,
            "measurement": to_json(self.measurement),
            "flops": asdict(self.flops)
            | {
                "model": self.flops.model,
                "kernels": self.kernel_flops,
                "executed": self.executed_flops,
            },
            "bound": None,
            "lower_seconds": self.lower_seconds,
            "summary": self.summary,
        }
        if self.bound is not None:
            network = {"+".join(axes): seconds for axes, seconds in self.bound.network.items()}
            result["bound"] = {
                "compute": self.bound.compute,
                "memory": self.bound.memory,
                "network": network,
                "overlapped": self.bound.overlapped,
                "sequential": self.bound.sequential,
                "limit": self.bound.limit,
                "tokens_per_second": self.bound.tokens_per_second,
                "model_flops_utilisation": self.bound.model_flops_utilisation,
            }
        return result


def shape_base(model: ModelConfig) -> Imported:
    """Returns a base model that has shapes and no weights.

    Args:
        model: What it computes.

    Returns:
        A base for `build_program`; leaves are `jax.ShapeDtypeStruct`, float32.
    """
    return Imported(model, abstract_params(model, jnp.float32), Path(), {})


def shape_program(
    config: Config, model: ModelConfig, steps: int, target: Target
) -> tuple[ArmProgram, Devices]:
    """Builds an arm's program for a target, from shapes.

    Args:
        config: The arm's config.
        model: The base model.
        steps: Length of the run.
        target: What to build it for.

    Returns:
        The program, and the devices with their mesh and attention backend.

    Raises:
        ConfigError: The mesh does not fit the target, the model or the batch.
    """
    check_slices(target, config.mesh.slices)
    devices = choose_devices(config, model, target.devices)
    return build_program(config, shape_base(model), steps, devices.execution), devices


@dataclass(frozen=True)
class LoweredStep:
    """The step of an arm for a target, traced and not compiled.

    Attributes:
        program: The arm.
        devices: Mesh and attention backend.
        lowered: The step.
        mesh: Sizes of the mesh axes; None for one device.
        key: Identifies the compilation, see `plan.cache`.
        seconds: Time to trace it.
    """

    program: ArmProgram
    devices: Devices
    lowered: jax.stages.Lowered
    mesh: dict[str, int] | None
    key: str
    seconds: float


def lower_planned(config: Config, model: ModelConfig, steps: int, target: Target) -> LoweredStep:
    """Traces an arm's step for a target, from shapes.

    Args:
        config: The arm's config.
        model: The base model.
        steps: Length of the run.
        target: What to trace it for.

    Returns:
        The step.

    Raises:
        ConfigError: The mesh does not fit the target, the model or the batch.
    """
    program, devices = shape_program(config, model, steps, target)
    began = time.monotonic()
    lowered = lower_step(config, program)
    seconds = time.monotonic() - began
    mesh = devices.execution.mesh
    axes = {str(name): size for name, size in mesh.shape.items()} if mesh is not None else None
    key = content_key(lowered.as_text(), target.name, axes)
    return LoweredStep(program, devices, lowered, axes, key, seconds)


def plan_step(
    name: str,
    config: Config,
    model: ModelConfig,
    target: Target,
    traced: LoweredStep,
    cache: Path | None,
) -> PlannedStep:
    """Compiles an arm's step for a target, or reads what an earlier compilation gave.

    Args:
        name: The arm's name.
        config: The arm's config.
        model: The base model.
        target: What to compile for.
        traced: From `lower_planned` with these.
        cache: Folder of measurements; None for none.

    Returns:
        The step, also where it does not fit.
    """
    program, devices, axes = traced.program, traced.devices, traced.mesh
    measurement = cached(cache, traced.key, lambda: measure(traced.lowered, axes))
    limit = target.memory_bytes
    if target.topology is None and limit is not None and measurement.assigned_bytes > limit:
        # The compilers of GPUs refuse nothing: such a program fails when it is run.
        message = f"{measurement.assigned_bytes} bytes of {limit}"
        measurement = replace(measurement, out_of_memory=measurement.out_of_memory or message)
    sizes = axes or {}
    count = len(target.devices)
    rows = config.train.micro_batch_size or config.train.batch_size
    length = config.data.length
    tokens = config.train.batch_size * length
    tensor = sizes.get("tensor", 1)
    flops = step_flops(
        program.config,
        tokens=tokens,
        row_length=length,
        trains=program.trains,
        ranks=adapter_ranks(to_canonical(program.layout, program.trainable)),
        recompute=config.train.remat in ("full", "offload", "groups"),
    )
    flops = replace(flops, **{part: value // count for part, value in asdict(flops).items()})
    in_kernels = kernel_flops(
        measurement.account,
        program.config,
        tokens=rows * length * tensor // count,
        row_length=length,
        tensor=tensor,
    )
    limits = None
    if target.chip is not None:
        limits = bound(
            measurement.account,
            target.chip,
            target.bandwidths(devices.execution.mesh, measurement.account),
            tokens=tokens,
            model_flops=flops.model,
            kernel_flops=in_kernels,
        )
    compiled = CompiledStep(
        program.step,
        measurement.compile_seconds,
        measurement.peak_bytes,
        measurement.temporary_bytes,
        int(measurement.account.matmul_flops + in_kernels) * count,
    )
    summary = summarise(name, config, program, compiled, devices)
    return PlannedStep(
        name,
        summary,
        measurement,
        limit,
        flops,
        in_kernels,
        limits,
        traced.seconds,
    )
