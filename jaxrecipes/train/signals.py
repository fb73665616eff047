"""Ctrl-C and SIGTERM: answered by the training loop between two steps, errors elsewhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from jaxrecipes.errors import PreemptedError


@dataclass
class StopRequest:
    """Which signal asked for an end, if any did.

    Attributes:
        signal_number: `signal.SIGINT`, `signal.SIGTERM` or None.
    """

    signal_number: int | None = None


@contextmanager
def termination_as_error() -> Iterator[None]:
    """Turns SIGTERM inside the block into a `PreemptedError`, as Python does with Ctrl-C.

    For the work before and after the training loop, whose files are complete or absent at any
    moment. Inside the loop `stop_requests` takes over. Outside of the main thread, where Python
    cannot install handlers, nothing is caught.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, previous)
        raise PreemptedError(
            "asked to end (SIGTERM); what was finished is kept: run the same command again to go on"
        )

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catches the first SIGINT and SIGTERM inside the block; a second one acts as usual.

    Outside of the main thread, where Python cannot install handlers, nothing is caught.

    Yields:
        The request, filled in by the handler.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        request.signal_number = number
        restore()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    try:
        yield request
    finally:
        restore()
