"""An arm before its first step, described: what trains, what it costs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from jaxrecipes.config import Config
from jaxrecipes.experiment.devices import Devices
from jaxrecipes.experiment.penalty import describe_penalty
from jaxrecipes.experiment.perturbation import describe_perturbation
from jaxrecipes.experiment.program import ArmProgram, CompiledStep
from jaxrecipes.params.layout import canonical_paths
from jaxrecipes.params.lora import keeps_dtype
from jaxrecipes.params.partition import combine
from jaxrecipes.params.paths import flatten
from jaxrecipes.params.quantize import parameter_count
from jaxrecipes.recipes import lora
from jaxrecipes.sharding.mesh import describe_mesh
from jaxrecipes.sharding.rules import whole_leaves
from jaxrecipes.train.optimizer import count_bytes


def summarise(
    name: str, config: Config, program: ArmProgram, compiled: CompiledStep, devices: Devices
) -> dict[str, Any]:
    """Describes an arm before its first step: what trains, what it costs.

    Returns:
        JSON values; see the run folder's `summary.json`.
    """
    trainable = flatten(program.trainable)
    # Scales of adapters and ids of trained tokens are no parameters.
    frozen = {path: leaf for path, leaf in flatten(program.frozen).items() if not keeps_dtype(path)}
    adapters = [] if config.lora is None else lora.explain_adapters(program.config, config.lora)
    rows = config.train.batch_size
    mesh = devices.execution.mesh
    whole = []
    if mesh is not None:
        whole = whole_leaves(combine(program.frozen, program.trainable), mesh)
    groups: dict[str, dict[str, Any]] = {}
    for leaves, kind in ((trainable, "trained"), (frozen, "frozen")):
        for path, leaf in leaves.items():
            group = path.split("/", 3)[3] if path.startswith("segments/") else path
            entry = groups.setdefault(group, {"trained": 0, "frozen": 0, "rates": []})
            entry[kind] += parameter_count(path, leaf)
            if kind == "trained":
                factor = program.labels[canonical_paths(program.layout, path)[0]][2]
                rate = config.train.optimizer.learning_rate * factor
                entry["rates"] = sorted({*entry["rates"], rate})
    return {
        "arm": name,
        "recipe": config.recipe,
        "learning_rate": config.train.optimizer.learning_rate,
        "optimizer": config.train.optimizer.name,
        "layers": program.config.num_layers,
        "new_blocks": list(program.config.new_blocks),
        "trained_parameters": sum(leaf.size for leaf in trainable.values()),
        "frozen_parameters": sum(parameter_count(path, leaf) for path, leaf in frozen.items()),
        "trained_bytes": count_bytes(program.trainable),
        "frozen_bytes": count_bytes(program.frozen),
        "what_trains": [{"leaves": group, **entry} for group, entry in groups.items()],
        "adapters": [asdict(row) for row in adapters],
        "perturbation": describe_perturbation(config, program.total_steps),
        "penalty": describe_penalty(config),
        "steps": program.total_steps,
        "tokens": program.total_steps * rows * config.data.length,
        "compile_seconds": compiled.seconds,
        "peak_memory_bytes": compiled.peak_bytes,
        "temp_bytes": compiled.temp_bytes,
        "flops_per_step": compiled.flops,
        "compute_dtype": config.model.compute_dtype,
        "device": devices.kind,
        "devices": devices.count,
        "mesh": describe_mesh(devices.execution.mesh),
        "whole_leaves": whole,
        "attention": devices.execution.attention,
        "attention_reason": devices.attention_reason,
    }
