"""An arm as a program: surgery, partition, layout, optimizer and step, as arrays or as shapes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxrecipes.checkpoint.huggingface import Imported
from jaxrecipes.config import Config
from jaxrecipes.errors import ConfigError, DeviceMemoryError
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.stacking import Layout
from jaxrecipes.params.layout import plan_layout, to_runtime
from jaxrecipes.params.partition import partition
from jaxrecipes.params.paths import Tree, flatten
from jaxrecipes.params.rules import label
from jaxrecipes.params.surgery import Surgery
from jaxrecipes.recipes import block_expansion, freeze, full, strided_freeze
from jaxrecipes.train.flops import count_flops
from jaxrecipes.train.loop import BATCH_KEYS
from jaxrecipes.train.optimizer import (
    OptimizerSettings,
    count_bytes,
    learning_rate_schedule,
    make_optimizer,
)
from jaxrecipes.train.state import create_state
from jaxrecipes.train.step import StepFunction, make_train_step


@dataclass(frozen=True)
class ArmProgram:
    """Everything that training an arm needs, as shapes or as arrays.

    Attributes:
        config: The model after surgery.
        layout: Its run-time layout.
        labels: For each canonical path (trains, decays).
        trainable: Trainable leaves in the runtime layout, float32.
        frozen: Frozen leaves in the runtime layout, in the compute dtype.
        step: The step function, not compiled.
        optimizer: The optimizer.
        total_steps: Length of the run.
        keeps_function: The model computes the base function before training.
    """

    config: ModelConfig
    layout: Layout
    labels: Mapping[str, tuple[bool, bool]]
    trainable: Tree
    frozen: Tree
    step: StepFunction
    optimizer: Any
    total_steps: int
    keeps_function: bool


def apply_recipe(config: Config, base: Imported, *, key: jax.Array) -> Surgery:
    """Runs the recipe of an arm on a base model; this is the table of recipes that train.

    Args:
        config: The arm's config.
        base: The base model.
        key: PRNG key, for random blocks.

    Returns:
        The model with its rules.
    """
    if config.recipe == "block_expansion":
        assert config.block_expansion is not None
        return block_expansion.build(base.config, base.params, config.block_expansion, key)
    if config.recipe == "freeze":
        assert config.freeze is not None
        return freeze.build(base.config, base.params, config.freeze)
    if config.recipe == "strided_freeze":
        assert config.strided_freeze is not None
        return strided_freeze.build(base.config, base.params, config.strided_freeze)
    return full.build(base.config, base.params)


def total_steps(config: Config, train_rows: int) -> int:
    """Returns the number of steps: as given, or the passes over the rows, rounded up."""
    if config.train.steps is not None:
        return config.train.steps
    assert config.train.epochs is not None
    return max(math.ceil(config.train.epochs * train_rows / config.train.batch_size), 1)


def optimizer_settings(config: Config, steps: int) -> OptimizerSettings:
    """Translates the section `train.optimizer`; warm-up becomes a number of steps."""
    section = config.train.optimizer
    return OptimizerSettings(
        total_steps=steps,
        name=section.name,
        learning_rate=section.learning_rate,
        schedule=section.schedule,
        warmup_steps=min(math.ceil(section.warmup * steps), steps - 1),
        final_ratio=section.final_ratio,
        weight_decay=section.weight_decay,
        beta1=section.beta1,
        beta2=section.beta2,
        epsilon=section.epsilon,
        clip_norm=section.clip_norm,
    )


def build_program(config: Config, base: Imported, steps: int) -> ArmProgram:
    """Turns a base model into a program that trains an arm.

    Args:
        config: The arm's config.
        base: The base model; leaves may be `jax.ShapeDtypeStruct`s, and are then in the result.
        steps: Length of the run.

    Returns:
        The program. Trained leaves are float32, frozen ones in the compute dtype.

    Raises:
        ConfigError: The recipe's options or rules do not fit the model, or nothing trains.
    """
    surgery = _apply_recipe(config, base)
    trains = label(surgery.params, surgery.rules)
    decay_rules = [(rule.pattern, rule.decay) for rule in config.train.optimizer.decay_rules]
    decays = label(surgery.params, decay_rules)
    labels = {path: (trains[path], decays[path]) for path in trains}
    layout = plan_layout(surgery.config, labels, _trains)
    compute_dtype = jnp.dtype(config.model.compute_dtype)
    trainable, frozen = partition(surgery.params, lambda path: trains[path])
    if not flatten(trainable):
        raise ConfigError("no leaf trains: every rule that matches a leaf says train: false")
    trainable = to_runtime(layout, _cast(trainable, jnp.dtype(jnp.float32)))
    frozen = to_runtime(layout, _cast(frozen, compute_dtype))
    settings = optimizer_settings(config, steps)
    optimizer = make_optimizer(
        settings, layout=layout, decays={path: decays[path] for path in trains if trains[path]}
    )
    rows = config.train.micro_batch_size or config.train.batch_size
    step = make_train_step(
        surgery.config,
        optimizer,
        learning_rate_schedule(settings),
        layout=layout,
        micro_batches=config.train.batch_size // rows,
        compute_dtype=compute_dtype,
        remat=config.train.remat,
        loss_chunk=config.train.loss_chunk,
        spike_sigma=config.train.spikes.sigma,
    )
    return ArmProgram(
        surgery.config,
        layout,
        labels,
        trainable,
        frozen,
        step,
        optimizer,
        steps,
        surgery.keeps_function,
    )


def _trains(value: Any) -> bool:
    return value[0]


def _apply_recipe(config: Config, base: Imported) -> Surgery:
    """Runs the recipe on arrays, or, where the base is shapes, on shapes."""
    key = jax.random.key(config.seed)
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(base.params)):
        return apply_recipe(config, base, key=key)
    done: list[Surgery] = []

    def traced(params: Tree) -> Tree:
        done.append(apply_recipe(config, replace(base, params=params), key=key))
        return done[0].params

    shapes = jax.eval_shape(traced, base.params)
    return replace(done[0], params=shapes)


def _cast(tree: Tree, dtype: Any) -> Tree:
    def cast(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, dtype)
        return jnp.asarray(leaf, dtype)

    return jax.tree.map(cast, tree)


def abstract_batch(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch."""
    shape = (config.train.batch_size, config.data.length)
    return {
        key: jax.ShapeDtypeStruct(shape, jnp.bool_ if key == "loss_mask" else jnp.int32)
        for key in BATCH_KEYS
    }


@dataclass(frozen=True)
class CompiledStep:
    """A compiled step and what the compiler says about it.

    Attributes:
        step: Takes over the state.
        seconds: Time to compile.
        peak_bytes: Arguments, results and temporaries of the step, per device.
        temp_bytes: Of these, temporaries.
        flops: Matrix-product operations a step executes.
    """

    step: StepFunction
    seconds: float
    peak_bytes: int
    temp_bytes: int
    flops: int


def compile_step(config: Config, program: ArmProgram) -> CompiledStep:
    """Compiles an arm's step ahead of its first batch.

    Args:
        config: The arm's config.
        program: From `build_program`; arrays or shapes.

    Returns:
        The compiled step.

    Raises:
        DeviceMemoryError: The step does not fit into the device's memory.
    """
    began = time.monotonic()
    shapes = jax.eval_shape(
        lambda trainable: create_state(
            trainable, program.optimizer, spike_window=config.train.spikes.window
        ),
        program.trainable,
    )
    batch = abstract_batch(config)
    flops = count_flops(program.step, shapes, program.frozen, batch)
    jitted = jax.jit(program.step, donate_argnums=0)
    try:
        compiled = jitted.lower(shapes, program.frozen, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DeviceMemoryError(
            "the training step does not fit into the device's memory; in this order, try a smaller "
            "train.micro_batch_size, train.remat: full, a smaller train.loss_chunk, or bfloat16. "
            f"The compiler says: {str(error).splitlines()[0]}"
        ) from error
    memory: Any = compiled.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    return CompiledStep(
        compiled,
        time.monotonic() - began,
        peak,
        memory.temp_size_in_bytes,
        flops,
    )


def summarise(
    name: str, config: Config, program: ArmProgram, compiled: CompiledStep
) -> dict[str, Any]:
    """Describes an arm before its first step: what trains, what it costs.

    Returns:
        JSON values; see the run folder's `summary.json`.
    """
    trainable, frozen = flatten(program.trainable), flatten(program.frozen)
    rows = config.train.batch_size
    groups: dict[str, dict[str, int]] = {}
    for leaves, kind in ((trainable, "trained"), (frozen, "frozen")):
        for path, leaf in leaves.items():
            group = path.split("/", 3)[3] if path.startswith("segments/") else path
            entry = groups.setdefault(group, {"trained": 0, "frozen": 0})
            entry[kind] += leaf.size
    return {
        "arm": name,
        "recipe": config.recipe,
        "learning_rate": config.train.optimizer.learning_rate,
        "optimizer": config.train.optimizer.name,
        "layers": program.config.num_layers,
        "new_blocks": list(program.config.new_blocks),
        "trained_parameters": sum(leaf.size for leaf in trainable.values()),
        "frozen_parameters": sum(leaf.size for leaf in frozen.values()),
        "trained_bytes": count_bytes(program.trainable),
        "frozen_bytes": count_bytes(program.frozen),
        "what_trains": [{"leaves": group, **entry} for group, entry in groups.items()],
        "steps": program.total_steps,
        "tokens": program.total_steps * rows * config.data.length,
        "compile_seconds": compiled.seconds,
        "peak_memory_bytes": compiled.peak_bytes,
        "temp_bytes": compiled.temp_bytes,
        "flops_per_step": compiled.flops,
        "compute_dtype": config.model.compute_dtype,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }


def print_arm(summary: Mapping[str, Any], console: Console) -> None:
    """Prints what an arm trains and what a step takes, before the first one."""
    trained, frozen = summary["trained_parameters"], summary["frozen_parameters"]
    table = Table(title=f"arm {summary['arm']}", title_justify="left", show_edge=False)
    table.add_column("leaves (of all layers)")
    table.add_column("trained", justify="right")
    table.add_column("frozen", justify="right")
    for row in summary["what_trains"]:
        table.add_row(
            row["leaves"],
            f"{row['trained']:,}" if row["trained"] else "",
            f"{row['frozen']:,}" if row["frozen"] else "",
        )
    table.add_section()
    table.add_row("all", f"{trained:,}", f"{frozen:,}")
    console.print(table)
    mib = 2**20
    console.print(
        f"{trained / (trained + frozen):.1%} of {trained + frozen:,} parameters train, "
        f"{summary['layers']} layers, {summary['steps']} steps, {summary['tokens']:,} tokens; "
        f"a step takes {summary['flops_per_step'] / 1e9:,.0f} GFLOP and "
        f"{summary['peak_memory_bytes'] / mib:,.0f} MiB on a device "
        f"({summary['temp_bytes'] / mib:,.0f} temporary); compiled in "
        f"{summary['compile_seconds']:.1f} s for {summary['devices']} x {summary['device']}, "
        f"attention: reference",
        highlight=False,
    )
