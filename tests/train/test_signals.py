"""Signals that arrive where Python drops an exception: in a finalizer, in a callback of the gc."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxrecipes.errors import PreemptedError
from jaxrecipes.train.signals import termination_as_error

BOTH = pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGTERM, PreemptedError), (signal.SIGINT, KeyboardInterrupt)],
)


@pytest.fixture(autouse=True)
def _python_answers_ctrl_c():
    # A shell that starts pytest in the background has it ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _wait():
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        time.sleep(0.001)


@BOTH
def test_a_signal_inside_a_finalizer_is_not_lost(number, error):
    class Finalized:
        def __del__(self):
            os.kill(os.getpid(), number)
            time.sleep(0.001)

    with pytest.raises(error), termination_as_error():
        Finalized()
        _wait()


@BOTH
def test_a_signal_inside_a_gc_callback_is_not_lost(number, error):
    def callback(phase, info):
        if phase == "start":
            gc.callbacks.remove(callback)
            os.kill(os.getpid(), number)
            time.sleep(0.001)

    gc.callbacks.append(callback)
    with pytest.raises(error), termination_as_error():
        gc.collect()
        _wait()


@BOTH
def test_no_except_exception_on_the_way_takes_a_signal_for_its_own(number, error):
    with pytest.raises(error), termination_as_error():
        try:
            os.kill(os.getpid(), number)
            _wait()
        except Exception:
            pytest.fail("a library would have gone on here")


def test_ctrl_c_inside_of_a_string_that_is_executed_keeps_the_exit_code(tmp_path):
    # As while a dataclass is made: Python would end by SIGINT and not with 130.
    (tmp_path / "program.py").write_text("""
import signal, sys
from jaxrecipes.train.signals import termination_as_error
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with termination_as_error():
        exec("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)")
except KeyboardInterrupt:
    sys.exit(130)
""")
    paths = f"{tmp_path}:{Path(__file__).parents[2]}"
    command = [sys.executable, "-m", "program"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, timeout=60, check=False)
    assert done.returncode == 130


def test_ctrl_c_that_is_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with termination_as_error():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)


def test_other_dropped_exceptions_are_printed_as_before_and_all_is_put_back(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    before = sys.unraisablehook

    class Broken:
        def __del__(self):
            raise ValueError("in a finalizer")

    with termination_as_error():
        Broken()
    assert [unraisable.exc_type for unraisable in seen] == [ValueError]
    assert sys.unraisablehook is before
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    with pytest.raises(PreemptedError), termination_as_error():
        os.kill(os.getpid(), signal.SIGTERM)
        _wait()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
