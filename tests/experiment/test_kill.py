"""A run that is killed at any moment and started again ends with the same bytes.

`pytest --kills 12 tests/experiment/test_kill.py` tries twelve moments; without the option two.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.experiment.small import small_config, write_config

pytestmark = pytest.mark.slow

ARM = Path("arms") / "block_expansion"


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run.

    Attributes:
        seconds: Wall time of a second such run, whose programs were compiled before.
        weights: File name -> SHA-256 of each weights file.
        losses: (step, loss) of every step.
        environment: Environment of every process.
    """

    seconds: float
    weights: dict[str, str]
    losses: list[tuple[int, float]]
    environment: Mapping[str, str]


def _start(output: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    config = write_config(output.with_suffix(".yaml"), small_config(output))
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "jaxrecipes", "run", str(config)],
        env=dict(environment),
        # A shell that runs the tests in the background lets them, and so their children, ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _to_the_end(output: Path, environment: Mapping[str, str]) -> None:
    process = _start(output, environment)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed


def _weights(output: Path) -> dict[str, str]:
    files = sorted((output / ARM / "final" / "model").glob("*.safetensors"))
    assert files
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _losses(output: Path) -> list[tuple[int, float]]:
    lines = (output / ARM / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(record["step"], record["loss"]) for record in map(json.loads, lines)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """An uninterrupted run, and how long it takes."""
    folder = tmp_path_factory.mktemp("kill")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    _to_the_end(folder / "first", environment)
    began = time.monotonic()
    _to_the_end(folder / "second", environment)
    seconds = time.monotonic() - began
    losses = _losses(folder / "second")
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]
    assert _weights(folder / "first") == _weights(folder / "second")
    return Reference(seconds, _weights(folder / "second"), losses, environment)


def test_sigkill_at_any_moment(
    kill_number: int, kills: int, reference: Reference, tmp_path: Path
) -> None:
    # One moment in each of `kills` equal parts of the run, at a place that the seed decides.
    share = (kill_number + random.Random(kill_number).random()) / kills
    output = tmp_path / "out"
    process = _start(output, reference.environment)
    try:
        process.wait(timeout=share * reference.seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    printed, _ = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL)
    last = printed.splitlines()[-1] if printed else "nothing was printed yet"
    print(f"killed after {share * reference.seconds:.1f} of {reference.seconds:.1f} s: {last}")
    _to_the_end(output, reference.environment)
    assert _weights(output) == reference.weights
    assert _losses(output) == reference.losses


@pytest.mark.parametrize(
    ("number", "code", "moment"),
    [
        pytest.param(signal.SIGTERM, 75, "in training", marks=pytest.mark.long),
        pytest.param(signal.SIGINT, 130, "before training", marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, 75, "before training", marks=pytest.mark.long),
        pytest.param(signal.SIGINT, 130, "in training", marks=pytest.mark.long),
    ],
)
def test_signals_save_and_say_so(
    number: signal.Signals, code: int, moment: str, reference: Reference, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    process = _start(output, reference.environment)
    # The lock is the first file of a run; the metrics are opened right before the first step.
    sign = output / (".lock" if moment == "before training" else ARM / "metrics.jsonl")
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline and not sign.exists():
        time.sleep(0.001)
    time.sleep(0.05)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == code, printed
    assert "Traceback" not in printed
    _to_the_end(output, reference.environment)
    assert _weights(output) == reference.weights
    assert _losses(output) == reference.losses
