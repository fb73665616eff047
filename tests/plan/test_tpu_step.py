"""What the TPU compiler makes of sharded weights, where it was once wrong."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrecipes.plan.hlo_text import read_program, tuple_elements
from tests.plan.tpu_step import CHIPS, HIDDEN, INTERMEDIATE, KEY_VALUE, LAYERS, QUERY

ROOT = Path(__file__).parents[2]
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, the TPU compiler, is not installed (the extra `tpu` brings it)")
    file = tmp_path_factory.mktemp("tpu") / "step.hlo"
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.plan.tpu_step", os.fspath(file)],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return file.read_text(encoding="utf-8")


def arrays(text: str) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (dtype, tuple(int(length) for length in dimensions.split(",") if length))
        for dtype, dimensions in _ARRAY.findall(text)
    ]


def gathered(program: str) -> list[tuple[str, tuple[int, ...]]]:
    found = []
    for computation in read_program(program).computations.values():
        for instruction in computation.instructions.values():
            if instruction.opcode == "all-gather":
                found += arrays(instruction.type)
            elif instruction.opcode == "all-gather-start":
                found += arrays(tuple_elements(instruction.type)[1])
    return found


@pytest.mark.long
def test_weights_travel_in_the_compute_dtype(program):
    """Once the compiler gathered float32 weights and cast afterwards: twice the traffic."""
    sizes = {HIDDEN * width for width in (INTERMEDIATE, QUERY, KEY_VALUE)}
    weights = [(dtype, shape) for dtype, shape in gathered(program) if math.prod(shape) in sizes]
    assert {math.prod(shape) for _, shape in weights} == sizes
    assert {dtype for dtype, _ in weights} == {"bf16"}
    smallest = min(sizes)
    wide = {dtype for dtype, shape in gathered(program) if math.prod(shape) >= smallest}
    assert not wide & {"f32", "s32", "u32"}


def test_no_second_copy_of_all_weights(program):
    """Once the compiler cast the stack of all layers before the loop, and kept that copy."""
    part = HIDDEN // CHIPS
    stacks = {(LAYERS, part, width) for width in (INTERMEDIATE, QUERY, KEY_VALUE)}
    stacks |= {(LAYERS, width, part) for width in (INTERMEDIATE, QUERY)}
    found = arrays(program)
    assert {shape for dtype, shape in found if dtype == "f32"} >= stacks
    assert not {shape for dtype, shape in found if dtype == "bf16"} & stacks
