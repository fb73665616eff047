"""One line for a call of a teacher: answers, tokens a second, the time that is left."""

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

PLAIN_LINE_SECONDS = 10.0


@contextmanager
def asking(console: Console, title: str) -> Iterator[Callable[[AskProgress], None]]:
    """Shows how far an `ask` is.

    On a terminal it is one live line; elsewhere a plain line every ten seconds and at the end.

    Args:
        console: Where to write.
        title: What is asked for.

    Yields:
        A function for `ask`'s `progress`.
    """
    began = last = time.monotonic()

    def describe(state: AskProgress) -> str:
        rate = state.new_tokens / max(time.monotonic() - began, 1e-9)
        found = f"  {state.found:,} found" if state.found else ""
        failed = f"  {state.failed:,} failed" if state.failed else ""
        return f"{rate:,.0f} tokens/s{found}{failed}"

    if not console.is_terminal:

        def plain(state: AskProgress) -> None:
            nonlocal last
            now = time.monotonic()
            new = state.answered + state.failed
            if not new or (now - last < PLAIN_LINE_SECONDS and state.done != state.total):
                return
            last = now
            left = (now - began) / new * (state.total - state.done)
            line = f"{title}  {state.done}/{state.total}  {describe(state)}  ETA {left:.0f} s"
            console.print(line, highlight=False)

        yield plain
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
        bar = progress.add_task(title, total=None, text="")

        def live(state: AskProgress) -> None:
            progress.update(bar, total=state.total, completed=state.done, text=describe(state))

        yield live
