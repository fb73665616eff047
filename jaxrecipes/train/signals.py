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


class _Interrupted(BaseException):
    """Ctrl-C on its way up.

    A `KeyboardInterrupt` that passes through `exec` of a string (dataclasses and named tuples are
    made so) is remembered by Python, which then ends by SIGINT whatever exit code it is given.
    """


@dataclass
class StopRequest:
    """Which signal asked for an end, if any did.

    Attributes:
        signal_number: `signal.SIGINT`, `signal.SIGTERM` or None.
    """

    signal_number: int | None = None


@contextmanager
def termination_as_error() -> Iterator[None]:
    """Turns SIGTERM inside the block into a `PreemptedError`, and Ctrl-C into `KeyboardInterrupt`.

    For the work before and after the training loop, whose files are complete or absent at any
    moment. Inside the loop `stop_requests` takes over. Outside of the main thread, where Python
    cannot install handlers, nothing is caught.

    A handler runs between any two bytecodes of the main thread, and so also inside a finalizer or
    a callback of the garbage collector (JAX installs one), where Python prints an exception and
    drops it. Such a drop is seen here and the error raised again a moment later. Where Ctrl-C is
    ignored, as in a background job, it stays so.

    Raises:
        PreemptedError: SIGTERM arrived.
        KeyboardInterrupt: Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    dropped: list[type[BaseException]] = []

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(number, previous[signal.Signals(number)])
        raise _Terminated if number == signal.SIGTERM else _Interrupted

    def raise_again(number: int, frame: FrameType | None) -> None:
        raise dropped[-1]

    def notice_drop(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_type in (_Terminated, _Interrupted):
            dropped.append(unraisable.exc_type)
            signal.setitimer(signal.ITIMER_REAL, _RAISE_AGAIN_SECONDS)
        else:
            previous_hook(unraisable)

    previous_hook, sys.unraisablehook = sys.unraisablehook, notice_drop
    previous_alarm = signal.signal(signal.SIGALRM, raise_again)
    caught = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        caught.append(signal.SIGINT)
    previous = {number: signal.getsignal(number) for number in caught}
    for number in caught:
        signal.signal(number, handle)
    try:
        yield
    except _Terminated:
        raise PreemptedError(
            "asked to end (SIGTERM); what was finished is kept: run the same command again to go on"
        ) from None
    except _Interrupted:
        raise KeyboardInterrupt from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)
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
