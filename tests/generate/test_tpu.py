"""The compiler's view of a decoding step on a TPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_a_step_moves_little_more_than_weights_and_cache():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: no TPU compiler")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "generate_tpu.py"), "--case", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ratio = float(done.stdout.splitlines()[-1].split("|")[-2])
    assert 1.0 <= ratio <= 1.3
