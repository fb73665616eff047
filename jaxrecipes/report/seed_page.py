"""The report of an adaptive run: a page, a chart, tables for a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Group, RenderableType
from rich.table import Table
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
from jaxrecipes.report.seeds import (
    TITLES,
    collect_seed_results,
    cost_rows,
    phase_table,
    score_rows,
)
from jaxrecipes.report.terminal import new_table, rows_table

Results = Mapping[str, Any]


def write_seed_report(run_folder: Path) -> dict[str, Any]:
    """Writes `results.json`, `plots/scores.png` and `report.html` of an adaptive run.

    Args:
        run_folder: Output folder of a run, finished or not.

    Returns:
        What `results.json` holds.

    Raises:
        UsageError: Nothing was fine-tuned yet.
        DataError: A file in it is damaged.
    """
    results = collect_seed_results(run_folder)
    chart = draw_scores(results, run_folder / PLOTS)
    write_whole(run_folder / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    page = page_template("seeds.html.j2").render(
        results=results,
        arms=[arm["name"] for arm in results["arms"]],
        scores=score_rows(results),
        cost=cost_rows(results),
        phases=phase_table(results),
        charts=embedded([chart]),
        environment=environment_rows(results["environment"]),
    )
    write_whole(run_folder / REPORT, page)
    return results


def draw_scores(results: Results, folder: Path) -> Chart:
    """Draws the mean score of each arm as a bar, its seeds as dots.

    Args:
        results: See `report.seeds`.
        folder: Where the PNG file goes; it is made.

    Returns:
        The chart.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arms = results["arms"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 2.4 + 0.36 * len(arms)), layout="constrained")
        panels = figure.subplots(1, len(TITLES), sharey=True)
        places = np.arange(len(arms))
        for axes, (score, title) in zip(panels, TITLES.items(), strict=True):
            values = [100 * np.array(arm["scores"][score]["values"]) for arm in arms]
            means = [one.mean() for one in values]
            axes.barh(places, means, color=COLOURS[0], alpha=0.35, height=0.6)
            for place, one in zip(places, values, strict=True):
                # Dots beside each other, so that equal scores do not hide each other.
                spread = np.linspace(-0.18, 0.18, len(one)) if len(one) > 1 else np.zeros(1)
                axes.plot(one, place + spread, "o", color=COLOURS[0], markersize=4.5)
            low, high = min(map(np.min, values)), max(map(np.max, values))
            margin = max(0.15 * (high - low), 0.5)
            # Differences of a point are what matters: the axis need not begin at 0, but says so.
            axes.set_xlim(max(low - 3 * margin, 0), min(high + margin, 100.5))
            axes.set_title(title)
            axes.set_xlabel("%, test rows")
        cut = any(axes.get_xlim()[0] > 0 for axes in panels)
        panels[0].set_yticks(places, [arm["name"] for arm in arms])
        panels[0].invert_yaxis()
        return save_chart(
            figure,
            folder / "scores.png",
            "Scores on the test rows",
            f"A bar is the mean over seeds of an arm ({', '.join(arm['name'] for arm in arms)}), a "
            f"dot is one seed.{' The axes do not begin at 0.' if cut else ''}",
        )


def render_seed_results(results: Results) -> RenderableType:
    """Makes the tables of an adaptive run for a terminal of 80 columns or more."""
    parts: list[RenderableType] = [Text(results["headline"], style="bold"), Text()]
    parts.append(_scores(results))
    rows = phase_table(results)
    if rows:
        columns = ("phase", "read", "tokens", "loss read", "loss dev")
        table = new_table("Pretraining, loss in nats before → after", *columns)
        for row in {row["phase"]: row for row in rows}.values():
            losses = (row["loss_read"], row["loss_dev"])
            cells = [Text(one, no_wrap=True) for one in (row["tokens"], *losses)]
            table.add_row(Text(row["phase"]), Text(row["read"]), *cells)
        parts += [Text(), table]
    parts += [Text(), rows_table("Cost", cost_rows(results), results)]
    parts += [Text(), Text(f"best model: {results['exported']}")]
    return Group(*parts)


def _scores(results: Results) -> Table:
    """One row an arm: its scores, and what they are against the base, intervals below."""
    base = results["base"]
    columns = [part for title in TITLES.values() for part in (title, f"vs {base}")]
    seeds = sorted({len(arm["seeds"]) for arm in results["arms"]})
    counted = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    table = new_table(f"Test rows, %, mean ± sd over seeds ({counted})", "arm", *columns)
    rows = score_rows(results)
    for place, arm in enumerate(results["arms"]):
        cells = []
        for title in TITLES.values():
            own = [row["cells"][place] for row in rows if row["group"] == title]
            cells.append(Text(own[0]["value"], no_wrap=True))
            cell = Text(own[1]["value"] if len(own) > 1 else "", justify="right", no_wrap=True)
            if len(own) > 1 and own[1]["interval"]:
                cell.append(f"\n{own[1]['interval'].replace(' to ', '…')}", style="dim")
            cells.append(cell)
        table.add_row(Text(arm["name"]), *cells)
    return table
