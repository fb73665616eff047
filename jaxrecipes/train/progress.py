"""The line that a person watches while a model trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_LINE_SECONDS = 10.0
Update = Callable[[int, Mapping[str, Any]], None]


@contextmanager
def training_progress(console: Console, *, title: str, start: int, total: int) -> Iterator[Update]:
    """Shows step, smoothed loss, tokens a second, skipped steps and the time that is left.

    On a terminal it is one live line; elsewhere a plain line every ten seconds and at the end.

    Args:
        console: Where to write.
        title: Name of the arm.
        start: Steps done before.
        total: Steps of the whole run.

    Yields:
        A function of the step and its metrics (`loss`, `tokens_per_second`, `skipped`).
    """
    smoothed: list[float] = []

    def describe(metrics: Mapping[str, Any]) -> str:
        loss = float(metrics["loss"])
        smoothed.append(loss if not smoothed else 0.9 * smoothed[-1] + 0.1 * loss)
        text = f"loss {smoothed[-1]:.3f}  {metrics['tokens_per_second']:,.0f} tokens/s"
        skipped = int(metrics["skipped"])
        return text + (f"  [bold red]{skipped} skipped[/]" if skipped else "")

    if not console.is_terminal:
        with _plain_lines(console, title, start, total, describe) as update:
            yield update
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, expand=True) as progress:
        task = progress.add_task(title, total=total, completed=start, text="compiling …")

        def update_bar(step: int, metrics: Mapping[str, Any]) -> None:
            progress.update(task, completed=step, text=describe(metrics))

        yield update_bar


@contextmanager
def _plain_lines(
    console: Console,
    title: str,
    start: int,
    total: int,
    describe: Callable[[Mapping[str, Any]], str],
) -> Iterator[Update]:
    began = last_line = time.monotonic()

    def update(step: int, metrics: Mapping[str, Any]) -> None:
        nonlocal last_line
        text = describe(metrics)
        now = time.monotonic()
        if now - last_line < PLAIN_LINE_SECONDS and step != total:
            return
        last_line = now
        left = (now - began) / max(step - start, 1) * (total - step)
        console.print(f"{title}  step {step}/{total}  {text}  ETA {left:.0f} s", highlight=False)

    yield update
