"""Ctrl-C and SIGTERM as a request that the training loop answers between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """Which signal asked for an end, if any did.

    Attributes:
        signal_number: `signal.SIGINT`, `signal.SIGTERM` or None.
    """

    signal_number: int | None = None


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
