"""The README.md of a model that an adaptive recipe exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrecipes import __version__
from jaxrecipes.config import AdaptiveArm, AdaptiveConfig, config_hash
from jaxrecipes.evaluate.classification import accuracy, macro_f1
from jaxrecipes.experiment.fine_tuning import Outcome, Task


def adaptive_card(
    config: AdaptiveConfig,
    arm: AdaptiveArm,
    records: Sequence[Mapping[str, Any]],
    task: Task,
    outcome: Outcome,
    seed: int,
) -> str:
    """Writes the card of the best model of an arm.

    Args:
        config: The experiment.
        arm: The arm.
        records: What its pretraining phases left.
        task: The task.
        outcome: The fine-tuning.
        seed: Its seed.

    Returns:
        Markdown with a metadata header.
    """
    assert task.test.labels is not None
    labels = np.asarray(task.test.labels)
    lines = [
        f"- {record['name']}: {record['objective']} language modelling, {record['steps']} steps of "
        f"{record['batch_size']} texts, {record['tokens']:,} tokens, peak rate "
        f"{record['learning_rate']:g}; loss on dev texts {record['loss']['dev'][0]:.3f} -> "
        f"{record['loss']['dev'][1]:.3f} nats."
        for record in records
    ]
    lines.append(
        f"- fine-tuning: {outcome.steps} steps of {arm.finetune.batch_size} rows, "
        f"{len(task.train)} labelled rows, peak rate {arm.finetune.optimizer.learning_rate:g}, "
        f"seed {seed}, the best of {len(outcome.dev)} epochs by dev {config.task.score}."
    )
    phases = "\n".join(lines)
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags:
- jaxrecipes
- {config.recipe}
---

# {arm.name}

`{config.model.checkpoint}` after the recipe `{config.recipe}` of jaxrecipes {__version__}, config
{config_hash(config)[:12]}: the seed with the best dev score.

{phases}

| rows | accuracy | macro-F1 |
|---|---|---|
| test, {len(labels)} | {accuracy(outcome.predictions, labels):.4f} | \
{macro_f1(outcome.predictions, labels):.4f} |

Dev, by which it was chosen: {max(outcome.dev):.4f}. The report has the mean over all seeds, which
is what a comparison should use. Classes: {", ".join(task.labels.names)}.
"""
