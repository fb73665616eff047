"""The README.md of an exported model: what it is, how it was made, what it learned and forgot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxrecipes import __version__
from jaxrecipes.config import Arm, config_hash
from jaxrecipes.evaluate.record import read_records
from jaxrecipes.report.results import REWRITES
from jaxrecipes.report.rewrites import rewrite_sentence


def model_card(arm: Arm, summary: Mapping[str, Any], folder: Path) -> str:
    """Writes the card of an arm.

    Args:
        arm: The arm.
        summary: Its summary.
        folder: Its folder, where `evaluations.jsonl` is.

    Returns:
        Markdown with a metadata header.
    """
    config = arm.config
    records = read_records(folder / "evaluations.jsonl")
    first, last = records[0], records[-1]
    rows = []
    for title, name in (("learn set (held out)", "learn"), ("keep set", "keep")):
        if last.get(name):
            before, after = (record[name]["loss"]["value"] for record in (first, last))
            divergence = last[name].get("kl")
            kl = f"{divergence['value']:.4f}" if divergence else "–"
            rows.append(f"| {title} | {before:.4f} | {after:.4f} | {kl} |")
    sources = ", ".join(f"`{source.source}`" for source in config.data.learn)
    blocks = summary["new_blocks"]
    inserted = f" New blocks: {', '.join(map(str, blocks))}." if blocks else ""
    table = "\n".join(rows)
    total = summary["trained_parameters"] + summary["frozen_parameters"]
    return f"""---
library_name: transformers
tags:
- jaxrecipes
- {config.recipe}
---

# {arm.name}

`{config.model.checkpoint}` after the recipe `{config.recipe}` of
jaxrecipes {__version__}, on {sources}.

- {summary["trained_parameters"]:,} of {total:,} parameters were trained, for
  {summary["steps"]} steps of {config.train.batch_size} x {config.data.length} tokens.{inserted}
- {config.train.optimizer.name}, peak rate {config.train.optimizer.learning_rate:g},
  seed {config.seed}, config {config_hash(config)[:12]}.

| | loss before (nats a token) | loss after | KL(base, model) |
|---|---|---|---|
{table}

Tensors that were not trained are bit-identical to the base's.
{_rewrites(folder)}"""


def _rewrites(folder: Path) -> str:
    """Says which of the answers that were learned are not those of the data."""
    path = folder / REWRITES
    if not path.exists():
        return ""
    lines = [
        f"- `{source['source']}`: {rewrite_sentence(source)}"
        for source in json.loads(path.read_text(encoding="utf-8"))["sources"]
    ]
    return "\n".join(["", "Answers that were rewritten before they were learned:", "", *lines, ""])
