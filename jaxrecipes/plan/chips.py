"""The accelerators that a plan can be made for: what one chip has, and how chips are wired.

Peak figures are the makers' (upper bounds stay upper bounds); what is usable of a TPU's memory is
what its compiler says.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One kind of accelerator. Rates are of a whole chip, per second.

    Attributes:
        name: As in a topology ("v5e:4x4").
        device_kind: Start of what JAX calls its devices (`jax.Device.device_kind`), lower case.
        devices_per_chip: JAX devices of one chip: 2 on tpu7x, whose two halves have their own
            memory; 1 on v4 and v5p, whose two cores work as one ("megacore").
        memory_bytes: Memory of one *device* that a program can use; None for a host's.
        bf16_flops: Dense matrix operations in bfloat16, two a multiply-add; None where unknown.
        int8_flops: The same in int8, where the maker states it.
        fp32_flops: The same in float32, where the maker states it.
        memory_bandwidth: Bytes from and to device memory.
        link_bandwidth: Bytes that one link carries in one direction.
        torus_axes: 2 or 3 where chips are wired as a torus, one link a direction and axis; 0 where
            a switch connects all chips of a host over one link.
        wraps_at: An axis of a slice is a ring when its length is a multiple of this, else a line.
        network_bandwidth: Bytes that one chip sends to other slices over the data centre's network.
        slice_shapes: The slices that exist, for a 2D torus; for a 3D one the small ones, to which
            come all whole cubes (every axis a multiple of 4, in increasing order).
        largest_slice: Chips of the largest slice.
        chips_per_host: Chips of one host in a slice of several hosts.
        single_host_chips: Chips of the largest slice that is one host.
        compiler_config: `chip_config_name` of the topology where it is not the default.
    """

    name: str
    device_kind: str
    devices_per_chip: int = 1
    memory_bytes: int | None = None
    bf16_flops: float | None = None
    int8_flops: float | None = None
    fp32_flops: float | None = None
    memory_bandwidth: float | None = None
    link_bandwidth: float | None = None
    torus_axes: int = 0
    wraps_at: int = 0
    network_bandwidth: float | None = None
    slice_shapes: tuple[tuple[int, ...], ...] = ()
    largest_slice: int = 1
    chips_per_host: int = 1
    single_host_chips: int = 1
    compiler_config: str | None = None

    @property
    def device_flops(self) -> float | None:
        """Peak bfloat16 operations per second of one JAX device."""
        return self.bf16_flops / self.devices_per_chip if self.bf16_flops else None

    @property
    def device_memory_bandwidth(self) -> float | None:
        """Bytes per second from and to the memory of one JAX device."""
        return self.memory_bandwidth / self.devices_per_chip if self.memory_bandwidth else None


# Slices of a 16x16 pod, and small slices of a pod of 4x4x4 cubes, as the TPU pages list them.
_SQUARE = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL_CUBES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))

# Memory of TPUs: the limit in libtpu 0.0.50's RESOURCE_EXHAUSTED message for a program that is too
# large ("exceeds available HBM (15.75G)"), read on 2026-11-21; jax 0.10.2's libtpu says the same
# within 0.01 GiB. Compute, memory bandwidth, torus and slices of TPUs: cloud.google.com/tpu/docs/
# v4, v5e, v5p, v6e, tpu7x. Links: these pages give the bandwidth of all links of a chip in both
# directions (400, 1200, 800, 1200 GB/s for v5e, v5p, v6e, tpu7x), divided here by links and
# directions; v4: 6 links of 50 GB/s (arXiv 2304.01433). The scaling book (jax-ml.github.io/
# scaling-book/tpus) measures about 10 % less: 45 and 90 GB/s. Wrap-around (same book): v5e and v6e
# only on axes of 16, the others on whole cubes. Network per chip: 50 and 100 Gbit/s for v5p and
# v6e, tpu7x (same pages), 25 for v5e and 50 for v4 (scaling book). int8: Google's pages (v4, v5e,
# v6e), the scaling book (v5p). GPUs: NVIDIA's data sheets of the SXM versions, without sparsity;
# memory as nvidia-smi lists it, of which the allocator gets less; NVLink per direction.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            device_kind="tpu v4",
            memory_bytes=int(30.75 * GIB),
            bf16_flops=275e12,
            int8_flops=275e12,
            memory_bandwidth=1200e9,
            link_bandwidth=50e9,
            torus_axes=3,
            wraps_at=4,
            network_bandwidth=6.25e9,
            slice_shapes=_SMALL_CUBES,
            largest_slice=4096,
            chips_per_host=4,
            single_host_chips=4,
            compiler_config="megacore",
        ),
        Chip(
            name="v5e",
            device_kind="tpu v5 lite",
            memory_bytes=int(15.75 * GIB),
            bf16_flops=197e12,
            int8_flops=393e12,
            memory_bandwidth=819e9,
            link_bandwidth=50e9,
            torus_axes=2,
            wraps_at=16,
            network_bandwidth=3.125e9,
            slice_shapes=_SQUARE,
            largest_slice=256,
            chips_per_host=4,
            single_host_chips=8,
        ),
        Chip(
            name="v5p",
            device_kind="tpu v5",
            memory_bytes=int(95.73 * GIB),
            bf16_flops=459e12,
            int8_flops=918e12,
            memory_bandwidth=2765e9,
            link_bandwidth=100e9,
            torus_axes=3,
            wraps_at=4,
            network_bandwidth=6.25e9,
            slice_shapes=_SMALL_CUBES,
            largest_slice=6144,
            chips_per_host=4,
            single_host_chips=4,
        ),
        Chip(
            name="v6e",
            device_kind="tpu v6 lite",
            memory_bytes=int(31.24 * GIB),
            bf16_flops=918e12,
            int8_flops=1836e12,
            memory_bandwidth=1638e9,
            link_bandwidth=100e9,
            torus_axes=2,
            wraps_at=16,
            network_bandwidth=12.5e9,
            slice_shapes=_SQUARE,
            largest_slice=256,
            chips_per_host=4,
            single_host_chips=8,
        ),
        Chip(
            name="tpu7x",
            device_kind="tpu7x",
            devices_per_chip=2,
            memory_bytes=int(94.74 * GIB),
            bf16_flops=2307e12,
            memory_bandwidth=7380e9,
            link_bandwidth=100e9,
            torus_axes=3,
            wraps_at=4,
            network_bandwidth=12.5e9,
            slice_shapes=_SMALL_CUBES,
            largest_slice=9216,
            chips_per_host=4,
            single_host_chips=4,
        ),
        Chip(
            name="h200",
            device_kind="nvidia h200",
            memory_bytes=143_771 * 2**20,
            bf16_flops=989.4e12,
            int8_flops=1978.9e12,
            fp32_flops=66.9e12,
            memory_bandwidth=4.8e12,
            link_bandwidth=450e9,
            largest_slice=8,
            chips_per_host=8,
            single_host_chips=8,
        ),
        Chip(
            name="h100",
            device_kind="nvidia h100",
            memory_bytes=81_559 * 2**20,
            bf16_flops=989.4e12,
            int8_flops=1978.9e12,
            fp32_flops=66.9e12,
            memory_bandwidth=3.35e12,
            link_bandwidth=450e9,
            largest_slice=8,
            chips_per_host=8,
            single_host_chips=8,
        ),
        Chip(
            name="a100",
            device_kind="nvidia a100",
            memory_bytes=81_920 * 2**20,
            bf16_flops=312e12,
            int8_flops=624e12,
            fp32_flops=19.5e12,
            memory_bandwidth=2.039e12,
            link_bandwidth=300e9,
            largest_slice=8,
            chips_per_host=8,
            single_host_chips=8,
        ),
        # A processor's peaks differ too much from one to the next to be listed: plans for the CPU
        # state memory, traffic and operations, no times.
        Chip(name="cpu", device_kind="cpu"),
    )
}


def chip_of(device_kind: str) -> Chip | None:
    """Finds the chip of a local device.

    Args:
        device_kind: `jax.devices()[0].device_kind`, such as "NVIDIA H100 80GB HBM3".

    Returns:
        The chip whose `device_kind` is the longest match, or None for a kind that is not listed.
    """
    kind = device_kind.lower()
    matches = [chip for chip in CHIPS.values() if kind.startswith(chip.device_kind)]
    return max(matches, key=lambda chip: len(chip.device_kind), default=None)
