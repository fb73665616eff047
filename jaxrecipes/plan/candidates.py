"""Trying changes of a config, one compilation after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from jaxrecipes.config import Config
from jaxrecipes.errors import ConfigError
from jaxrecipes.experiment.program import ArmProgram
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.plan.changes import (
    REMAT_ORDER,
    Change,
    apply,
    in_bytes,
    least_bytes,
    mesh_change,
    mesh_of,
    possible_meshes,
    possible_rows,
    remat_change,
    smaller_steps,
)
from jaxrecipes.plan.flops import step_flops
from jaxrecipes.plan.step import PlannedStep, lower_planned, plan_step, shape_program
from jaxrecipes.plan.target import Target


@dataclass(frozen=True)
class Tried:
    """A change, and what came of it.

    Attributes:
        change: The change; empty for the config as it is.
        step: The compiled step; None where it was not compiled.
        least_bytes: What the step needs in any case, see `changes.least_bytes`.
        reason: Why it was not compiled, else empty.
    """

    change: Change
    step: PlannedStep | None
    least_bytes: int
    reason: str = ""

    @property
    def fits(self) -> bool:
        """Whether it was compiled and fits."""
        return self.step is not None and self.step.fits


@dataclass
class Trial:
    """Tries changes of one arm on one target.

    Attributes:
        name: The arm's name.
        config: The arm's config.
        model: The base model.
        steps: Length of the run.
        target: What to compile for.
        cache: Folder of measurements; None for none.
        console: Where progress is shown.
    """

    name: str
    config: Config
    model: ModelConfig
    steps: int
    target: Target
    cache: Path | None
    console: Console

    def run(self, change: Change, label: str) -> Tried:
        """Compiles the arm with a change, unless its state alone is too large.

        Args:
            change: What to change.
            label: Said before it ("3 of 8, about 2 min left").

        Returns:
            What came of it.
        """
        try:
            config = apply(self.config, change)
            traced = lower_planned(config, self.model, self.steps, self.target)
        except ConfigError as error:
            self._say(label, change, f"not possible: {str(error).splitlines()[0]}")
            return Tried(change, None, 0, str(error))
        least = least_bytes(traced.program)
        limit = self.target.memory_bytes
        if limit is not None and least > limit:
            reason = f"state and gradients alone take {in_bytes(least)}"
            self._say(label, change, reason)
            return Tried(change, None, least, reason)
        step = plan_step(self.name, config, self.model, self.target, traced, self.cache)
        verdict = "fits" if step.fits else "does not fit"
        speed = step.tokens_per_second
        bound = f", at most {speed:,.0f} tokens/s" if speed else ""
        peak = in_bytes(step.measurement.peak_bytes)
        self._say(label, change, f"{peak}, {verdict}{bound}")
        return Tried(change, step, least)

    def _say(self, label: str, change: Change, result: str) -> None:
        name = str(change) or "as it is"
        self.console.print(f"  {label}: {name}: {result}", highlight=False, markup=False)


def ranked(tried: Sequence[Tried]) -> list[Tried]:
    """Orders what was tried: what fits, fastest bound first, then the rest, smallest first."""

    def order(one: Tried) -> tuple[int, float, float, int]:
        if one.step is None:
            return 2, 0.0, 0.0, one.least_bytes
        step = one.step
        peak = step.measurement.peak_bytes
        if not step.fits:
            return 1, 0.0, 0.0, peak
        # Of two with the same bound, the one that has less to overlap.
        sequential = step.bound.sequential if step.bound else 0.0
        return 0, -round(step.tokens_per_second or 0.0, 3), sequential, peak

    return sorted(tried, key=order)


def find_changes(trial: Trial, limit: int) -> list[Tried]:
    """Tries what may make an arm fit.

    Pairs of changes are tried only while nothing fits.

    Args:
        trial: The arm that does not fit.
        limit: Largest number of changes to try.

    Returns:
        What was tried, ranked.
    """
    single, pairs = smaller_steps(trial.config, trial.model, trial.target)
    tried: list[Tried] = []
    eta = _Eta(min(len(single) + len(pairs), limit))
    for number, change in enumerate([*single, *pairs][:limit]):
        if number >= len(single) and any(one.fits for one in tried):
            break
        tried.append(eta.next(lambda label, change=change: trial.run(change, label)))
    return ranked(tried)


def search(trial: Trial, limit: int) -> list[Tried]:
    """Finds the fastest mesh, micro-batch and `train.remat` that fit.

    Candidates are ordered by the compute bound of the hand count; skipped are those whose state
    cannot fit, those that need more than one that did not fit, and those whose compute bound is
    below a speed that was found.

    Args:
        trial: The arm.
        limit: Largest number of compilations.

    Returns:
        What was tried, ranked.
    """
    candidates = _candidates(trial)
    tried: list[Tried] = []
    too_large: list[_Candidate] = []
    eta = _Eta(min(len(candidates), limit))
    for candidate in candidates:
        if len(tried) >= limit:
            break
        speeds = [one.step.tokens_per_second or 0.0 for one in tried if one.step and one.fits]
        fastest = max(speeds, default=0.0)
        if any(candidate.needs_more_than(other) for other in too_large):
            continue
        if candidate.speed is not None and fastest >= candidate.speed:
            continue
        one = eta.next(lambda label, change=candidate.change: trial.run(change, label))
        tried.append(one)
        if not one.fits:
            too_large.append(candidate)
    return ranked(tried)


@dataclass(frozen=True)
class _Candidate:
    change: Change
    mesh: tuple[int, ...]
    rows: int
    remat: str
    speed: float | None

    def needs_more_than(self, other: _Candidate) -> bool:
        order = REMAT_ORDER.index
        return (
            self.mesh == other.mesh
            and self.rows >= other.rows
            and order(self.remat) <= order(other.remat)
        )


def _candidates(trial: Trial) -> list[_Candidate]:
    config, target = trial.config, trial.target
    limit = target.memory_bytes
    now = mesh_of(config, target)
    rows_now = config.train.micro_batch_size or config.train.batch_size
    found = []
    for mesh in possible_meshes(config, trial.model, target):
        shape_change = mesh_change(config, mesh)
        rows = possible_rows(config, mesh)
        if not rows:
            continue
        whole = apply(config, shape_change + _rows_change(config, rows[-1]))
        try:
            program, _ = shape_program(whole, trial.model, trial.steps, target)
        except ConfigError:
            continue
        if limit is not None and least_bytes(program) > limit:
            continue
        for remat in REMAT_ORDER:
            if remat == "offload" and target.devices[0].platform == "cpu":
                continue
            speed = _compute_speed(config, program, target, remat)
            for count in rows:
                change = shape_change
                if remat != config.train.remat:
                    change += remat_change(config, remat)
                if count != rows_now:
                    change += _rows_change(config, count)
                found.append(_Candidate(change, mesh.sizes, count, remat, speed))
    # Of equal compute, the mesh as it is and then the least communication are tried first; a
    # larger micro-batch gathers weights less often.
    return sorted(
        found,
        key=lambda one: (
            -(one.speed or 0.0),
            one.mesh != now.sizes,
            one.mesh[2] * one.mesh[3],
            -one.rows,
        ),
    )


def _rows_change(config: Config, rows: int) -> Change:
    whole = rows == config.train.batch_size and config.train.micro_batch_size is None
    return Change(() if whole else (("train.micro_batch_size", rows),))


def _compute_speed(config: Config, program: ArmProgram, target: Target, remat: str) -> float | None:
    """Returns the tokens a second, over all devices, at the peak of the matrix units."""
    if target.chip is None or target.chip.device_flops is None:
        return None
    tokens = config.train.batch_size * config.data.length
    flops = step_flops(
        program.config,
        tokens=tokens,
        row_length=config.data.length,
        trains=program.trains,
        recompute=remat in ("full", "offload", "groups"),
    )
    return tokens * target.chip.device_flops * len(target.devices) / flops.executed


class _Eta:
    """Numbers what is tried, and says how long the rest may take."""

    def __init__(self, count: int) -> None:
        self.count, self.done, self.began = count, 0, time.monotonic()

    def next(self, run: Callable[[str], Tried]) -> Tried:
        label = f"{self.done + 1} of at most {self.count}"
        if self.done:
            mean = (time.monotonic() - self.began) / self.done
            label += f", at most {mean * (self.count - self.done) / 60:.0f} min left"
        result = run(label)
        self.done += 1
        return result
