from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from jaxrecipes.plan.chips import CHIPS
from jaxrecipes.plan.hlo import Account, Collective
from jaxrecipes.plan.roofline import axes_bandwidth, bound, switch_bandwidths
from jaxrecipes.plan.topology import parse_topology


def mesh(text, *shape):
    """Devices with the coordinates of a topology, in libtpu's order, as a mesh."""
    topology = parse_topology(text)
    devices = [
        SimpleNamespace(coords=tuple(reversed(place)), core_on_chip=core, slice_index=one)
        for one in range(topology.slices)
        for place in np.ndindex(*reversed(topology.shape))
        for core in range(topology.chip.devices_per_chip)
    ]
    array = np.empty(len(devices), dtype=object)
    array[:] = devices
    return topology, array.reshape(shape)


NAMES = ("data", "fsdp", "tensor")
LINK = 50e9


@pytest.mark.parametrize(
    ("shape", "axes", "links"),
    [
        # A 4x4 slice of v5e closes no ring: its corners have one link along each axis.
        ((1, 16, 1), ("fsdp",), 2),
        ((1, 4, 4), ("tensor",), 1),
        ((1, 4, 4), ("fsdp",), 1),
        ((1, 4, 4), ("fsdp", "tensor"), 2),
        ((4, 2, 2), ("tensor",), 1),
    ],
)
def test_links_of_a_slice_of_lines(shape, axes, links):
    topology, devices = mesh("v5e:4x4", *shape)
    assert axes_bandwidth(topology, devices, NAMES, axes) == links * LINK


def test_links_of_a_torus():
    topology, devices = mesh("v5e:16x16", 1, 16, 16)
    assert axes_bandwidth(topology, devices, NAMES, ("fsdp",)) == 2 * LINK
    assert axes_bandwidth(topology, devices, NAMES, ("fsdp", "tensor")) == 4 * LINK
    # Half of a ring is a line.
    topology, devices = mesh("v5e:16x16", 2, 8, 16)
    assert axes_bandwidth(topology, devices, NAMES, ("fsdp",)) == LINK
    topology, devices = mesh("v5p:4x4x8", 1, 128, 1)
    assert axes_bandwidth(topology, devices, NAMES, ("fsdp",)) == 6 * 100e9


def test_two_devices_of_a_chip_share_its_links():
    topology, devices = mesh("tpu7x:2x2x1", 1, 4, 2)
    assert axes_bandwidth(topology, devices, NAMES, ("tensor",)) == float("inf")
    assert axes_bandwidth(topology, devices, NAMES, ("fsdp",)) == 2 * 100e9 / 2
    assert axes_bandwidth(topology, devices, NAMES, ("fsdp", "tensor")) == 2 * 100e9


def test_between_slices_the_network_limits():
    topology, devices = mesh("v5e:4x4*2", 2, 16, 1)
    network = CHIPS["v5e"].network_bandwidth
    assert axes_bandwidth(topology, devices, NAMES, ("data",)) == network
    # All sixteen chips of a slice carry a part, up to what their links allow.
    assert axes_bandwidth(topology, devices, NAMES, ("data", "fsdp")) == min(16 * network, 2 * LINK)


def test_the_longest_time_bounds_the_step():
    chip = CHIPS["v5e"]
    gather = Collective("all-gather", ("fsdp",), 16, 10, 1_000_000, 16_000_000)
    reduce = Collective("all-reduce", ("data",), 2, 1, 8_000_000, 8_000_000)
    account = Account(
        matmul_flops=int(100e12),
        hbm_bytes=int(81.9e9),
        collectives=(gather, reduce),
        custom_calls=(),
        unknown_loops=0,
    )
    found = bound(
        account,
        chip,
        {("fsdp",): 1e11, ("data",): 5e10},
        tokens=65_536,
        model_flops=118.2e12,
        kernel_flops=97e12,
    )
    assert found is not None
    assert found.compute == pytest.approx(1.0)
    assert found.memory == pytest.approx(0.1)
    assert found.network[("fsdp",)] == pytest.approx(10 * 15e6 / 1e11)
    assert found.network[("data",)] == pytest.approx(8e6 / 5e10)
    assert found.limit == "compute"
    assert found.overlapped == pytest.approx(1.0)
    assert found.sequential == pytest.approx(1.1 + sum(found.network.values()))
    assert found.tokens_per_second == pytest.approx(65_536)
    assert found.model_flops_utilisation == pytest.approx(0.6)

    slow = bound(
        account, chip, {("fsdp",): 1e6, ("data",): 1e6}, tokens=65_536, model_flops=118.2e12
    )
    assert slow is not None and slow.limit == "network"
    assert slow.overlapped == pytest.approx(150 + 8)


def test_gpus_of_a_host_talk_through_one_switch_and_a_cpu_has_no_bound():
    account = Account(1, 1, (Collective("all-reduce", ("data",), 8, 1, 8, 8),), (), 0)
    assert switch_bandwidths(account, CHIPS["h200"]) == {("data",): 450e9}
    assert bound(account, CHIPS["cpu"], {("data",): 1.0}, tokens=1, model_flops=1.0) is None
