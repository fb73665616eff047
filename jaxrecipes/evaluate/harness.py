"""lm-eval's tasks on our models: any of its YAML files, on local files or the hub.

lm-eval (the extra `harness`) brings task definitions, prompts and metrics; the model is ours
(`harness_model`), so neither PyTorch nor a server is needed. Where two models answer the same
items, the change of a metric has a bootstrap interval over items, as everywhere in this package.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrecipes.errors import DataError, JaxrecipesError, UsageError
from jaxrecipes.evaluate.bootstrap import Interval, difference_interval

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from jaxrecipes.evaluate.harness_model import HarnessModel

SCHEMA_VERSION = 1
_STDERR = "_stderr"


@dataclass(frozen=True)
class TaskScore:
    """One number of a task.

    Attributes:
        task: Name of the task or group.
        metric: Name of the metric, such as `acc_norm`.
        filter: Name of lm-eval's filter of answers; "none" where there is none.
        value: The metric.
        stderr: Its standard error over items as lm-eval computes it; None where it does not.
        shots: Solved examples in front of each item; None for a group.
        items: Number of items; None for a group.
        version: Version of the task definition.
        higher_is_better: Direction of the metric, None where the task does not say.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    shots: int | None
    items: int | None
    version: str | None
    higher_is_better: bool | None


@dataclass(frozen=True)
class HarnessResult:
    """What a model scored.

    Attributes:
        scores: One entry a task, metric and filter, in lm-eval's order.
        items: (task, metric, filter) -> item -> the item's own score, for metrics that are means
            over items.
    """

    scores: tuple[TaskScore, ...]
    items: Mapping[tuple[str, str, str], Mapping[int, float]]

    def to_json(self, base: HarnessResult | None = None, *, seed: int = 0) -> dict[str, Any]:
        """Returns the result as JSON values.

        Args:
            base: The base model's result on the same tasks; each score then has its `base` and its
                `change`, with an interval where the metric is a mean over the same items.
            seed: Seed of the bootstrap.

        Returns:
            {"schema_version", "lm_eval", "scores": [one object a score]}.
        """
        import lm_eval

        earlier = {} if base is None else {_key(score): score for score in base.scores}
        scores = []
        for score in self.scores:
            entry = asdict(score)
            if base is not None and _key(score) in earlier:
                entry["base"] = earlier[_key(score)].value
                entry["change"] = self.change(base, score, seed=seed).to_json()
            scores.append(entry)
        return {
            "schema_version": SCHEMA_VERSION,
            "lm_eval": lm_eval.__version__,
            "scores": scores,
        }

    def change(self, base: HarnessResult, score: TaskScore, *, seed: int = 0) -> Interval:
        """Returns a score minus the base's, paired by item.

        Args:
            base: The base model's result on the same tasks.
            score: One of `scores`, which the base has too.
            seed: Seed of the bootstrap.

        Returns:
            The difference. Without an interval where the metric is no mean over items, or where the
            two models did not answer the same items.
        """
        key = _key(score)
        value = score.value - next(other.value for other in base.scores if _key(other) == key)
        ours, theirs = self.items.get(key, {}), base.items.get(key, {})
        if len(ours) < 2 or set(ours) != set(theirs):
            return Interval(value, None, None)
        order = sorted(ours)
        paired = difference_interval(
            np.asarray([ours[item] for item in order]),
            np.asarray([theirs[item] for item in order]),
            np.ones(len(order)),
            seed=seed,
        )
        return Interval(value, paired.low, paired.high)


def require_harness() -> None:
    """Checks that lm-eval is installed.

    Raises:
        UsageError: It is not; says how to install it.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError(
            "--tasks needs lm-eval, which is not installed: pip install 'jaxrecipes[harness]'"
        )


def find_tasks(names: Sequence[str], include: Path | None = None) -> TaskManager:
    """Looks tasks up.

    Args:
        names: Names of tasks, groups or tags, or paths of YAML files.
        include: Folder with task YAML files of your own, searched first; lm-eval's own 14,000 take
            some seconds to list, and are listed only where a name is not found here.

    Returns:
        The manager that knows them all.

    Raises:
        UsageError: lm-eval is not installed, there are no names, a name is unknown (near ones are
            named), or the folder does not exist.
    """
    require_harness()
    from lm_eval.tasks import TaskManager

    if not names:
        raise UsageError("--tasks names no task; expected one or more, separated by commas")
    if include is not None and not include.is_dir():
        raise UsageError(f"--include {include}: no such folder")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    listed = include is not None
    own = str(include) if include is not None else None
    manager = TaskManager(include_path=own, include_defaults=not listed)
    if listed and _unknown(manager, names):
        manager = TaskManager(include_path=own)
    unknown = _unknown(manager, names)
    if unknown:
        lines = []
        for name in unknown:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "no task has a like name"
            lines.append(f"there is no task {name!r}: {hint}")
        places = f"{include} and lm-eval" if include is not None else "lm-eval"
        raise UsageError("\n".join(lines) + f"\n{len(manager.all_tasks):,} tasks of {places}.")
    return manager


def run_tasks(
    model: HarnessModel,
    manager: TaskManager,
    names: Sequence[str],
    *,
    shots: int | None = None,
    limit: int | None = None,
    chat: bool = False,
    seed: int = 1234,
) -> HarnessResult:
    """Lets a model answer tasks.

    Args:
        model: The model.
        manager: From `find_tasks`.
        names: The tasks.
        shots: Solved examples in front of each item; None for what each task says.
        limit: Answer only the first so many items of each task.
        chat: Render items with the model's chat template.
        seed: Seed of the choice of examples; lm-eval's own by default.

    Returns:
        The scores.

    Raises:
        DataError: A task's data cannot be read (offline, for instance), or a task does not work.
        JaxrecipesError: What the model raises, see `HarnessModel`.
    """
    from lm_eval.evaluator import evaluate

    # Prompts with random parts, and lm-eval's own bootstrap, draw from these.
    random.seed(0)
    np.random.seed(seed)
    try:
        loaded = manager.load(list(names))
        for task in loaded["tasks"].values():
            # A task that says 0 itself means it; lm-eval's own rule.
            if shots is not None and task.get_config("num_fewshot") != 0:
                task.set_config(key="num_fewshot", value=shots)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=seed)
        found = evaluate(
            lm=model,
            task_dict=loaded,
            limit=limit,
            log_samples=True,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    except JaxrecipesError:
        raise
    except Exception as error:  # tasks, `datasets` and the hub raise exceptions of many classes
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        raise DataError(
            f"the tasks {', '.join(names)} cannot be evaluated ({reason}). Check their YAML, and "
            "that the data they name are there: without the hub (HF_HUB_OFFLINE=1) only local "
            "files and data sets downloaded before are; paths are relative to where you are."
        ) from error
    assert found is not None  # this process is the only one
    return _result(dict(found))


def _unknown(manager: TaskManager, names: Sequence[str]) -> list[str]:
    return [
        name
        for name in names
        if name not in manager.task_index
        and not (name.endswith((".yaml", ".yml")) and Path(name).is_file())
    ]


def _key(score: TaskScore) -> tuple[str, str, str]:
    return score.task, score.metric, score.filter


def _result(found: Mapping[str, Any]) -> HarnessResult:
    """Reads lm-eval's result; tasks of a group are among the results, beside the group."""
    scores = []
    for task, metrics in {**found["results"], **found.get("groups", {})}.items():
        counts = found.get("n-samples", {}).get(task)
        for name, value in metrics.items():
            metric, comma, filtered = name.partition(",")
            if not comma or metric.endswith(_STDERR) or not _is_number(value):
                continue
            stderr = metrics.get(f"{metric}{_STDERR},{filtered}")
            version = found.get("versions", {}).get(task)
            scores.append(
                TaskScore(
                    task=task,
                    metric=metric,
                    filter=filtered,
                    value=float(value),
                    stderr=float(stderr) if _is_number(stderr) else None,
                    shots=found.get("n-shot", {}).get(task),
                    items=None if counts is None else int(counts["effective"]),
                    version=None if version is None else str(version),
                    higher_is_better=found.get("higher_is_better", {}).get(task, {}).get(metric),
                )
            )
    items: dict[tuple[str, str, str], dict[int, float]] = {}
    for task, samples in found.get("samples", {}).items():
        for sample in samples:
            for metric in sample["metrics"]:
                if _is_number(sample[metric]):
                    key = task, metric, sample["filter"]
                    items.setdefault(key, {})[sample["doc_id"]] = float(sample[metric])
    means = {
        _key(score): items[_key(score)]
        for score in scores
        if _key(score) in items
        and np.isclose(np.mean(list(items[_key(score)].values())), score.value)
    }
    return HarnessResult(tuple(scores), means)


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.number)) and bool(np.isfinite(value))
