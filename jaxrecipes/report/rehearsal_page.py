"""The report of a run over a sequence of tasks: a page, tables for a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from jaxrecipes.report.numbers import duration, interval, number, value
from jaxrecipes.report.page import REPORT, RESULTS, environment_rows, page_template, write_whole
from jaxrecipes.report.rehearsal import METRICS, NAMES, collect_rehearsal
from jaxrecipes.report.terminal import new_table

Results = Mapping[str, Any]


def write_rehearsal_report(run_folder: Path) -> dict[str, Any]:
    """Writes `results.json` and `report.html` of a run over a sequence of tasks.

    Args:
        run_folder: Output folder of a run, finished or not.

    Returns:
        What `results.json` holds.

    Raises:
        UsageError: No arm is finished yet.
        DataError: A file in it is damaged.
    """
    results = collect_rehearsal(run_folder)
    write_whole(run_folder / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    page = page_template("rehearsal.html.j2").render(
        results=results,
        names=list(NAMES),
        metrics=[
            {
                "title": METRICS[metric][0],
                "summary": summary_rows(results, metric),
                "matrices": [
                    {
                        "arm": arm["name"],
                        "rows": matrix_rows(arm["metrics"][metric]["matrix"], metric),
                    }
                    for arm in results["arms"]
                ],
            }
            for metric in results["metrics"]
        ],
        sets=set_rows(results),
        cost=cost_rows(results),
        environment=environment_rows(results["environment"]),
    )
    write_whole(run_folder / REPORT, page)
    return results


def summary_rows(results: Results, metric: str) -> list[dict[str, Any]]:
    """Returns one row an arm: its name, and AR, BWT and both FWT with their intervals."""
    digits = _digits(metric)
    rows = []
    for arm in results["arms"]:
        found = arm["metrics"][metric]
        cells = [
            {
                "value": value(found[name], digits, signed=name in ("BWT", "FWT")),
                "interval": interval(found[name], digits, signed=name in ("BWT", "FWT")),
            }
            for name in NAMES
        ]
        rows.append({"arm": arm["name"], "cells": cells})
    return rows


def matrix_rows(matrix: list[list[float | None]], metric: str) -> list[list[str]]:
    """Returns the cells of a_j^(i) as text; the first row is of the untrained model."""
    return [[number(cell, _digits(metric)) for cell in row] for row in matrix]


def set_rows(results: Results) -> list[dict[str, str]]:
    """Returns one row an arm and task: what became of the instances that are repeated."""
    rows = []
    for arm in results["arms"]:
        for task, counts in arm["sets"].items():
            written = counts.get("synthesis")
            refused = {**(written or {}).get("rejected", {})}
            for reason, times in counts["rejected"].items():
                refused[f"refined: {reason}"] = times
            rows.append(
                {
                    "arm": arm["name"],
                    "task": task,
                    "requests": f"{written['requests']:,}" if written else "",
                    "usable": f"{counts['candidates']:,}",
                    "chosen": f"{counts['chosen']:,} of {counts['wanted']:,}",
                    "refined": f"{counts['refined']:,}",
                    "rejected": ", ".join(f"{times} {reason}" for reason, times in refused.items()),
                }
            )
    return rows


def cost_rows(results: Results) -> list[dict[str, str]]:
    """Returns one row an arm: rows learned, steps, time of training."""
    return [
        {
            "arm": arm["name"],
            "rows": " + ".join(f"{stage['rows']:,}" for stage in arm["stages"]),
            "steps": f"{sum(stage['steps'] for stage in arm['stages']):,}",
            "time": duration(sum(stage["seconds"] for stage in arm["stages"])),
        }
        for arm in results["arms"]
    ]


def render_rehearsal(results: Results) -> RenderableType:
    """Makes the tables of a run over a sequence of tasks for a terminal of 80 columns or more."""
    parts: list[RenderableType] = [Text(results["headline"], style="bold")]
    for metric in results["metrics"]:
        title = METRICS[metric][0]
        table = new_table(title[0].upper() + title[1:], "arm", *NAMES)
        for row in summary_rows(results, metric):
            cells = []
            for cell in row["cells"]:
                text = Text(cell["value"], justify="right", no_wrap=True)
                if cell["interval"]:
                    text.append(f"\n{cell['interval'].replace(' to ', '…')}", style="dim")
                cells.append(text)
            table.add_row(Text(row["arm"]), *cells)
        parts += [Text(), table]
    metric, tasks = results["metrics"][0], [task["name"] for task in results["tasks"]]
    table = new_table(f"{METRICS[metric][0]}, after each task", "arm", "after", *tasks)
    for arm in results["arms"]:
        rows = _matrix(arm, metric)
        for place, (after, cells) in enumerate(zip(["base", *tasks], rows, strict=True)):
            numbers = [Text(cell, justify="right", no_wrap=True) for cell in cells]
            table.add_row(Text(arm["name"] if place == 0 else ""), Text(after), *numbers)
    parts += [Text(), table]
    rows = set_rows(results)
    if rows:
        columns = ("arm", "task", "usable", "chosen", "refined")
        table = new_table("Instances that are repeated", *columns)
        for row in rows:
            table.add_row(*(Text(row[column]) for column in columns))
        parts += [Text(), table]
    table = new_table("Cost", "arm", "rows", "steps", "time")
    for row in cost_rows(results):
        table.add_row(*(Text(row[column]) for column in ("arm", "rows", "steps", "time")))
    return Group(*parts, Text(), table)


def _matrix(arm: Results, metric: str) -> list[list[str]]:
    return matrix_rows(arm["metrics"][metric]["matrix"], metric)


def _digits(metric: str) -> int:
    return 3 if metric == "nll" else 1
