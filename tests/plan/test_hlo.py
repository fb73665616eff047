"""Accounts of programs whose collectives and operations are known by hand."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jaxrecipes.plan.hlo import Collective, account
from jaxrecipes.plan.hlo_flops import _meeting_pairs
from tests.plan.programs import BATCH, LAYERS, WIDE, WIDTH

ROOT = Path(__file__).parents[2]
FLOAT = 4


def run(*arguments):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.plan.programs", *arguments],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def cpu():
    return run("cpu")


@pytest.fixture(scope="module")
def tpu():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: no TPU compiler")
    return run("v5e:2x2", "gathered", "scattered", "rematerialised", "batched")


def collectives(result, kind):
    return [one for one in result["account"]["collectives"] if one["kind"] == kind]


def check_gathered(result, rows, element):
    found = collectives(result, "all-gather")
    assert {tuple(one["axes"]) for one in found} == {("fsdp",)}
    # Once a layer, or all layers at once where the compiler moves it out of the loop.
    received = sum(one["count"] * one["result_bytes"] for one in found)
    assert received == LAYERS * WIDTH * WIDTH * element
    assert sum(one["count"] * one["operand_bytes"] for one in found) == received // 4
    assert sum(result["sent"]) == received * 3 / 4
    assert result["account"]["matmul_flops"] == LAYERS * 2 * rows * WIDTH * WIDTH
    assert result["account"]["unknown_loops"] == 0


def test_a_gather_in_a_scan_counts_once_a_layer(cpu):
    check_gathered(cpu["gathered"], BATCH // 8, FLOAT)


def test_a_gather_in_a_scan_for_a_tpu(tpu):
    # Its products are in bfloat16 by default, and so it gathers in bfloat16.
    check_gathered(tpu["gathered"], BATCH // 4, FLOAT // 2)


def test_a_sum_over_one_axis(cpu):
    (found,) = cpu["summed"]["account"]["collectives"]
    assert (found["kind"], found["axes"], found["group_size"]) == ("all-reduce", ["data"], 2)
    part = BATCH // 8 * WIDTH * FLOAT
    assert found["operand_bytes"] == found["result_bytes"] == part
    # The two halves of a ring: reduce-scatter and all-gather, each sends (n-1)/n.
    assert cpu["summed"]["sent"] == [2 * part / 2]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_scattered_sum(platform, request):
    result = request.getfixturevalue(platform)["scattered"]
    (found,) = result["account"]["collectives"]
    assert (found["kind"], found["axes"], found["group_size"]) == ("reduce-scatter", ["fsdp"], 4)
    assert found["operand_bytes"] == BATCH * WIDTH * FLOAT
    assert found["result_bytes"] == BATCH * WIDTH * FLOAT // 4
    assert result["sent"] == [BATCH * WIDTH * FLOAT * 3 / 4]


@pytest.mark.parametrize(
    ("program", "kind", "sent"),
    [("permuted", "collective-permute", 1.0), ("exchanged", "all-to-all", 0.75)],
)
def test_exchanges_between_neighbours_and_all(cpu, program, kind, sent):
    (found,) = cpu[program]["account"]["collectives"]
    assert (found["kind"], found["axes"], found["count"]) == (kind, ["fsdp"], 1)
    assert found["operand_bytes"] == BATCH // 8 * WIDTH * FLOAT
    assert cpu[program]["sent"] == [sent * found["operand_bytes"]]


def test_nested_loops_are_multiplied_out(cpu):
    assert cpu["nested"]["account"]["matmul_flops"] == 3 * LAYERS * 2 * BATCH * WIDTH * WIDTH


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_remat_computes_again_only_what_is_read(platform, request):
    result = request.getfixturevalue(platform)["rematerialised"]
    # Two forward products, four gradients, and the first product again: nothing reads the second.
    assert result["account"]["matmul_flops"] == LAYERS * 7 * 2 * BATCH * WIDTH * WIDE


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_batched_product(platform, request):
    result = request.getfixturevalue(platform)["batched"]
    assert result["account"]["matmul_flops"] == 2 * 2 * 4 * 128 * 128 * 64


def test_of_branches_the_dearest_counts(cpu):
    assert cpu["branching"]["account"]["matmul_flops"] == 2 * 2 * BATCH * WIDTH * WIDTH


def test_memory_traffic_of_a_loop_reads_each_layer_once(cpu):
    states, weight = BATCH * WIDTH * FLOAT, WIDTH * WIDTH * FLOAT
    traffic = cpu["nested"]["account"]["hbm_bytes"]
    rounds = 3 * LAYERS
    # At the least: a layer's weight and input in, its output out, once a round.
    assert traffic >= rounds * (weight + 2 * states)
    # Counting whole stacks instead of the slice that a round reads would give more than this.
    assert traffic < rounds * LAYERS * weight + rounds * 4 * states


GEMM = """HloModule jit_f, is_scheduled=true, num_partitions=2

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %g = (f32[8,16]{1,0}, s8[64]{0}) custom-call(%x, %x), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"]}}}
  %start = (f32[8,16]{1,0}, f32[16,16]{1,0}) all-gather-start(%x), channel_id=1, \
replica_groups=[1,2]<=[2], dimensions={0}
  %done = f32[16,16]{1,0} all-gather-done(%start)
  %k = f32[8,16]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(f)/splash_mha_fwd"}
  %i = s32[] get-tuple-element(%p), index=0
  %t = f32[8,16]{1,0} get-tuple-element(%g), index=0
  ROOT %r = (s32[], f32[8,16]{1,0}) tuple(%i, %t)
}

%cond (p.1: (s32[], f32[8,16])) -> pred[] {
  %p.1 = (s32[], f32[8,16]{1,0}) parameter(0)
  ROOT %c = pred[] constant(true)
}

ENTRY %main (a: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %a = (s32[], f32[8,16]{1,0}) parameter(0)
  ROOT %w = (s32[], f32[8,16]{1,0}) while(%a), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"6"}}
}
"""


def test_gpu_calls_async_pairs_and_kernels():
    found = account(GEMM, {"data": 2})
    assert found.matmul_flops == 6 * 2 * 8 * 16 * 16
    assert found.collectives == (Collective("all-gather", ("data",), 2, 6, 512, 1024),)
    assert [(one.name, one.count) for one in found.custom_calls] == [("splash_mha_fwd", 6)]
    assert found.unknown_loops == 0


def test_a_loop_without_constant_rounds_counts_once_and_is_reported():
    found = account(GEMM.replace('"known_trip_count":{"n":"6"}', ""), {"data": 2})
    assert found.unknown_loops == 1
    assert found.collectives[0].count == 1


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        account("not a program")


@given(
    size=st.integers(1, 12),
    kernel=st.integers(1, 12),
    output=st.integers(1, 12),
    stride=st.integers(1, 4),
    dilate=st.integers(1, 6),
    kernel_dilate=st.integers(1, 6),
    pad=st.integers(-5, 15),
)
def test_pairs_of_a_convolution_that_meet(size, kernel, output, stride, dilate, kernel_dilate, pad):
    # A window of one element is a plain product, whatever the compiler says of its padding.
    assume(max(size, kernel, output) > 1)
    reached = [o * stride + k * kernel_dilate - pad for o in range(output) for k in range(kernel)]
    meeting = sum(0 <= at <= (size - 1) * dilate and at % dilate == 0 for at in reached)
    assert _meeting_pairs(size, kernel, output, stride, dilate, kernel_dilate, pad) == meeting


def test_pairs_of_a_long_convolution_are_counted_and_not_listed():
    count = 2**20
    assert _meeting_pairs(count, count, count, count - 1, count, 1, 0) == count


READ_ONCE = """HloModule jit_g, is_scheduled=true

%inner (w: bf16[512,64]) -> bf16[512,64] {
  %w = bf16[512,64]{1,0} parameter(0)
  ROOT %b = bf16[512,64]{1,0} bitcast(%w)
}

%outer (w.1: bf16[512,64], x: bf16[8,64]) -> f32[8,512] {
  %w.1 = bf16[512,64]{1,0} parameter(0)
  %x = bf16[8,64]{1,0:S(1)} parameter(1)
  %f = bf16[512,64]{1,0} fusion(%w.1), kind=kLoop, calls=%inner
  ROOT %c = f32[8,512]{1,0:S(1)} convolution(%x, %f), dim_labels=bf_oi->bf
}

ENTRY %main (a: bf16[512,64], y: bf16[8,64], v: bf16[64,32]) -> f32[8,512] {
  %a = bf16[512,64]{1,0} parameter(0)
  %y = bf16[8,64]{1,0:S(1)} parameter(1)
  %v = bf16[64,32]{1,0} parameter(2)
  %s = ((bf16[64,32]{1,0}), bf16[16,32]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%v), \
slice={[16:32], [0:32]}
  %d = bf16[16,32]{1,0:S(1)} slice-done(%s)
  ROOT %r = f32[8,512]{1,0:S(1)} fusion(%a, %y), kind=kOutput, calls=%outer
}
"""


def test_what_a_fusion_reads_through_another_one_and_a_slice_under_way():
    # The weight whole, and a quarter of the other one into the vector memory.
    assert account(READ_ONCE).hbm_bytes == 512 * 64 * 2 + 16 * 32 * 2
