"""The benchmark against PEFT: its whole path on a CPU, and the same loss on both sides."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "vs_peft.py"
if not SCRIPT.is_file():
    pytest.skip("there are no benchmarks beside the tests", allow_module_level=True)


@pytest.mark.long
@pytest.mark.parametrize("documents", ["1", "4"])
def test_both_sides_start_with_the_same_loss_and_train_as_many_parameters(documents: str) -> None:
    pytest.importorskip("peft")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--dry", "--rounds", "1", "--steps", "2"]
        + ["--documents", documents],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = re.findall(r"^\| (ours|PEFT) \(.*?\) \| ([\d,]+) \| ([\d.]+) \|", done.stdout, re.M)
    assert [name for name, _, _ in rows] == ["ours", "PEFT"]
    (_, ours, our_loss), (_, theirs, their_loss) = rows
    assert ours == theirs
    assert float(our_loss) == pytest.approx(float(their_loss), abs=2e-5)
    assert re.search(r"\*\*ours / PEFT\*\* \|.*\*\*[\d.]+\*\*.*\*\*[\d.]+\*\*", done.stdout)
