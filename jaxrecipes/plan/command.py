"""What a run would take: the real step of the real config, compiled from shapes and not run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from jaxrecipes.config import Arm, Config, expand_arms
from jaxrecipes.config.experiment import arm_names
from jaxrecipes.errors import DeviceMemoryError, UsageError
from jaxrecipes.experiment.base_model import locate_base, peek_model_config
from jaxrecipes.experiment.data_sets import prepare_data
from jaxrecipes.experiment.program import total_steps
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.plan.cache import cache_folder
from jaxrecipes.plan.candidates import Trial, Tried, find_changes, search
from jaxrecipes.plan.changes import Change, device_bytes, in_bytes, least_bytes, typed_change
from jaxrecipes.plan.show import (
    show_arms,
    show_collectives,
    show_peak,
    show_target,
    show_tried,
)
from jaxrecipes.plan.step import PlannedStep, lower_planned, plan_step
from jaxrecipes.plan.target import Target, find_target

# Compilations of a large model take minutes each.
SEARCH_LIMIT = 16
CHANGES_LIMIT = 10


def plan(
    config: Config,
    *,
    console: Console,
    topology: str | None = None,
    search_best: bool = False,
    limit: int | None = None,
    json_file: Path | None = None,
    cache: bool = True,
) -> None:
    """Compiles the step of each arm and prints what it takes and how fast it can be at best.

    The step is compiled from shapes alone: of a model only its configuration is read. Where the
    length is given in epochs the data are prepared, which a later run reuses. For an arm that does
    not fit, changes are compiled and listed, best first.

    Args:
        config: The experiment.
        console: Where to print.
        topology: TPU slices to compile for, such as "v5e:4x4"; None for the devices at hand.
        search_best: Look for the fastest mesh, micro-batch and `train.remat`, too.
        limit: Largest number of compilations of a search or a list of changes; None for 16 and 10.
        json_file: Where to write everything, as JSON.
        cache: Keep measurements in the user's cache folder, and read them there.

    Raises:
        ConfigError: There is no such topology, libtpu is not installed, or the mesh does not fit.
        DeviceMemoryError: An arm does not fit.
        UsageError: The JSON file's folder does not exist.
    """
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UsageError(f"--json {json_file}: the folder {json_file.parent} does not exist")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: expected a number of compilations, 1 or more")
    target = find_target(topology)
    model = peek_model_config(config.model.checkpoint, config.model.revision)
    rows = _train_rows(config, console) if config.train.steps is None else 0
    folder = cache_folder() if cache else None
    arms = expand_arms(config)
    planned = [_plan_arm(arm, model, rows, target, folder, console) for arm in arms]

    show_arms(planned, config, model, console)
    for step in planned:
        if topology is not None or not step.fits:
            show_peak(step, console)
        show_collectives(step, console)
    show_target(planned, target, console)

    results, hints = [step.to_json() for step in planned], []
    for arm, step, result in zip(arms, planned, results, strict=True):
        steps = total_steps(arm.config, rows)
        trial = Trial(arm.name, arm.config, model, steps, target, folder, console)
        if not step.fits:
            console.print(f"{arm.name} does not fit; trying changes:", markup=False)
            tried = _typed(config, arm, find_changes(trial, limit or CHANGES_LIMIT))
            show_tried(f"{arm.name}: changes, each compiled", tried, console)
            hints.append(_hint(step, tried))
            result["changes"] = _tried_json(tried)
        if search_best:
            console.print(f"{arm.name}: searching:", markup=False)
            tried = _typed(config, arm, search(trial, limit or SEARCH_LIMIT))
            show_tried(f"{arm.name}: fastest of what was compiled", tried, console)
            result["search"] = _tried_json(tried)
    if json_file is not None:
        text = json.dumps({"target": target.name, "arms": results}, indent=1)
        json_file.write_text(text + "\n", encoding="utf-8")
    if hints:
        raise DeviceMemoryError("\n".join(hints))


def _train_rows(config: Config, console: Console) -> int:
    """Prepares the data: the number of steps follows from the number of rows."""
    output = Path(config.output)
    checkpoint, revision = config.model.checkpoint, config.model.revision
    located = locate_base(checkpoint, revision, output, seed=config.seed, console=console)
    return prepare_data(config, expand_arms(config), located, output, console).train_rows


def _plan_arm(
    arm: Arm,
    model: ModelConfig,
    rows: int,
    target: Target,
    cache: Path | None,
    console: Console,
) -> PlannedStep:
    traced = lower_planned(arm.config, model, total_steps(arm.config, rows), target)
    least, frozen = least_bytes(traced.program), device_bytes(traced.program.frozen)
    console.print(
        f"{arm.name}: compiling for {target.name}; weights, optimizer state and gradients are "
        f"{in_bytes(least)} a device, {in_bytes(frozen)} of it frozen …",
        highlight=False,
        markup=False,
    )
    return plan_step(arm.name, arm.config, model, target, traced, cache)


def _typed(config: Config, arm: Arm, tried: Sequence[Tried]) -> list[tuple[Change, Tried]]:
    """Pairs what was tried with the overrides that bring it about in the whole config."""
    for number, section in enumerate(config.compare):
        if arm.name in arm_names(section):
            given = section.train.model_dump(exclude_none=True, exclude_unset=True)
            own = [f"train.{key}" for key in given]
            return [(typed_change(one.change, own, number), one) for one in tried]
    return [(one.change, one) for one in tried]


def _hint(step: PlannedStep, tried: Sequence[tuple[Change, Tried]]) -> str:
    found, limit = step.measurement, step.limit_bytes
    of = f" of {in_bytes(limit)}" if limit else ""
    start = f"{step.name} does not fit: it needs {in_bytes(found.assigned_bytes)}{of} a device"
    if tried and tried[0][1].fits:
        return f"{start}. The fastest change that fits: {tried[0][0]}"
    return (
        f"{start}, and no change that was tried fits. Use more or larger chips, a smaller "
        "data.length, or a recipe that trains less"
    )


def _tried_json(tried: Sequence[tuple[Change, Tried]]) -> list[dict[str, object]]:
    return [
        {
            "change": str(change),
            "fits": one.fits,
            "reason": one.reason,
            "step": one.step.to_json() if one.step else None,
        }
        for change, one in tried
    ]
