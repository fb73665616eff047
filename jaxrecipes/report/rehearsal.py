"""What a run over a sequence of tasks says, gathered into one JSON value: `results.json`.

Its keys: `schema`, `kind` ("sequence"), `name`, `recipe`, `model`, `headline`, `findings`, `tasks`
(`name`, `train`, `test`), `metrics` (those that were measured), `config`, `environment`, `arms`. An
arm has `name`, `rehearsal` (its options), `sets` (task -> what became of its instances),
`stages` (`name`, `rows`, `seconds`, `steps`), `model`, and `metrics`: metric -> `matrix` (tasks + 1
rows, the first of the untrained model; None where there is no model) and, each with an interval,
`AR`, `BWT`, `FWT` (Lopez-Paz and Ranzato) and `FWT_SSR` (see `evaluate.sequences`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrecipes.errors import UsageError
from jaxrecipes.evaluate.sequences import DocumentScores, sequence_metrics
from jaxrecipes.report.results import finite_values, read_object, read_text_or_nothing

REHEARSAL_FILE = "rehearsal.json"
# Metric -> title, and whether more is better.
METRICS: Mapping[str, tuple[str, bool]] = {
    "nll": ("loss of the right answers, nats a token", False),
    "rouge_l": ("ROUGE-L (rouge_score), %", True),
    "rouge_l_jieba": ("ROUGE-L as SSR's code computes it (rouge_chinese, jieba), %", True),
}
NAMES = {
    "AR": "accuracy",
    "BWT": "backward_transfer",
    "FWT": "forward_transfer",
    "FWT_SSR": "zero_shot",
}


def finished_models(run_folder: Path) -> str:
    """Says where below a run folder the finished models are."""
    arms = read_object(run_folder / REHEARSAL_FILE)["arms"]
    return "; ".join(f"{arm['name']}: {arm['model']}" for arm in arms)


def collect_rehearsal(run_folder: Path) -> dict[str, Any]:
    """Reads the run folder of a sequence of tasks.

    Args:
        run_folder: Output folder of a run, finished or not.

    Returns:
        The value described in this module's docstring; arms that are not finished are left out.

    Raises:
        UsageError: No arm is finished yet.
        DataError: A file is damaged.
    """
    found = read_object(run_folder / REHEARSAL_FILE)
    tasks = [task["name"] for task in found["tasks"]]
    done = [arm for arm in found["arms"] if len(arm["scores"]) == len(tasks) + 1]
    if not done:
        raise UsageError(f"{run_folder}: no arm is finished yet; `jaxrecipes run` goes on with it")
    first = done[0]["scores"][0][tasks[0]]
    metrics = [name for name in METRICS if first.get(name) is not None]
    arms = []
    for arm in done:
        measured = {name: _measured(arm["scores"], tasks, name) for name in metrics}
        kept = {key: arm[key] for key in ("name", "rehearsal", "sets", "stages", "model")}
        arms.append({**kept, "metrics": measured})
    sentences = _findings(arms, tasks)
    return finite_values(
        {
            "schema": 1,
            "kind": "sequence",
            "name": run_folder.resolve().name,
            "recipe": found["recipe"],
            "model": found["model"],
            "headline": sentences[0],
            "findings": sentences[1:],
            "tasks": found["tasks"],
            "metrics": metrics,
            "arms": arms,
            "config": read_text_or_nothing(run_folder / "run.yaml"),
            "environment": read_object(run_folder / "environment.json"),
        }
    )


def _measured(
    scores: Sequence[Mapping[str, Any] | None], tasks: Sequence[str], metric: str
) -> dict[str, Any]:
    values = [
        [None if row is None else np.asarray(row[task][metric], np.float64) for task in tasks]
        for row in scores
    ]
    weights = None
    if metric == "nll":
        assert scores[0] is not None
        weights = [np.asarray(scores[0][task]["tokens"], np.float64) for task in tasks]
    documents = DocumentScores(values, weights)
    found = sequence_metrics(documents, higher_is_better=METRICS[metric][1])
    numbers = found.to_json()
    return {
        "matrix": documents.matrix().tolist(),
        **{name: numbers[key] for name, key in NAMES.items()},
    }


def _findings(arms: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> list[str]:
    main, metric = arms[0], "nll"
    value = main["metrics"][metric]["BWT"]["value"]
    sentences = [
        f"{main['name']}: after {len(tasks)} tasks, the loss of right answers of earlier ones "
        f"{_moved(value)}."
    ]
    for other in arms[1:]:
        lost = other["metrics"][metric]["BWT"]["value"]
        if lost is not None:
            sentences.append(f"{other['name']}: it {_moved(lost)}.")
    for arm in arms:
        for task, counts in arm["sets"].items():
            if counts["chosen"] < counts["wanted"]:
                sentences.append(
                    f"{arm['name']} repeats {counts['chosen']} instances of {task} instead of "
                    f"{counts['wanted']}: no more were usable."
                )
    return sentences


def _moved(backward: float | None) -> str:
    if backward is None:
        return "was not measured on the way"
    verb = "rose" if backward < 0 else "fell"
    return f"{verb} by {abs(backward):.3f} nats a token since they were learned"
