"""Results in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jaxrecipes.report.headline import headline
from jaxrecipes.report.results import measured
from jaxrecipes.report.rows import MISSING, interval_text, result_rows

_EVALUATION = {
    "loss": "nats/token",
    "bits_per_byte": "bits/byte",
    "perplexity": "",
    "token_accuracy": "share",
    "kl": "nats/token",
    "accuracy": "share",
    "accuracy_normalized": "share",
    "probability": "share",
    "change": "",
}
_SIZES = ("documents", "scored_tokens", "items", "truncated")


def render_results(results: Mapping[str, Any]) -> RenderableType:
    """Makes the table of a run, an arm a column, and its result in words below.

    Args:
        results: From `collect_results`.

    Returns:
        What a rich console prints.
    """
    table = Table(title=Text(f"{results['run']}: learned and forgotten"), title_justify="left")
    table.add_column("")
    for arm in results["arms"]:
        table.add_column(Text(arm["name"]), justify="right")
    for row in result_rows(results):
        label = Text(row.label).append(f" ({row.unit})" if row.unit else "", style="dim")
        table.add_row(label, *(Text(cell) for cell in row.cells))
    return Group(table, *(Text(sentence) for sentence in headline(results)))


def render_evaluation(record: Mapping[str, Any], *, title: str) -> RenderableType:
    """Makes the table of one evaluation, a set a column.

    Args:
        record: See `jaxrecipes.evaluate.record`.
        title: What was evaluated.

    Returns:
        What a rich console prints.
    """
    names = [name for name in ("learn", "keep", "choices", "last_words") if record.get(name)]
    table = Table(title=Text(title), title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for field, unit in _EVALUATION.items():
        cells = [interval_text(measured(record, name, field)) for name in names]
        if any(cell != MISSING for cell in cells):
            label = Text(field.replace("_", " ")).append(f" ({unit})" if unit else "", style="dim")
            table.add_row(label, *cells)
    for field in _SIZES:
        sizes = [record[name].get(field) for name in names]
        if any(size is not None for size in sizes):
            cells = [MISSING if size is None else f"{size:,}" for size in sizes]
            table.add_row(field.replace("_", " "), *cells)
    return table
