"""Charts of a run as PNG files: learned against forgotten, losses along the run.

Dark on light, in colours that colour-blind readers can tell apart (Okabe and Ito 2008), each arm
with a marker of its own as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxrecipes.report.numbers import number

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_INK, _FAINT = "#1b1f24", "#6b7480"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#aab2bd",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "grid.color": "#e4e8ed",
    "grid.linewidth": 0.8,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
Results = Mapping[str, Any]


@dataclass(frozen=True)
class Chart:
    """A chart that was written.

    Attributes:
        path: The PNG file.
        title: What it shows.
        description: The same in words, for readers who do not see it.
    """

    path: Path
    title: str
    description: str


def draw_charts(results: Results, folder: Path) -> list[Chart]:
    """Draws all charts that the results have data for.

    Args:
        results: `results.json`, see `jaxrecipes.report.results`.
        folder: Where the PNG files go; it is made.

    Returns:
        The charts, the most telling first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = ", ".join(arm["name"] for arm in results["arms"])
    charts = []
    with matplotlib.rc_context(STYLE):
        if any(len(_frontier_points(arm)) > 1 for arm in results["arms"]):
            charts.append(
                save_chart(
                    _learned_forgotten(results),
                    folder / "learned_forgotten.png",
                    "Learned against forgotten",
                    f"One line an arm ({names}), from the untrained model at the lower left: to "
                    "the right what it learned, upwards what it forgot. Whiskers are 95 % "
                    "intervals. Lower lines are better.",
                )
            )
        charts.append(
            save_chart(
                _losses(results),
                folder / "losses.png",
                "Loss along the run",
                f"Loss on the learn set and on the keep set over training tokens ({names}). Bands "
                "are 95 % intervals of the change from the base model, the dashed line.",
            )
        )
        if any(arm["training"] for arm in results["arms"]):
            charts.append(
                save_chart(
                    _training(results),
                    folder / "training_loss.png",
                    "Training loss",
                    f"Loss of each training step over training tokens ({names}), faint, and its "
                    "running mean.",
                )
            )
    return charts


def _frontier_points(arm: Results) -> list[tuple[Results, Results]]:
    """Returns (gain's change, KL) of each evaluation that has both."""
    pairs = [
        (record["learn"].get("change"), (record.get("keep") or {}).get("kl"))
        for record in arm["evaluations"]
    ]
    return [
        (change, kl)
        for change, kl in pairs
        if change and kl and change["value"] is not None and kl["value"] is not None
    ]


def _learned_forgotten(results: Results) -> Figure:
    figure = Figure(figsize=(6.6, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, arm in enumerate(results["arms"]):
        points = _frontier_points(arm)
        if len(points) < 2:
            continue
        x, x_error = _whiskers([change for change, _ in points], flip=True)
        y, y_error = _whiskers([kl for _, kl in points])
        colour, marker = _look(index)
        axes.errorbar(
            x, y, xerr=x_error, yerr=y_error, fmt="none", ecolor=colour, elinewidth=1, alpha=0.35
        )
        axes.plot(x, y, color=colour, marker=marker, markersize=5.5, lw=1.8, label=arm["name"])
    comparison = results["equal_learning"]["kl"]
    if comparison["gain"] is not None and len(results["arms"]) > 1:
        axes.axvline(comparison["gain"], color=_FAINT, lw=1, ls=(0, (2, 3)), zorder=1)
        axes.annotate(
            f"equal learning: {number(comparison['gain'])}",
            # At the lower end: lines begin at the lower left and end above.
            (comparison["gain"], 0),
            xycoords=("data", "axes fraction"),
            xytext=(-4, 36),
            textcoords="offset points",
            ha="right",
            va="bottom",
            rotation=90,
            fontsize=8.5,
            color=_FAINT,
        )
    axes.axhline(0, color="#aab2bd", lw=0.8, zorder=1)
    axes.set_xlabel("learned: fall of the loss on the learn set, nats a token  →")
    axes.set_ylabel("forgotten: KL(base || model)\non the keep set, nats a token  →")
    axes.legend(loc="upper left")
    return figure


def _losses(results: Results) -> Figure:
    sets = [
        (name, title)
        for name, title in (("learn", "Learn set"), ("keep", "Keep set"))
        if any(record.get(name) for arm in results["arms"] for record in arm["evaluations"])
    ]
    figure = Figure(figsize=(6.6, 2.9 * len(sets) + 0.4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(sets), 1, sharex=True))
    for panel, (name, title) in zip(panels, sets, strict=True):
        _loss_panel(panel, results, name)
        panel.set_title(title)
        panel.set_ylabel("loss, nats a token")
    panels[0].legend(loc="best")
    panels[-1].set_xlabel("training tokens")
    _token_axis(panels[-1])
    return figure


def _loss_panel(axes: Axes, results: Results, name: str) -> None:
    base = None
    for index, arm in enumerate(results["arms"]):
        records = [record for record in arm["evaluations"] if record.get(name)]
        if not records:
            continue
        x = [record["tokens"] for record in records]
        loss = [record[name]["loss"] for record in records]
        change = [record[name].get("change") for record in records]
        y, error = _whiskers(loss)
        if all(one and one["value"] is not None for one in change):
            # How the loss moved is known better than the loss: documents differ more than models.
            moved, error = _whiskers(change)
            base = float(y[-1] - moved[-1])
        colour, marker = _look(index)
        axes.fill_between(x, y - error[0], y + error[1], color=colour, alpha=0.16, lw=0)
        axes.plot(x, y, color=colour, marker=marker, markersize=5, lw=1.8, label=arm["name"])
    if base is not None:
        axes.axhline(base, color=_FAINT, lw=1, ls=(0, (5, 3)), zorder=1, label="base")


def _training(results: Results) -> Figure:
    figure = Figure(figsize=(6.6, 3.3), layout="constrained")
    axes = figure.subplots()
    for index, arm in enumerate(results["arms"]):
        steps = [step for step in arm["training"] if step["loss"] is not None]
        if not steps:
            continue
        x = [step["tokens"] for step in steps]
        y = np.asarray([step["loss"] for step in steps], float)
        colour, _ = _look(index)
        axes.plot(x, y, color=colour, lw=0.8, alpha=0.3)
        axes.plot(x, running_mean(y), color=colour, lw=1.9, label=arm["name"])
    axes.set_xlabel("training tokens")
    axes.set_ylabel("loss, nats a token")
    _token_axis(axes)
    axes.legend(loc="upper right")
    return figure


def running_mean(values: np.ndarray) -> np.ndarray:
    """Averages each value with those before it, over a tenth of all: [n] -> [n]."""
    width = max(1, len(values) // 10)
    total = np.cumsum(np.concatenate([np.zeros(1), values]))
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(stop - width, 0)
    return (total[stop] - total[start]) / (stop - start)


def _whiskers(measured: Sequence[Results], *, flip: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns values [n] and distances to the interval's ends [2, n]; no interval, no distance."""
    rows = []
    for one in measured:
        value = one["value"]
        low = value if one.get("low") is None else one["low"]
        high = value if one.get("high") is None else one["high"]
        rows.append((-value, -high, -low) if flip else (value, low, high))
    values, low, high = np.asarray(rows, float).T
    return values, np.clip(np.stack([values - low, high - values]), 0, None)


def _look(index: int) -> tuple[str, str]:
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def _token_axis(axes: Axes) -> None:
    """Labels tokens as 20k, 1.5M."""
    formatter = matplotlib.ticker.EngFormatter(sep="")
    axes.xaxis.set_major_formatter(formatter)
    axes.set_xlim(left=0)


def save_chart(figure: Figure, path: Path, title: str, description: str) -> Chart:
    """Writes a figure as a PNG file; the same numbers give the same bytes."""
    FigureCanvasAgg(figure)
    # No software version in the file.
    figure.savefig(path, format="png", dpi=170, metadata={"Software": None})
    return Chart(path, title, description)
