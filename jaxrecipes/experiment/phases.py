"""The phase scheduler: pretraining phases one after the other, each a stage that arms share."""

from __future__ import annotations

import json
import math
import shutil
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxrecipes import __version__
from jaxrecipes.checkpoint.training_state import TrainingStates
from jaxrecipes.config import AdaptiveConfig
from jaxrecipes.config.phases import PretrainPhase
from jaxrecipes.data.mixture import TextMixture
from jaxrecipes.data.text_batches import TokenizedTexts
from jaxrecipes.durable import hash_values, write_json
from jaxrecipes.errors import CheckpointError, ConfigError
from jaxrecipes.experiment.adaptive_data import AdaptiveData
from jaxrecipes.experiment.phase_optimizer import phase_optimizer
from jaxrecipes.experiment.task_model import TaskModel
from jaxrecipes.params.layout import to_canonical, to_runtime
from jaxrecipes.params.paths import Tree
from jaxrecipes.stages import run_stage, why_stale
from jaxrecipes.train.loop import raise_stopped
from jaxrecipes.train.metrics import MetricsFile, read_records
from jaxrecipes.train.phase import PhaseProgram, mean_loss, run_phase
from jaxrecipes.train.progress import training_progress
from jaxrecipes.train.signals import stop_requests
from jaxrecipes.train.state import TrainState, create_state

RECORD, METRICS, _STATES = "record.json", "metrics.jsonl", "state"
_MEASURED_ROWS = 512


@dataclass(frozen=True)
class Pretrained:
    """A model after its pretraining phases.

    Attributes:
        params: Canonical tree; with `masked_head` where a phase trained one.
        key: Hash of all that shaped it: the model, and every phase with what it read.
        folders: The finished phases' folders, in order.
        records: What each of them left in `record.json`.
    """

    params: Tree
    key: str
    folders: tuple[Path, ...]
    records: tuple[dict[str, Any], ...]

    @property
    def tokens(self) -> int:
        """Tokens that were read, padding left out."""
        return sum(record["tokens"] for record in self.records)


def pretrain(
    config: AdaptiveConfig,
    phases: tuple[PretrainPhase, ...],
    model: TaskModel,
    data: AdaptiveData,
    folder: Path,
    console: Console,
) -> Pretrained:
    """Runs an arm's pretraining phases, those excepted that are finished.

    Args:
        config: The experiment.
        phases: The phases, in order.
        model: What to start from.
        data: What can be read.
        folder: Where finished phases are, of all arms.
        console: For the progress line.

    Returns:
        The model after the last phase; the model itself where there is none.

    Raises:
        ConfigError: A phase does not fit the model or the phase before.
        DataError: A phase would read texts of dev or test rows.
        DivergedError: Too many steps were skipped.
        PreemptedError: SIGTERM; the state was saved.
        InterruptedRunError: Ctrl-C; the state was saved.
    """
    done = Pretrained(model.params, model.fingerprint, (), ())
    moments = None
    for phase in phases:
        run = _prepare(config, phase, model, data, done, moments)
        place = folder / f"{phase.name}-{hash_values(run.inputs)[:12]}"
        if not why_stale(place, run.inputs):
            console.print(f"{phase.name}: done before", highlight=False)
        run_stage(place, run.inputs, partial(_build, run, place, console))
        shutil.rmtree(_work(place), ignore_errors=True)
        state = run.finished_state(place)
        done = Pretrained(
            to_canonical(model.layout, state.trainable),
            hash_values(run.inputs),
            (*done.folders, place),
            (*done.records, json.loads((place / RECORD).read_text(encoding="utf-8"))),
        )
        moments = state.optimizer_state
    return done


@dataclass(frozen=True)
class _PhaseRun:
    """One phase, ready to run."""

    config: AdaptiveConfig
    phase: PretrainPhase
    model: TaskModel
    program: PhaseProgram
    trainable: Tree
    moments: Any
    mixture: TextMixture
    dev: TokenizedTexts
    length: int
    inputs: dict[str, Any]
    facts: dict[str, Any]

    def finished_state(self, folder: Path) -> TrainState:
        """Reads the last state of a finished phase."""
        with TrainingStates(folder / _STATES) as states:
            found = states.restore(self.abstract())
        if found is None:
            raise CheckpointError(f"{folder}: its state cannot be read; remove that folder")
        return found.state

    def abstract(self) -> TrainState:
        """Returns the shapes of the state."""
        window = self.program.spike_window
        return jax.eval_shape(
            lambda tree: create_state(tree, self.program.optimizer, spike_window=window),
            self.trainable,
        )

    def losses(self, trainable: Tree) -> dict[str, float]:
        """Measures the objective on what the phase reads and on dev rows."""
        rng = np.random.default_rng(self.config.seed)
        chosen = np.sort(rng.permutation(len(self.mixture.texts))[:_MEASURED_ROWS])
        sets = {"read": self.mixture.texts.chosen(chosen.tolist()), "dev": self.dev}
        return {
            name: mean_loss(
                self.program.objective,
                trainable,
                texts,
                max_tokens=self.length,
                pad_token_id=self.model.pad_token_id,
                seed=self.config.seed,
            )
            for name, texts in sets.items()
        }


def _prepare(
    config: AdaptiveConfig,
    phase: PretrainPhase,
    model: TaskModel,
    data: AdaptiveData,
    before: Pretrained,
    moments: Any,
) -> _PhaseRun:
    if phase.objective not in ("auto", model.objective_name):
        raise ConfigError(
            f"phase {phase.name}: objective is {phase.objective}; {config.model.checkpoint} is "
            f"trained with {model.objective_name}. Write auto"
        )
    model.refuse_unread(phase.model_fields_set, f"phase {phase.name}")
    texts = data.phase_texts(phase)
    length = phase.max_tokens or config.task.max_tokens
    mixture = texts.mixture(model, phase, length, config.seed)
    steps = phase.steps or max(math.ceil((phase.epochs or 0) * mixture.per_epoch), 1)
    params, origin = model.with_pretraining_head(before.params, config.seed)
    optimizer, schedule = phase_optimizer(phase.optimizer, model.layout, params, steps)
    masking = phase.masking
    program = PhaseProgram(
        objective=model.pretraining_objective(
            phase.dropout,
            rate=masking.rate,
            mask_share=masking.mask_share,
            random_share=masking.random_share,
            whole=masking.whole_words,
        ),
        optimizer=optimizer,
        schedule=schedule,
        total_steps=steps,
        dropout=model.encoder is not None and phase.dropout > 0,
        micro_batches=phase.batch_size // (phase.micro_batch_size or phase.batch_size),
        spike_sigma=config.spikes.sigma,
        spike_window=config.spikes.window,
        skip_limit=config.spikes.limit,
        seed=config.seed,
    )
    trainable = to_runtime(model.layout, params)
    if phase.reset_optimizer:
        moments = None
    elif jax.tree.structure(moments) != jax.tree.structure(
        jax.eval_shape(optimizer.init, trainable)
    ):
        raise ConfigError(
            f"phase {phase.name}: reset_optimizer is false, and the optimizer of the phase before "
            "is of another kind; give both the same optimizer.name and clip_norm, or reset it"
        )
    inputs = {
        "code": __version__,
        "before": before.key,
        "texts": texts.fingerprint(),
        "dev": [data.fingerprint, length],
        # The name is in the folder's name; who reads what is in the texts.
        "phase": phase.model_dump(exclude={"name", "read", "epochs", "steps", "replay"}),
        "steps": steps,
        "max_tokens": length,
        "spikes": config.spikes.model_dump(),
        "compute_dtype": config.model.compute_dtype,
        "seed": config.seed,
    }
    sets = [
        {"from": name, "texts": len(found), "weight": weight}
        for name, (found, weight) in zip(texts.names, texts.learned, strict=True)
    ]
    sets += [
        {"from": "replay", "texts": len(found), "weight": weight} for found, weight in texts.general
    ]
    facts = {
        "name": phase.name,
        "objective": model.objective_name,
        "read": sets,
        "replay": texts.share,
        "rows": len(mixture.texts),
        "steps": steps,
        "batch_size": phase.batch_size,
        "learning_rate": phase.optimizer.learning_rate,
        "tokens": mixture.tokens(steps),
        "head": origin,
    }
    dev = model.tokenize_plain(data.dev, length)
    return _PhaseRun(
        config, phase, model, program, trainable, moments, mixture, dev, length, inputs, facts
    )


def _work(place: Path) -> Path:
    """Returns where an unfinished phase keeps its states."""
    return place.with_name(f"{place.name}.work")


def _build(run: _PhaseRun, place: Path, console: Console, target: Path) -> None:
    name, total, work = run.phase.name, run.program.total_steps, _work(place)
    if run.facts["head"]:
        console.print(f"{name}: {run.facts['head']}", highlight=False)
    work.mkdir(parents=True, exist_ok=True)
    first = work / "losses.json"
    if not first.exists():
        write_json(first, run.losses(run.trainable))
    before = json.loads(first.read_text(encoding="utf-8"))
    identity = {"inputs": hash_values(run.inputs)}
    began = time.monotonic()
    keep = run.config.checkpoint.keep
    with TrainingStates(work / _STATES, keep=keep) as states, stop_requests() as stop:
        start = max(states.steps(), default=0)
        with training_progress(console, title=name, start=start, total=total) as show:
            metrics: MetricsFile | None = None

            def begin(start: int) -> None:
                nonlocal metrics
                metrics = MetricsFile(work / METRICS, last_step=start)
                if start:
                    console.print(f"{name}: goes on after step {start} of {total}", highlight=False)

            def record(step: int, values: dict[str, Any]) -> None:
                assert metrics is not None
                metrics.write({"step": step, **values})
                show(step, values)

            state = run_phase(
                run.program,
                run.trainable,
                run.mixture,
                states,
                save_every=run.config.checkpoint.every_steps,
                identity=identity,
                optimizer_state=run.moments,
                record=record,
                should_stop=lambda step: stop.signal_number,
                begin=begin,
                flush=lambda: metrics.flush() if metrics is not None else None,
            )
            states.wait()
            assert metrics is not None
            with closing(metrics):
                if stop.signal_number is not None:
                    raise_stopped(stop.signal_number, f"all {total} steps of {name} are saved")
    after = run.losses(state.trainable)
    shutil.copytree(work / _STATES / str(total), target / _STATES / str(total))
    shutil.copyfile(work / METRICS, target / METRICS)
    steps = read_records(target / METRICS)
    write_json(
        target / RECORD,
        {
            **run.facts,
            "loss": {where: [before[where], after[where]] for where in before},
            "skipped": sum(not one["accepted"] for one in steps),
            "seconds": round(sum(one["seconds"] for one in steps), 1),
            "wall_seconds": round(time.monotonic() - began, 1),
        },
    )
    shown = ", ".join(f"{where} {before[where]:.3f} -> {after[where]:.3f}" for where in before)
    console.print(f"{name}: {run.facts['objective']} loss, nats: {shown}", highlight=False)
