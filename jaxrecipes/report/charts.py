"""Charts of a run as PNG images."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxrecipes.report.results import measured

# Okabe and Ito's palette, distinguishable without colour vision; markers tell arms apart as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# A training loss is noisy: drawn pale, with its mean over this share of the run on top.
_SMOOTHING_SHARE = 0.05


def learned_forgotten_chart(results: Mapping[str, Any]) -> bytes | None:
    """Draws for each arm what it had forgotten when it had learned so much.

    Args:
        results: From `collect_results`.

    Returns:
        PNG: gain in nats a token on the learn set across, KL(base || arm) on the keep set up, with
        95 % intervals; None where no arm has both.
    """
    figure, axes = _figure()
    drawn = False
    for index, arm in enumerate(results["arms"]):
        points = [
            (change, divergence)
            for record in arm["evaluations"]
            if record["step"] > 0
            and (change := measured(record, "learn", "change"))
            and (divergence := measured(record, "keep", "kl"))
        ]
        if not points:
            continue
        drawn = True
        changes, divergences = zip(*points, strict=True)
        # A gain is minus a change, so its whisker down is the change's whisker up.
        across = _whiskers(changes)[::-1]
        up = _whiskers(divergences)
        colour, marker = _style(index)
        x = [0.0] + [-change["value"] for change in changes]
        y = [0.0] + [divergence["value"] for divergence in divergences]
        axes.plot(x, y, color=colour, marker=marker, markersize=5, label=_label(arm["name"]))
        axes.errorbar(
            x[1:], y[1:], xerr=across, yerr=up, fmt="none", color=colour, alpha=0.4, linewidth=1
        )
    if not drawn:
        return None
    gain = results["equal_learning"]["gain"]
    if gain is not None:
        axes.axvline(gain, color="#666666", linestyle=":", label="equal learning")
    axes.set_xlabel("learned: fall of the learn loss (nats/token)")
    axes.set_ylabel("forgotten: KL from the base on keep text (nats/token)")
    return _png(figure, axes)


def evaluation_loss_chart(results: Mapping[str, Any], block: str) -> bytes | None:
    """Draws the loss on held-out text over the tokens trained on.

    Args:
        results: From `collect_results`.
        block: "learn" or "keep".

    Returns:
        PNG with 95 % intervals of the change since the base; None where it was not measured.
    """
    figure, axes = _figure()
    drawn = False
    for index, arm in enumerate(results["arms"]):
        records = [record for record in arm["evaluations"] if measured(record, block, "loss")]
        if not records:
            continue
        drawn = True
        colour, marker = _style(index)
        tokens = [record["tokens"] for record in records]
        losses = [record[block]["loss"]["value"] for record in records]
        axes.plot(
            tokens, losses, color=colour, marker=marker, markersize=5, label=_label(arm["name"])
        )
        changes = [measured(record, block, "change") or {"value": 0.0} for record in records]
        axes.errorbar(
            tokens,
            losses,
            yerr=_whiskers(changes),
            fmt="none",
            color=colour,
            alpha=0.4,
            linewidth=1,
        )
    if not drawn:
        return None
    axes.set_xlabel("supervised tokens trained on")
    axes.set_ylabel(f"loss on held-out {block} text (nats/token)")
    return _png(figure, axes)


def training_loss_chart(results: Mapping[str, Any]) -> bytes | None:
    """Draws the training loss of every step and its running mean; None without steps."""
    figure, axes = _figure()
    drawn = False
    for index, arm in enumerate(results["arms"]):
        entries = [entry for entry in arm["metrics"] if entry["loss"] is not None]
        if not entries:
            continue
        drawn = True
        colour, _ = _style(index)
        tokens = np.asarray([entry["tokens"] for entry in entries], float)
        losses = np.asarray([entry["loss"] for entry in entries], float)
        axes.plot(tokens, losses, color=colour, alpha=0.25, linewidth=0.8)
        means = _running_mean(losses, max(1, round(len(losses) * _SMOOTHING_SHARE)))
        axes.plot(tokens, means, color=colour, linewidth=1.8, label=_label(arm["name"]))
    if not drawn:
        return None
    axes.set_xlabel("supervised tokens trained on")
    axes.set_ylabel("training loss (nats/token)")
    return _png(figure, axes)


def _figure() -> tuple[Figure, Axes]:
    # Figures made without pyplot leave no global state and need no display.
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _style(index: int) -> tuple[str, str]:
    return _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]


def _label(name: str) -> str:
    # A leading underscore would hide a line from the legend; a dollar sign would start a formula.
    return ("\u200b" + name if name.startswith("_") else name).replace("$", r"\$")


def _whiskers(intervals: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Returns float64 [2, intervals]: lengths down and up, 0 where there is no interval."""
    lengths = np.zeros((2, len(intervals)))
    for index, interval in enumerate(intervals):
        for side, end in enumerate(("low", "high")):
            if interval.get(end) is not None:
                lengths[side, index] = max(0.0, abs(interval[end] - interval["value"]))
    return lengths


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Returns the mean of the last `width` values at each position; skipped (NaN) ones left out."""
    finite = np.isfinite(values)
    sums = np.cumsum(np.where(finite, values, 0.0))
    counts = np.cumsum(finite).astype(float)
    sums[width:] -= sums[:-width].copy()
    counts[width:] -= counts[:-width].copy()
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _png(figure: Figure, axes: Axes) -> bytes:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
