"""Who does the work of a stage: this process (here) or the workers of a cluster (Ray).

A stage is a number of pieces that need nothing of each other. What makes a piece is the same
function everywhere; an executor only decides where it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

# Makes piece n and returns JSON values that tell of it.
Worker = Callable[[int], dict[str, Any]]
_PROGRESS_SECONDS = 10.0


@dataclass(frozen=True)
class Work:
    """A stage's work.

    Attributes:
        name: What it is, for messages.
        pieces: Number of pieces.
        make_worker: Returns what makes a piece; called once for each process that takes part. It
            is sent to other machines, so it holds plain values, paths and arrays.
        memory: Bytes that making one piece takes, about; 0 where it is little.
        accelerator: Whether accelerators make it faster.
        keeps: Whether a worker prepares something that serves all of its pieces, as a model does.
    """

    name: str
    pieces: int
    make_worker: Callable[[], Worker]
    memory: int = 0
    accelerator: bool = False
    keeps: bool = False


class Executor(Protocol):
    """Makes all pieces of a stage."""

    def run(self, work: Work) -> list[dict[str, Any]]:
        """Returns what the worker returned for each piece, in the order of the pieces.

        Raises:
            JaxrecipesError: What a worker raised; pieces that are finished stay.
        """
        ...


class LocalExecutor:
    """Makes one piece after the other in this process."""

    def __init__(self, log: Callable[[str], None] | None = None) -> None:
        """Starts nothing. `log` is called with a line every ten seconds."""
        self._log = log

    def run(self, work: Work) -> list[dict[str, Any]]:
        """See ``Executor``."""
        if not work.pieces:
            return []
        progress = Progress(work, self._log)
        worker, results = work.make_worker(), []
        for piece in range(work.pieces):
            results.append(worker(piece))
            progress.done()
        return results


class Progress:
    """Says how many pieces are done, at most every ten seconds."""

    def __init__(self, work: Work, log: Callable[[str], None] | None) -> None:
        """Begins to count."""
        self._work, self._log = work, log
        self._finished = 0
        self._began = self._last = time.monotonic()

    def done(self) -> None:
        """Counts a piece."""
        self._finished += 1
        now = time.monotonic()
        if self._log is not None and now - self._last >= _PROGRESS_SECONDS:
            self._last = now
            self._log(
                f"{self._work.name}: {self._finished} of {self._work.pieces} pieces, "
                f"{now - self._began:.0f} s"
            )
