"""One arm of an experiment, trained from wherever it was left to its end."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxrecipes.checkpoint.huggingface import import_checkpoint
from jaxrecipes.checkpoint.training_state import TrainingStates
from jaxrecipes.config import Config, config_hash
from jaxrecipes.data.pipeline import batches
from jaxrecipes.experiment.data_sets import DataSets
from jaxrecipes.experiment.measure import Measure
from jaxrecipes.experiment.program import (
    build_program,
    compile_step,
    print_arm,
    summarise,
    total_steps,
)
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.params.layout import to_canonical
from jaxrecipes.params.partition import combine
from jaxrecipes.params.paths import Tree
from jaxrecipes.train.loop import LoopSettings, run_steps
from jaxrecipes.train.metrics import MetricsFile, open_trackers, read_records
from jaxrecipes.train.progress import training_progress
from jaxrecipes.train.signals import stop_requests
from jaxrecipes.train.state import TrainState, create_state


@dataclass(frozen=True)
class TrainedArm:
    """An arm at its end.

    Attributes:
        config: The trained model.
        trained: The leaves that trained, float32, in the canonical tree; the others are the base's.
        summary: JSON values for the report.
    """

    config: ModelConfig
    trained: Tree
    summary: dict[str, Any]


def train_arm(
    name: str,
    config: Config,
    base_folder: Path,
    data: DataSets,
    folder: Path,
    measure: Measure,
    console: Console,
) -> TrainedArm:
    """Trains one arm to its end, from wherever it was left.

    Args:
        name: The arm.
        config: Its config.
        base_folder: The base model.
        data: The experiment's sets.
        folder: The arm's folder.
        measure: Evaluates a model on the experiment's sets.
        console: For the header and the progress line.

    Returns:
        The trained arm.

    Raises:
        DivergedError: Too many steps were skipped.
        PreemptedError: SIGTERM; the state was saved.
        InterruptedRunError: Ctrl-C; the state was saved.
    """
    began = time.monotonic()
    steps = total_steps(config, data.train_rows)
    base = import_checkpoint(base_folder)
    program = build_program(config, base, steps)
    del base
    compiled = compile_step(config, program)
    summary = summarise(name, config, program, compiled)
    print_arm(summary, console)

    identity = {"config": config_hash(config), "data": data.fingerprint}
    states = TrainingStates(folder / "checkpoints", keep=config.train.checkpoint.keep)
    state = create_state(
        program.trainable, program.optimizer, spike_window=config.train.spikes.window
    )
    frozen = program.frozen
    # From here on the state owns the only copy of what trains.
    program = replace(program, trainable={}, frozen={})
    restored = states.restore(state, expected=identity)
    start = 0
    if restored is not None:
        start, state = restored.step, restored.state
        console.print(f"{name}: goes on after step {start} of {steps}", highlight=False)
    elif any((folder / "checkpoints").glob("*.damaged")):
        console.print(
            f"{name}: every saved state in {folder / 'checkpoints'} is damaged; starts over",
            style="yellow",
            highlight=False,
        )
    batch_tokens = config.train.batch_size * config.data.length
    metrics = MetricsFile(folder / "metrics.jsonl", last_step=start)
    evaluations = MetricsFile(
        folder / "evaluations.jsonl", last_step=-1 if restored is None else start
    )
    trackers = open_trackers(
        [key for key, wanted in config.train.trackers.model_dump().items() if wanted],
        folder / "tensorboard",
        f"{name}-{identity['config'][:8]}",
    )

    def evaluate(step: int, state: TrainState) -> None:
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

    if restored is None and program.keeps_function:
        evaluations.write(measure.base_record)
        evaluations.flush()
    elif restored is None:
        evaluate(0, state)
    points = config.evaluate.points
    settings = LoopSettings(
        total_steps=steps,
        save_every=config.train.checkpoint.every_steps,
        evaluate_at=frozenset(
            max(round(steps * point / points), 1) for point in range(1, points + 1)
        ),
        skip_limit=config.train.spikes.limit,
    )
    stream = batches(
        data.train, batch_size=config.train.batch_size, seed=config.seed, start_step=start
    )
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
            frozen,
            stream,
            settings,
            record=record_step,
            evaluate=evaluate,
            save=save,
            stop=stop,
        )
    trained = to_canonical(program.layout, state.trainable)
    summary["seconds"] = sum(record["seconds"] for record in read_records(folder / "metrics.jsonl"))
    summary["wall_seconds"] = time.monotonic() - began
    return TrainedArm(program.config, trained, summary)
