"""An arm as a program: surgery, partition, layout, optimizer and step, as arrays or as shapes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxrecipes.checkpoint.huggingface import Imported
from jaxrecipes.config import Config
from jaxrecipes.config.train import OptimizerSection
from jaxrecipes.errors import ConfigError, DeviceMemoryError
from jaxrecipes.experiment.perturbation import make_perturbation
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.execution import Execution
from jaxrecipes.models.stacking import Layout
from jaxrecipes.params.layout import plan_layout, to_runtime
from jaxrecipes.params.lora import keeps_dtype
from jaxrecipes.params.partition import partition
from jaxrecipes.params.paths import Tree, flatten, unflatten
from jaxrecipes.params.quantize import is_quantized_leaf
from jaxrecipes.params.rules import label
from jaxrecipes.params.surgery import Surgery
from jaxrecipes.recipes import block_expansion, freeze, full, lora, strided_freeze
from jaxrecipes.sharding.rules import (
    ACTIVATION_RULES,
    state_shardings,
    tree_shardings,
)
from jaxrecipes.train.flops import count_flops
from jaxrecipes.train.loop import BATCH_KEYS
from jaxrecipes.train.optimizer import (
    OptimizerSettings,
    learning_rate_schedule,
    make_optimizer,
)
from jaxrecipes.train.perturb.schedule import Perturbation
from jaxrecipes.train.state import TrainState, create_state
from jaxrecipes.train.step import StepFunction, make_train_step

# Of a leaf: whether it trains, whether it decays, the factor on its rate.
Label = tuple[bool, bool, float]


@dataclass(frozen=True)
class ArmProgram:
    """Everything that training an arm needs but its weights.

    Attributes:
        config: The model after surgery.
        layout: Its run-time layout.
        labels: For each canonical path (trains, decays, factor on its rate).
        trainable: Shapes of the trainable leaves in the runtime layout, float32, with shardings
            where there is a mesh.
        frozen: Shapes of the frozen leaves, in the compute dtype, likewise.
        state: Shapes of the state before the first step, likewise.
        step: The step function, not compiled.
        optimizer: The optimizer.
        execution: Devices and attention backend.
        total_steps: Length of the run.
        keeps_function: The model computes the base function before training.
        perturbation: What the step does to word embeddings.
    """

    config: ModelConfig
    layout: Layout
    labels: Mapping[str, Label]
    trainable: Tree
    frozen: Tree
    state: TrainState
    step: StepFunction
    optimizer: Any
    execution: Execution
    total_steps: int
    keeps_function: bool
    perturbation: Perturbation

    def trains(self, path: str) -> bool:
        """Whether a canonical leaf trains; one that is stored in another form does not."""
        return path in self.labels and self.labels[path][0]


def apply_recipe(config: Config, base: Imported, *, key: jax.Array) -> Surgery:
    """Runs the recipe of an arm on a base model; this is the table of recipes that train.

    Args:
        config: The arm's config.
        base: The base model.
        key: PRNG key, for random blocks and adapters.

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
    # Recipe sdft_rewrite differs from lora and full in its data only, in_context_pretraining from
    # full.
    if config.lora is not None:
        return lora.build(base.config, base.params, config.lora, key)
    return full.build(base.config, base.params)


def total_steps(config: Config, train_rows: int) -> int:
    """Returns the number of steps: as given, or the passes over the rows, rounded up."""
    if config.train.steps is not None:
        return config.train.steps
    assert config.train.epochs is not None
    return max(math.ceil(config.train.epochs * train_rows / config.train.batch_size), 1)


def optimizer_settings(section: OptimizerSection, steps: int) -> OptimizerSettings:
    """Translates a section `optimizer`; warm-up becomes a number of steps."""
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


def rate_rules(config: Config) -> list[tuple[str, float]]:
    """Returns the rules of the leaves' rates: the recipe's, then those of `train.optimizer`."""
    section = config.train.optimizer
    rules = [] if config.lora is None else lora.rate_rules(config.lora, section.learning_rate)
    return [*rules, *((rule.pattern, rule.factor) for rule in section.rate_rules)]


def build_program(config: Config, base: Imported, steps: int, execution: Execution) -> ArmProgram:
    """Turns a base model into a program that trains an arm; nothing is computed.

    Args:
        config: The arm's config.
        base: The base model; only the shapes of its leaves are read.
        steps: Length of the run.
        execution: Devices and attention backend.

    Returns:
        The program. Trained leaves are float32, frozen ones in the compute dtype.

    Raises:
        ConfigError: The recipe's options or rules do not fit the model, or nothing trains.
    """
    surgery = _abstract_surgery(config, base)
    trains = label(surgery.params, surgery.rules)
    decay_rules = [(rule.pattern, rule.decay) for rule in config.train.optimizer.decay_rules]
    decays = label(surgery.params, decay_rules)
    rates = label(surgery.params, rate_rules(config))
    labels = {path: (trains[path], decays[path], rates[path]) for path in trains}
    layout = plan_layout(surgery.config, labels, _trains, tree=surgery.params)
    compute_dtype = jnp.dtype(config.model.compute_dtype)
    if not any(trains.values()):
        raise ConfigError("no leaf trains: every rule that matches a leaf says train: false")
    trainable, frozen = jax.eval_shape(
        lambda params: _split(params, labels, layout, compute_dtype), surgery.params
    )
    settings = optimizer_settings(config.train.optimizer, steps)
    optimizer = make_optimizer(
        settings,
        layout=layout,
        decays={path: decays[path] for path in trains if trains[path]},
        rates={path: rates[path] for path in trains if trains[path]},
    )
    perturbation = make_perturbation(config.train.perturb, steps)
    rows = config.train.micro_batch_size or config.train.batch_size
    names = tuple(config.train.remat_names)
    step = make_train_step(
        surgery.config,
        optimizer,
        learning_rate_schedule(settings),
        layout=layout,
        micro_batches=config.train.batch_size // rows,
        compute_dtype=compute_dtype,
        remat=names if config.train.remat == "names" else config.train.remat,
        loss_chunk=config.train.loss_chunk,
        spike_sigma=config.train.spikes.sigma,
        execution=execution,
        perturbation=perturbation,
        dropout=config.lora is not None and config.lora.dropout > 0,
        key=jax.random.key(config.seed),
    )
    window = config.train.spikes.window
    state: Any = jax.eval_shape(
        lambda tree: create_state(
            tree, optimizer, spike_window=window, teacher=perturbation.first_teacher(tree, tree)
        ),
        trainable,
    )
    if execution.mesh is not None:
        places = state_shardings(state, flatten(trainable), execution.mesh)
        state = _placed(state, places)
        trainable = _placed(trainable, tree_shardings(trainable, execution.mesh))
        frozen = _placed(frozen, tree_shardings(frozen, execution.mesh))
    return ArmProgram(
        surgery.config,
        layout,
        labels,
        trainable,
        frozen,
        state,
        step,
        optimizer,
        execution,
        steps,
        surgery.keeps_function,
        perturbation,
    )


def _trains(value: Any) -> bool:
    return value[0]


def _abstract_surgery(config: Config, base: Imported) -> Surgery:
    """Runs the recipe on shapes."""
    done: list[Surgery] = []

    def traced(params: Tree) -> Tree:
        key = jax.random.key(config.seed)
        done.append(apply_recipe(config, replace(base, params=params), key=key))
        return done[0].params

    shapes = jax.eval_shape(traced, base.params)
    return replace(done[0], params=shapes)


def _split(
    params: Tree, labels: Mapping[str, Label], layout: Layout, compute_dtype: Any
) -> tuple[Tree, Tree]:
    """Returns the trainable leaves in float32 and the frozen ones, both in the runtime layout."""
    trainable, frozen = partition(params, lambda path: labels[path][0])

    def cast(tree: Tree, dtype: Any) -> Tree:
        leaves = {
            path: leaf if keeps_dtype(path) or is_quantized_leaf(path) else leaf.astype(dtype)
            for path, leaf in flatten(tree).items()
        }
        return to_runtime(layout, unflatten(leaves))

    return cast(trainable, jnp.float32), cast(frozen, compute_dtype)


def build_weights(
    config: Config, program: ArmProgram, base: Imported, *, with_trainable: bool
) -> tuple[Tree, Tree]:
    """Runs the recipe on the base's weights; the results are born where the program wants them.

    Args:
        config: The arm's config.
        program: From `build_program`.
        base: The base model, with arrays.
        with_trainable: Whether the trainable leaves are wanted; a run that goes on has its own.

    Returns:
        The trainable leaves, or an empty tree, and the frozen ones, as the program's shapes say.
    """

    def build(params: Tree) -> tuple[Tree, Tree]:
        key = jax.random.key(config.seed)
        surgery = apply_recipe(config, replace(base, params=params), key=key)
        compute_dtype = jnp.dtype(config.model.compute_dtype)
        trainable, frozen = _split(surgery.params, program.labels, program.layout, compute_dtype)
        return (trainable if with_trainable else {}), frozen

    places = None
    if program.execution.mesh is not None:
        wanted = (program.trainable if with_trainable else {}, program.frozen)
        places = jax.tree.map(lambda leaf: leaf.sharding, wanted)
    return jax.jit(build, out_shardings=places)(base.params)


def first_state(
    config: Config, program: ArmProgram, trainable: Tree, teacher: Tree | None = None
) -> TrainState:
    """Returns the state before the first step, where the program wants it.

    Args:
        config: The arm's config.
        program: From `build_program`.
        trainable: From `build_weights`; given away.
        teacher: A fixed teacher, where the perturbation has one; given away.
    """
    places = None
    if program.execution.mesh is not None:
        places = jax.tree.map(lambda leaf: leaf.sharding, program.state)
    window = config.train.spikes.window
    create = jax.jit(
        lambda tree, other: create_state(
            tree,
            program.optimizer,
            spike_window=window,
            teacher=program.perturbation.first_teacher(tree, other),
        ),
        out_shardings=places,
        donate_argnums=(0, 1),
    )
    return create(trainable, teacher)


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        tree,
        shardings,
    )


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


def lower_step(config: Config, program: ArmProgram) -> jax.stages.Lowered:
    """Traces an arm's step for its devices: with `compile()`, what a run executes.

    Args:
        config: The arm's config.
        program: From `build_program`.

    Returns:
        The step as a program that takes over (donates) the state.
    """
    batch, mesh, results = abstract_batch(config), program.execution.mesh, None
    if mesh is not None:
        tokens = NamedSharding(mesh, ACTIVATION_RULES["tokens"])
        batch = _placed(batch, {key: tokens for key in batch})
        state_places = jax.tree.map(lambda leaf: leaf.sharding, program.state)
        results = (state_places, NamedSharding(mesh, PartitionSpec()))
    step = jax.jit(program.step, donate_argnums=0, out_shardings=results)
    return step.lower(program.state, program.frozen, batch)


def compile_step(config: Config, program: ArmProgram) -> CompiledStep:
    """Compiles an arm's step ahead of its first batch.

    Args:
        config: The arm's config.
        program: From `build_program`.

    Returns:
        The compiled step.

    Raises:
        DeviceMemoryError: The step does not fit into the device's memory.
    """
    began = time.monotonic()
    batch = abstract_batch(config)
    flops = count_flops(program.step, program.state, program.frozen, batch)
    try:
        compiled = lower_step(config, program).compile()
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
