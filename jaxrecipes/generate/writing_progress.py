"""The line that a person watches while the engine writes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jaxrecipes.generate.engine import OnProgress

_PLAIN_LINE_SECONDS = 10.0


@contextmanager
def writing_progress(console: Console, *, title: str, total: int) -> Iterator[OnProgress]:
    """Shows texts written, tokens a second and the time that is left.

    On a terminal it is one live line; elsewhere a plain line every ten seconds and at the end.

    Args:
        console: Where to write.
        title: What is written.
        total: Texts of the whole call.

    Yields:
        The `on_progress` of `Engine.write`.
    """
    began = last_line = time.monotonic()

    def speed(tokens: int) -> str:
        return f"{tokens / max(time.monotonic() - began, 1e-9):,.0f} tokens/s"

    def print_line(done: int, tokens: int) -> None:
        nonlocal last_line
        now = time.monotonic()
        if now - last_line < _PLAIN_LINE_SECONDS and done != total:
            return
        last_line = now
        left = f"{(now - began) / done * (total - done):.0f} s" if done else "-"
        console.print(f"{title}  {done}/{total}  {speed(tokens)}  ETA {left}", highlight=False)

    if not console.is_terminal:
        yield print_line
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
        task = progress.add_task(title, total=total, text="compiling …")
        yield lambda done, tokens: progress.update(task, completed=done, text=speed(tokens))
