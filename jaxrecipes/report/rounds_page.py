"""The report of recipe llm2llm: a page, a chart, tables for a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Group, RenderableType
from rich.text import Text

from jaxrecipes.report.charts import COLOURS, STYLE, Chart, save_chart
from jaxrecipes.report.page import (
    PLOTS,
    REPORT,
    RESULTS,
    embedded,
    environment_rows,
    page_template,
    write_whole,
)
from jaxrecipes.report.rounds import collect_rounds, round_rows, score_rows
from jaxrecipes.report.terminal import new_table

Results = Mapping[str, Any]


def write_rounds_report(run_folder: Path) -> dict[str, Any]:
    """Writes `results.json`, `plots/rounds.png` and `report.html` of a run.

    Args:
        run_folder: Output folder of a run, finished or not.

    Returns:
        What `results.json` holds.

    Raises:
        UsageError: No run was finished yet.
        DataError: A file in it is damaged.
    """
    results = collect_rounds(run_folder)
    chart = draw_rounds(results, run_folder / PLOTS)
    write_whole(run_folder / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    page = page_template("rounds.html.j2").render(
        results=results,
        arms=[arm["name"] for arm in results["arms"]],
        scores=score_rows(results),
        rounds=round_rows(results),
        charts=embedded([chart]),
        environment=environment_rows(results["environment"]),
    )
    write_whole(run_folder / REPORT, page)
    return results


def draw_rounds(results: Results, folder: Path) -> Chart:
    """Draws test scores and wrong seeds after each round, one line an arm.

    Args:
        results: See `report.rounds`.
        folder: Where the PNG file goes; it is made.

    Returns:
        The chart.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for place, arm in enumerate(results["arms"]):
            colour = COLOURS[place % len(COLOURS)]
            style = {"color": colour, "marker": "o", "markersize": 3.5, "label": arm["name"]}
            numbers = [state["round"] for state in arm["rounds"]]
            means = np.array([100 * state["test"]["mean"] for state in arm["rounds"]])
            spread = np.array([100 * (state["test"]["deviation"] or 0) for state in arm["rounds"]])
            # Arms of one training stand at the right end, beside the last round of the others.
            if len(numbers) == 1:
                numbers = [max(len(other["rounds"]) for other in results["arms"]) - 1]
            left.errorbar(numbers, means, yerr=spread, capsize=2, linewidth=1.2, **style)
            wrong = [state["wrong_seeds"] for state in arm["rounds"]]
            right.plot(numbers, wrong, linewidth=1.2, **style)
        left.set_title("right test items, %")
        right.set_title(f"wrong seeds, of {results['items']['seeds']}")
        for axes in (left, right):
            axes.set_xlabel("round")
        right.legend(fontsize="small")
        return save_chart(
            figure,
            folder / "rounds.png",
            "Rounds",
            "Mean over seeds, bars one standard deviation. Arms that train once are drawn at the "
            "last round.",
        )


def render_rounds(results: Results) -> RenderableType:
    """Makes the tables of a run for a terminal of 80 columns or more."""
    parts: list[RenderableType] = [Text(results["headline"], style="bold"), Text()]
    table = new_table(
        f"Test items, %, mean ± sd over seeds; {results['main']} against each arm in points",
        *("arm", "items", "steps", "test", "difference", "seeds + : -"),
    )
    for row in score_rows(results):
        cell = Text(row["difference"], justify="right", no_wrap=True)
        if row["interval"]:
            cell.append(f"\n{row['interval'].replace(' to ', '…')}", style="dim")
        cells = [Text(row[key], no_wrap=True) for key in ("items", "steps", "test")]
        table.add_row(Text(row["arm"]), *cells, cell, Text(row["seeds_better"]))
    parts += [table, Text()]
    table = new_table(
        "Rounds, means over runs",
        *("arm", "round", "items", "wrong seeds", "kept", "steps", "dev", "test"),
    )
    for row in round_rows(results):
        keys = ("round", "records", "wrong", "kept", "steps", "dev", "test")
        table.add_row(Text(row["arm"]), *(Text(row[key], no_wrap=True) for key in keys))
    parts.append(table)
    reasons: dict[str, float] = {}
    for arm in results["arms"]:
        for state in arm["rounds"]:
            for reason, count in state["rejected"].items():
                reasons[reason] = reasons.get(reason, 0.0) + count
    if reasons:
        said = "; ".join(f"{count:,.1f} {reason}" for reason, count in reasons.items())
        parts.append(Text(f"refused, a seed, over all arms: {said}"))
    parts.append(Text(f"students: {results['exported']}"))
    return Group(*parts)
