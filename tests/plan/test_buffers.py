"""Buffers at the peak, against what the compiler itself reports."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxrecipes.plan.buffers import TEMPORARY, compile_with_buffers, read_buffers
from tests.plan.test_hlo import cpu, run, tpu

__all__ = ["cpu", "tpu"]


def test_the_peak_is_the_compilers_and_names_what_is_in_it():
    def loss(weights, inputs):
        hidden = inputs
        for weight in weights:
            hidden = jnp.tanh(hidden @ weight)
        return (hidden**2).sum()

    weights = [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * 3
    inputs = jax.ShapeDtypeStruct((4096, 64), jnp.float32)
    compilation = compile_with_buffers(jax.jit(jax.grad(loss)).lower(weights, inputs))
    report = compilation.buffers
    assert report is not None and compilation.compiled is not None
    memory = compilation.compiled.memory_analysis()
    # The CPU's `peak_memory_in_bytes` leaves the temporaries out; its parts are right.
    reserved = memory.argument_size_in_bytes + memory.output_size_in_bytes
    reserved += memory.temp_size_in_bytes
    assert report.assigned_bytes == pytest.approx(reserved, rel=0.001)
    assert 0.9 * reserved < report.peak_bytes <= report.assigned_bytes
    assert sum(buffer.size for buffer in report.buffers) == report.peak_bytes
    assert report.total("argument") == memory.argument_size_in_bytes
    activations = [b for b in report.buffers if b.kind == TEMPORARY and b.size == 4096 * 64 * 4]
    assert any("tanh" in b.operation or "dot" in b.operation for b in activations)
    assert any(b.source.startswith(__file__) for b in activations)
    assert "f32[4096,64]" in report.table()
    assert len(report.table(rows=2).splitlines()) == 3


@pytest.mark.slow
def test_on_a_tpu_device_memory_is_what_the_compiler_reserves(tpu):
    for name, result in tpu.items():
        buffers = result["buffers"]
        # The compiler's own peak counts values in vector memory, too.
        assert 0 < buffers["peak_bytes"] <= result["peak"], name
        assert buffers["peak_bytes"] <= buffers["assigned_bytes"], name
        if result["reserved"] is not None:
            assert buffers["assigned_bytes"] == pytest.approx(result["reserved"], abs=8192), name


def test_a_program_that_does_not_fit_on_a_tpu_still_shows_its_buffers(tpu):
    del tpu  # skips without libtpu
    result = run("v5e:2x2", "too_large")["too_large"]
    assert result["peak"] is None
    assert result["buffers"]["peak_bytes"] > 15.75 * 2**30
    assert result["account"]["matmul_flops"] > 0


ASSIGNMENT = """BufferAssignment:
allocation 0: size 400, page 0, parameter 0, shape |f32[100]| at ShapeIndex {}:
 value: <1 x @0> (size=400,offset=0): f32[100]{0}
allocation 1: size 1600, page 0, preallocated-temp:
 value: <2 a @0> (size=800,offset=0): f32[100,1]{1,0:T(8,128)}
 value: <3 b @0> (size=400,offset=800): f32[100]{0}
 value: <4 c @0> (size=800,offset=0): f32[200]{0}
 value: <5 while.1{0} (phi) @0> (size=800,offset=0): f32[200]{0}
 value: <6 d @0> (size=400,offset=1200): f32[100]{0}
allocation 2: size 999, color 1, page 0, preallocated-temp:
 value: <7 v @1> (size=999,offset=0): f32[100]{0:S(1)}
allocation 3: size 640, color 5, page 0, preallocated-temp:
 value: <8 h @5> (size=640,offset=0): f32[160]{0:S(5)}
"""
LIVE = """HloLiveRange (max 5):
  InstructionSequence:
    0:x
    1:a
    2:b
    3:c
    4:d
  BufferLiveRange:
    x{}:0-5
    a{}:1-2
    b{}:2-4
    c{}:3-4
    while.1{0}:4-5
    d{}:4-5
    v{}:1-5
    h{}:1-5
  Live ranges at 4 (peak):
    c{}: 800 bytes (cumulative: 800 bytes)
"""


def test_values_that_share_bytes_count_once_and_other_memories_do_not():
    report = read_buffers(ASSIGNMENT, LIVE, "")
    # At 4: c and the loop's state are the same 800 bytes, b and d 400 each; x is an argument.
    assert report.peak_bytes == 400 + 800 + 400 + 400
    assert report.assigned_bytes == 2000
    assert report.host_bytes == 640
    assert report.peak_instruction == "d"
    assert [buffer.instruction for buffer in report.buffers][0] == "c"


def test_padding_to_tiles_is_shown():
    live = LIVE.replace("b{}:2-4", "b{}:2-2").replace("    d{}:4-5\n", "")
    report = read_buffers(ASSIGNMENT, live, "")
    padded = next(buffer for buffer in report.buffers if buffer.instruction == "a")
    assert (padded.size, padded.padding, padded.shape) == (800, 400, "f32[100,1]")
