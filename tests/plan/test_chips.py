from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrecipes.errors import ConfigError
from jaxrecipes.plan.chips import CHIPS, chip_of
from jaxrecipes.plan.topology import parse_topology, slice_shapes, topology_devices

TPUS = [chip for chip in CHIPS.values() if chip.torus_axes]


def test_local_devices_are_recognised_by_their_kind():
    kinds = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H200": "h200",
        "NVIDIA A100-SXM4-80GB": "a100",
        "cpu": "cpu",
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
        "TPU v4": "v4",
        "TPU v6 lite": "v6e",
        "TPU7x": "tpu7x",
    }
    found = {kind: getattr(chip_of(kind), "name", None) for kind in kinds}
    assert found == kinds
    assert chip_of("NVIDIA GeForce GTX 970") is None


def test_a_device_of_a_chip_with_two_has_half_of_its_rates():
    ironwood = CHIPS["tpu7x"]
    assert ironwood.device_flops == ironwood.bf16_flops / 2
    assert ironwood.device_memory_bandwidth == ironwood.memory_bandwidth / 2
    assert CHIPS["v5p"].device_flops == CHIPS["v5p"].bf16_flops
    assert CHIPS["cpu"].device_flops is None


@given(data=st.data(), slices=st.integers(1, 4))
def test_every_slice_has_a_name_that_is_read_back(data, slices):
    chip = data.draw(st.sampled_from(TPUS))
    shape = data.draw(st.sampled_from(slice_shapes(chip)))
    text = f"{chip.name}:{'x'.join(map(str, shape))}" + (f"*{slices}" if slices > 1 else "")
    topology = parse_topology(text.upper())
    assert str(topology) == text
    assert topology.chips == math.prod(shape) * slices <= chip.largest_slice * slices
    assert topology.devices == topology.chips * chip.devices_per_chip
    assert topology.chips % topology.hosts == 0


@pytest.mark.parametrize(
    ("text", "chips", "devices", "hosts"),
    [
        ("v5e:1x1", 1, 1, 1),
        ("v5e:2x4", 8, 8, 1),
        ("v5e:4x4", 16, 16, 4),
        ("v6e:16x16*2", 512, 512, 128),
        ("v5p:4x4x8", 128, 128, 32),
        ("v4:2x2x1", 4, 4, 1),
        ("tpu7x:2x2x2", 8, 16, 2),
    ],
)
def test_chips_devices_and_hosts(text, chips, devices, hosts):
    topology = parse_topology(text)
    assert (topology.chips, topology.devices, topology.hosts) == (chips, devices, hosts)


def test_rings_and_lines():
    assert [parse_topology("v5e:8x16").is_ring(axis) for axis in (0, 1)] == [False, True]
    assert [parse_topology("v5p:4x4x8").is_ring(axis) for axis in range(3)] == [True] * 3
    # Less than a cube has no optical switch to close its rings.
    assert [parse_topology("v5p:2x4x4").is_ring(axis) for axis in range(3)] == [False] * 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("v5e:3x3", "v5e has no such slice; near it are v5e:2x4, v5e:4x4"),
        ("v5e:0x4", "v5e has no such slice"),
        ("v5p:8x4x4", "near it are v5p:4x4x8"),
        ("v5p:4x4", "v5p has no such slice"),
        ("v9:2x2", "there is no TPU 'v9'; use v4, v5e, v5p, v6e, tpu7x"),
        ("h200:2x2", "there is no TPU 'h200'"),
        ("v5litepod-16", "v5litepod-16 is v5e:4x4"),
        ("v5p-256", "v5p-256 is v5p:4x4x8"),
        ("v5e", "is not understood; write chip:shape, such as v5e:4x4"),
        ("v5e:4x4*0", "at least 1"),
    ],
)
def test_topologies_that_do_not_exist(text, told):
    with pytest.raises(ConfigError, match=".*") as caught:
        parse_topology(text)
    assert told in str(caught.value)
    assert repr(text) in str(caught.value)


def test_without_the_compiler_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxrecipes\[tpu\]'"):
        topology_devices(parse_topology("v5e:4x4"))


DEVICES = """
from jaxrecipes.plan.topology import parse_topology, topology_devices
for text in {texts}:
    topology = parse_topology(text)
    devices = topology_devices(topology)
    slices = {{getattr(one, "slice_index", 0) for one in devices}}
    assert len(devices) == topology.devices, text
    assert len({{one.process_index for one in devices}}) == topology.hosts, text
    assert len(slices) == topology.slices, text
    chips = {{(getattr(one, "slice_index", 0), *one.coords) for one in devices}}
    assert len(chips) == topology.chips, text
    assert devices[0].device_kind.lower() == topology.chip.device_kind, devices[0].device_kind
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: no TPU compiler"
)
def test_the_compilers_devices_are_those_of_the_table():
    texts = ["v4:2x2x2", "v5e:4x4", "v5e:2x4", "v5e:2x2*2", "v5p:4x4x4", "v6e:2x2", "tpu7x:2x2x2"]
    done = subprocess.run(
        [sys.executable, "-c", DEVICES.format(texts=texts)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
