"""What benchmarks of classification share: a task in a folder, an optimizer, a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxrecipes.data.classification_rows import LabelMap, read_labelled
from jaxrecipes.data.text_batches import TokenizedTexts
from jaxrecipes.evaluate.seed_results import SeedResults
from jaxrecipes.experiment.fine_tuning import Task
from jaxrecipes.experiment.task_model import TaskModel
from jaxrecipes.params.paths import Tree, flatten
from jaxrecipes.report.numbers import interval, number, percent, value
from jaxrecipes.report.seeds import seed_arms, show_score
from jaxrecipes.train.optimizer import OptimizerSettings, learning_rate_schedule, make_optimizer


def read_task(
    folder: Path,
    model: TaskModel,
    *,
    max_tokens: int,
    train_rows: int | None,
    dev_rows: int | None,
) -> Task:
    """Reads train.jsonl, dev.jsonl and test.jsonl; subsets are drawn once, by the seed 0."""
    everything = read_labelled(folder / "train.jsonl")
    labels = LabelMap.of_training(everything)

    def part(examples: Sequence[Any], rows: int | None) -> TokenizedTexts:
        chosen = np.random.default_rng(0).permutation(len(examples))[:rows]
        kept = [examples[place] for place in sorted(chosen.tolist())]
        texts = model.tokenize_labelled([example.texts for example in kept], max_tokens)
        return texts.labelled(labels.numbers(kept))

    return Task(
        labels,
        part(everything, train_rows),
        part(read_labelled(folder / "dev.jsonl"), dev_rows),
        part(read_labelled(folder / "test.jsonl"), None),
        max_tokens,
    )


def make_adamw(learning_rate: float, layout: Any) -> Callable[[Tree, int], tuple[Any, Any]]:
    """Returns AdamW as RoBERTa is trained with: no decay on biases and norms, linear course."""
    return partial(_adamw, learning_rate, layout)


def _adamw(learning_rate: float, layout: Any, params: Tree, total: int) -> tuple[Any, Any]:
    settings = OptimizerSettings(
        total_steps=total,
        learning_rate=learning_rate,
        schedule="linear",
        warmup_steps=min(round(0.06 * total), total - 1),
        final_ratio=0.0,
        weight_decay=0.1,
        beta2=0.98,
        epsilon=1e-6,
    )
    decays = {path: path.endswith(("kernel", "table")) for path in flatten(params)}
    optimizer = make_optimizer(settings, layout=layout, decays=decays)
    return optimizer, learning_rate_schedule(settings)


def markdown(
    results: SeedResults, options: Any, arms: Iterable[str], labels: np.ndarray, *, base: str
) -> str:
    """Makes a table: scores of each arm over its seeds, and the difference to a base arm.

    Args:
        results: The results.
        options: All that decides a result besides arm and seed.
        arms: In the order of the table; one without results is left out.
        labels: int [test rows].
        base: The arm that the others are compared with.

    Returns:
        Markdown. Intervals are 95 %, by paired bootstrap over test rows, of means over seeds.
    """
    found = {arm: [row for _, row in sorted(results.rows(arm, options).items())] for arm in arms}
    lines = [
        f"| arm | seeds | accuracy | macro-F1 | train score | macro-F1 vs {base} | "
        f"accuracy vs {base} | steps | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in seed_arms({name: rows for name, rows in found.items() if rows}, labels, base):
        cells = [arm["name"], str(len(arm["seeds"]))]
        cells += [show_score(arm["scores"][name]) for name in ("accuracy", "macro_f1")]
        cells.append(number(100 * arm["train_score"], 2))
        for name in ("macro_f1", "accuracy"):
            block = percent((arm["differences"] or {}).get(name))
            bounds = interval(block, 2, signed=True)
            shown = "" if block is None else value(block, 2, signed=True)
            cells.append(f"{shown} [{bounds}]" if bounds else shown)
        cells += [number(arm["steps"], 0), number(arm["seconds"], 0)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
