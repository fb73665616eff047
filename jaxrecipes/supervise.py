"""A parent that outlives the process that works, and says what happened when that is aborted.

libtpu aborts the process where a check of its compiler fails. jaxlib aborts the other hosts'
processes, in the middle of a stack trace, when the coordinator of a run with several hosts
disappears; its client's callback for that cannot be used from Python (`std::bad_cast`, jaxlib 0.10
and 0.12). So the process that works is a child of one that waits.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType

_PR_SET_PDEATHSIG = 1


def supervise(message: str, exit_code: int) -> None:
    """Forks: the child returns, the parent waits for it and ends as it does.

    Call it before anything starts threads. Signals that ask for an end are handed on to the child,
    which is in a process group of its own so that it gets each of them once. A parent that is
    killed takes the child with it.

    Args:
        message: What the parent says on stderr when the child is aborted.
        exit_code: What it returns then.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        return

    def hand_on(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hand_on)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGABRT:
        print(f"error: {message}", file=sys.stderr, flush=True)
        code = exit_code
    # Without the clean-up at exit, which belongs to the child.
    os._exit(code if code >= 0 else 128 - code)
