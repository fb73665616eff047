"""The line that a person watches while a teacher writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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

from jaxrecipes.generate.ask import AskProgress

_PLAIN_LINE_SECONDS = 10.0


@contextmanager
def asking(console: Console, title: str) -> Iterator[Callable[[AskProgress], None]]:
    """Shows requests done, tokens a second, failed requests and the time that is left.

    On a terminal it is one live line; elsewhere a plain line every ten seconds and at the end.

    Args:
        console: Where to write.
        title: What is written.

    Yields:
        The `progress` of `ask`.
    """
    began = last_line = time.monotonic()

    def describe(state: AskProgress) -> str:
        seconds = max(time.monotonic() - began, 1e-9)
        parts = [f"{state.new_tokens / seconds:,.0f} tokens/s"] if state.new_tokens else []
        parts += [f"{state.found} found"] if state.found else []
        parts += [f"{state.failed} failed"] if state.failed else []
        return "  ".join(parts)

    def print_line(state: AskProgress) -> None:
        nonlocal last_line
        now = time.monotonic()
        if now - last_line < _PLAIN_LINE_SECONDS and state.done != state.total:
            return
        last_line = now
        done = state.answered + state.failed
        left = (now - began) / max(done, 1) * (state.total - state.done)
        line = f"{title}  {state.done}/{state.total}  {describe(state)}  ETA {left:.0f} s"
        console.print(line, highlight=False)

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
        task = progress.add_task(title, total=None, text="")

        def update_bar(state: AskProgress) -> None:
            progress.update(task, completed=state.done, total=state.total, text=describe(state))

        yield update_bar
