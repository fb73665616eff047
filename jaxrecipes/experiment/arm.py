"""One arm of an experiment, trained from wherever it was left to its end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxrecipes.checkpoint.huggingface import Imported, import_checkpoint, read_model_config
from jaxrecipes.checkpoint.training_state import TrainingStates
from jaxrecipes.config import Config
from jaxrecipes.data.pipeline import batches
from jaxrecipes.durable import hash_values
from jaxrecipes.experiment.anchor import build_anchor, locate_earlier
from jaxrecipes.experiment.data_sets import TrainingSets
from jaxrecipes.experiment.devices import Devices, model_shardings
from jaxrecipes.experiment.header import print_arm
from jaxrecipes.experiment.measure import Measure
from jaxrecipes.experiment.program import (
    build_program,
    build_weights,
    compile_step,
    first_state,
    total_steps,
)
from jaxrecipes.experiment.summary import summarise
from jaxrecipes.experiment.teacher import locate_teacher, read_teacher
from jaxrecipes.hosts import Hosts
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import abstract_params
from jaxrecipes.params.layout import to_canonical
from jaxrecipes.params.partition import combine
from jaxrecipes.params.paths import Tree, flatten, unflatten
from jaxrecipes.sharding.batches import local_rows, place_batch
from jaxrecipes.sharding.host import to_host
from jaxrecipes.train.loop import LoopSettings, raise_stopped, run_steps
from jaxrecipes.train.metrics import MetricsFile, open_trackers, read_records
from jaxrecipes.train.penalty import with_anchor
from jaxrecipes.train.progress import training_progress
from jaxrecipes.train.signals import stop_requests
from jaxrecipes.train.state import TrainState


@dataclass(frozen=True)
class TrainedArm:
    """An arm at its end.

    Attributes:
        config: The trained model.
        trained: The leaves that trained, float32 on the host, in the canonical tree; the others are
            the base's.
        summary: JSON values for the report.
    """

    config: ModelConfig
    trained: Tree
    summary: dict[str, Any]


def train_arm(
    name: str,
    config: Config,
    base_folder: Path,
    data: TrainingSets,
    folder: Path,
    identity: Mapping[str, Any],
    measure: Measure | None,
    devices: Devices,
    hosts: Hosts,
    console: Console,
    *,
    describe: bool = True,
) -> TrainedArm:
    """Trains one arm to its end, from wherever it was left.

    Args:
        name: The arm.
        config: Its config.
        base_folder: The base model.
        data: What it learns from.
        folder: The arm's folder.
        identity: JSON values that determine its course; a saved state of another identity is an
            error.
        measure: Evaluates a model on the experiment's sets; None: it is not evaluated while it
            trains.
        devices: Where to train.
        hosts: Who trains; the first writes the logs.
        console: For the header and the progress line.
        describe: Say before the first step what trains and what a step takes.

    Returns:
        The trained arm.

    Raises:
        DivergedError: Too many steps were skipped.
        PreemptedError: SIGTERM; the state was saved.
        InterruptedRunError: Ctrl-C; the state was saved.
    """
    began = time.monotonic()
    steps = total_steps(config, data.train_rows)
    model = read_model_config(base_folder)
    mesh = devices.execution.mesh
    shapes = Imported(model, abstract_params(model), base_folder, {})
    teacher_folder = locate_teacher(config, model)
    locate_earlier(config)
    program = build_program(config, shapes, steps, devices.execution)
    compiled = compile_step(config, program)
    summary = summarise(name, config, program, compiled, devices)
    if describe:
        print_arm(summary, console)

    states = TrainingStates(folder / "checkpoints", keep=config.train.checkpoint.keep, hosts=hosts)
    # Before the weights are read: the state of a resumed run exists once, not beside a first one.
    restored = states.restore(program.state, expected=identity)
    base = import_checkpoint(base_folder, shardings=model_shardings(model, mesh))
    # A penalty is around the leaves before the first step, also in a run that goes on.
    wanted = restored is None or program.penalty is not None
    trainable, frozen = build_weights(config, program, base, with_trainable=wanted)
    del base
    anchor = build_anchor(
        name,
        config,
        program,
        trainable,
        frozen,
        data.penalty.get(name, ()),
        folder,
        identity,
        hosts,
        console,
    )
    start = 0
    if restored is None:
        teacher = None
        if teacher_folder is not None:
            teacher = read_teacher(teacher_folder, config, program, frozen, mesh)
        state = first_state(config, program, trainable, teacher)
        del teacher
    else:
        start, state = restored.step, restored.state
    del trainable
    if restored is not None:
        console.print(f"{name}: goes on after step {start} of {steps}", highlight=False)
    elif any((folder / "checkpoints").glob("*.damaged")):
        console.print(
            f"{name}: every saved state in {folder / 'checkpoints'} is damaged; starts over",
            style="yellow",
            highlight=False,
        )
    batch_tokens = config.train.batch_size * config.data.length
    # Every host computes the same records; one writes them.
    metrics = MetricsFile(folder / "metrics.jsonl", last_step=start, writes=hosts.is_first)
    evaluations = MetricsFile(
        folder / "evaluations.jsonl",
        last_step=-1 if restored is None else start,
        writes=hosts.is_first and measure is not None,
    )
    chosen = config.train.trackers.model_dump() if hosts.is_first else {}
    trackers = open_trackers(
        [key for key, is_chosen in chosen.items() if is_chosen],
        folder / "tensorboard",
        f"{name}-{hash_values(identity)[:8]}",
    )

    def evaluate(step: int, state: TrainState) -> None:
        assert measure is not None  # or no step is evaluated
        record = measure(
            program.config,
            combine(state.trainable, frozen),
            program.layout,
            step=step,
            tokens=step * batch_tokens,
            with_items=step in (0, steps),
        )
        evaluations.write(record)
        evaluations.flush()

    def save(step: int, state: TrainState) -> None:
        metrics.flush()
        states.save(step, state, identity)

    def record_step(step: int, values: dict[str, Any]) -> None:
        metrics.write({"step": step, "tokens": step * batch_tokens, **values})
        show(step, values)
        scalars = {key: float(value) for key, value in values.items() if key != "rows"}
        for tracker in trackers:
            tracker(step, scalars)

    if restored is None and measure is not None and program.keeps_function:
        evaluations.write(measure.base_record)
        evaluations.flush()
    elif restored is None and measure is not None:
        evaluate(0, state)
    points = 0 if measure is None else config.evaluate.points
    settings = LoopSettings(
        total_steps=steps,
        save_every=config.train.checkpoint.every_steps,
        evaluate_at=frozenset(
            max(round(steps * point / points), 1) for point in range(1, points + 1)
        ),
        skip_limit=config.train.spikes.limit,
    )
    shape = (config.train.batch_size, config.data.length)
    stream = batches(
        data.train[name],
        batch_size=config.train.batch_size,
        seed=config.seed,
        rows=local_rows(mesh, shape),
        start_step=start,
    )
    placed = ((step, place_batch(mesh, shape, batch)) for step, batch in stream)
    with (
        states,
        closing(metrics),
        closing(evaluations),
        stop_requests() as stop,
        training_progress(console, title=name, start=start, total=steps) as show,
    ):
        state = run_steps(
            compiled.step,
            state,
            with_anchor(frozen, anchor),
            placed,
            settings,
            record=record_step,
            evaluate=evaluate,
            save=save,
            should_stop=lambda step: hosts.should_stop(name, step, stop.signal_number),
        )
        states.wait()
        # A signal that came after the loop looked for one, during the last step or its save.
        asked = hosts.asked_to_stop(name) or stop.signal_number
        if asked is not None:
            raise_stopped(asked, f"all {steps} steps are done and saved")
    leaves = flatten(to_canonical(program.layout, state.trainable))
    trained = unflatten({path: to_host(leaf) for path, leaf in leaves.items()})
    records = read_records(folder / "metrics.jsonl")
    summary["seconds"] = sum(record["seconds"] for record in records)
    summary["wall_seconds"] = time.monotonic() - began
    return TrainedArm(program.config, trained, summary)
