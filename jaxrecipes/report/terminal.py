"""Results as tables for a terminal of 80 columns or more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jaxrecipes.report.numbers import (
    clock,
    count,
    interval,
    memory,
    negative,
    number,
    percent,
    value,
)
from jaxrecipes.report.orders import Row, context_rows, order_rows
from jaxrecipes.report.rewrites import rewrite_rows

Measured = Mapping[str, Any] | None
_TIGHT: dict[str, Any] = {"pad_edge": False, "show_edge": False}


def render_results(results: Mapping[str, Any]) -> RenderableType:
    """Makes the tables of a run: what was learned and forgotten, equal learning, cost.

    Args:
        results: `results.json`, see `jaxrecipes.report.results`.

    Returns:
        Something for `rich.console.Console.print`.
    """
    parts: list[RenderableType] = [Text(results["headline"], style="bold"), Text()]
    parts += [_learned(results), Text(), _cost(results)]
    if len(results["arms"]) > 1:
        parts[3:3] = [Text(), _equal_learning(results)]
    for title, rows in (
        ("What a document before is worth, nats a token", context_rows(results["arms"])),
        ("Order of documents", order_rows(results["arms"])),
        ("Rewritten answers", rewrite_rows(results["arms"])),
    ):
        if rows:
            parts += [Text(), rows_table(title, rows, results)]
    return Group(*parts)


def rows_table(title: str, rows: list[Row], results: Mapping[str, Any]) -> Table:
    """Makes a table of rows with one cell an arm."""
    table = new_table(title, "", *(arm["name"] for arm in results["arms"]))
    for row in rows:
        cells = []
        for cell in row["cells"]:
            text = Text(cell["value"], justify="right")
            if cell["interval"]:
                text.append(f"\n{cell['interval'].replace(' to ', '…')}", style="dim")
            cells.append(text)
        table.add_row(Text(row["label"]), *cells)
    return table


def render_evaluation(record: Mapping[str, Any], *, title: str) -> RenderableType:
    """Makes the table of one evaluation record.

    Args:
        record: See `jaxrecipes.evaluate.record`.
        title: What was evaluated.

    Returns:
        A table, one row a measure, one column a set.
    """
    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        **_TIGHT,
    )
    table.add_column("measure")
    sets = [name for name in ("learn", "keep") if record.get(name)]
    for name in sets:
        table.add_column(name, justify="right")
    rows = (
        ("loss, nats a token", "loss", False),
        ("change from the base", "change", True),
        ("perplexity", "perplexity", False),
        ("bits a byte", "bits_per_byte", False),
        ("KL(base || model), nats a token", "kl", False),
    )
    for label, key, signed in rows:
        blocks = [record[name].get(key) for name in sets]
        if any(blocks):
            table.add_row(label, *(_cell(block, signed=signed) for block in blocks))
    table.add_row("documents", *(f"{record[name].get('documents', 0):,}" for name in sets))
    table.add_row("scored tokens", *(f"{record[name].get('scored_tokens', 0):,}" for name in sets))
    for key, label in (("choices", "multiple choice"), ("last_words", "last words")):
        block = record.get(key)
        if block:
            cell = _cell(percent(block["accuracy"]), digits=1)
            table.add_row(f"{label}, % of {block['items']}", cell, *([""] * (len(sets) - 1)))
    return table


def _cell(measured: Measured, *, digits: int = 3, signed: bool = False) -> Text:
    """Puts the interval, dim, under the value."""
    text = Text(value(measured, digits, signed=signed), justify="right")
    bounds = interval(measured, digits, signed=signed).replace(" to ", "…")
    if bounds:
        text.append(f"\n{bounds}", style="dim")
    return text


def new_table(title: str, *columns: str) -> Table:
    """Returns an empty table, its first column to the left, the others to the right."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, **_TIGHT
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=not index)
    return table


def _learned(results: Mapping[str, Any]) -> Table:
    table = new_table(
        "Learned and forgotten, nats a token (95 % intervals over documents)",
        "arm",
        "learned",
        "KL to base",
        "keep loss rise",
        "accuracy, pts",
    )
    for arm in results["arms"]:
        after = arm["after"]
        learn, keep = after["learn"], after.get("keep") or {}
        choices = after.get("choices") or {}
        table.add_row(
            Text(arm["name"]),
            _cell(negative(learn.get("change")), signed=True),
            _cell(keep.get("kl")),
            _cell(keep.get("change"), signed=True),
            _cell(percent(choices.get("change")), digits=1, signed=True),
        )
    return table


def _equal_learning(results: Mapping[str, Any]) -> RenderableType:
    comparison = results["equal_learning"]["kl"]
    if comparison["gain"] is None:
        return Text(f"No comparison at equal learning: {comparison['reason']}.")
    table = new_table(
        f"Forgotten at equal learning ({number(comparison['gain'])} nats a token learned)",
        "arm",
        "KL to base on keep set",
        f"difference from {results['arms'][0]['name']}",
    )
    for arm in results["arms"]:
        name = arm["name"]
        difference = comparison["differences"].get(name)
        table.add_row(
            Text(name),
            _cell(comparison["forgetting"].get(name)),
            _cell(difference, signed=True) if difference else "",
        )
    if comparison["reason"]:
        table.caption = comparison["reason"]
    return table


def _cost(results: Mapping[str, Any]) -> Table:
    table = new_table(
        "Cost", "arm", "trained", "of all", "steps", "tokens", "time", "tok/s", "memory"
    )
    for arm in results["arms"]:
        summary = arm["summary"]
        unfinished = "" if arm["finished"] else " *"
        table.add_row(
            Text(arm["name"] + unfinished),
            count(summary.get("trained_parameters")),
            count(_parameters(summary)),
            f"{arm['after']['step']:,}",
            count(arm["after"]["tokens"]),
            clock(arm["training_seconds"]),
            count(arm["tokens_per_second"]),
            memory(summary.get("peak_memory_bytes")),
        )
    if not all(arm["finished"] for arm in results["arms"]):
        table.caption = "* not finished"
    return table


def _parameters(summary: Mapping[str, Any]) -> int | None:
    trained, frozen = summary.get("trained_parameters"), summary.get("frozen_parameters")
    return None if trained is None or frozen is None else trained + frozen


def render_tasks(result: Mapping[str, Any]) -> RenderableType:
    """Makes the table of lm-eval's tasks, one row a metric.

    Args:
        result: `tasks.json`, see `jaxrecipes.experiment.tasks`.

    Returns:
        A table; with the base and the change from it where there is one.
    """
    compared = result["base"] is not None
    columns = ["task", "metric", "items", "shots", "value", "standard error"]
    table = new_table(result["model"], *columns, *(["base", "change"] if compared else []))
    for score in result["scores"]:
        filtered = "" if score["filter"] == "none" else f" ({score['filter']})"
        arrow = {True: " ↑", False: " ↓", None: ""}[score["higher_is_better"]]
        cells = [
            Text(score["task"]),
            Text(f"{score['metric']}{filtered}{arrow}"),
            Text("" if score["items"] is None else f"{score['items']:,}"),
            Text("" if score["shots"] is None else str(score["shots"])),
            Text(number(score["value"], 4)),
            Text(number(score["stderr"], 4)),
        ]
        if compared:
            cells.append(Text(number(score.get("base"), 4)))
            cells.append(_cell(score.get("change"), digits=4, signed=True))
        table.add_row(*cells)
    return table
