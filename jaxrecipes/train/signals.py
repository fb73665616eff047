"""Ctrl-C and SIGTERM: answered by the training loop between two steps, errors elsewhere."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from jaxrecipes.errors import PreemptedError

_RAISE_AGAIN_SECONDS = 0.02


class _Terminated(BaseException):
    """SIGTERM on its way up, where no `except Exception` of a library takes it for its own."""


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

    A handler runs between any two bytecodes of the main thread, and so also inside a finalizer or
    a callback of the garbage collector (JAX installs one), where Python prints an exception and
    drops it. Such a drop is seen here, for Ctrl-C too, and the error raised again a moment later.

    Raises:
        PreemptedError: SIGTERM arrived.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    dropped: list[type[BaseException]] = []

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, previous_handler)
        raise _Terminated

    def raise_again(number: int, frame: FrameType | None) -> None:
        raise dropped[-1]

    def notice_drop(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_type in (_Terminated, KeyboardInterrupt):
            dropped.append(unraisable.exc_type)
            signal.setitimer(signal.ITIMER_REAL, _RAISE_AGAIN_SECONDS)
        else:
            previous_hook(unraisable)

    previous_hook, sys.unraisablehook = sys.unraisablehook, notice_drop
    previous_alarm = signal.signal(signal.SIGALRM, raise_again)
    previous_handler = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    except _Terminated:
        raise PreemptedError(
            "asked to end (SIGTERM); what was finished is kept: run the same command again to go on"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, previous_handler)
        signal.signal(signal.SIGALRM, previous_alarm)
        sys.unraisablehook = previous_hook


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
