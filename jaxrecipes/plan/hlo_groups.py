"""Which devices a collective connects: HLO's ways of writing groups, and mesh axes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

Groups = tuple[tuple[int, ...], ...]

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LIST = re.compile(r"\{([\d,]+)\}")
_MESH = re.compile(r"mesh\[([^\]]*)\](.*?)\{([^{}]*)\}", re.DOTALL)
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_AXIS_PART = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
_DEVICE_IDS = re.compile(r"device_ids=\(((?:[^()]|\([^()]*\))*)\)")


def parse_groups(text: str, devices: int) -> Groups:
    """Reads the value of `replica_groups` or `source_target_pairs`.

    Args:
        text: "{{0,1},{2,3}}", the iota form "[2,4]<=[4,2]T(1,0)" (the numbers below 8, reshaped to
            4x2, transposed, reshaped to 2 groups of 4), or the mesh form
            "mesh['data'=2,'fsdp'=4] {'fsdp'}" with, for a part of an axis, "'fsdp':(2)2" (after
            the 2 larger parts, of size 2). "{}" means one group of all.
        devices: Devices that the program runs on.

    Returns:
        Groups of device numbers. A device's number is its position in the mesh's device array.

    Raises:
        ValueError: None of the forms.
    """
    if found := _IOTA.search(text) if "mesh[" not in text else None:
        return _rows(_iota(found).reshape([int(n) for n in found[1].split(",")]))
    if found := _MESH.search(text):
        return _mesh_groups(found)
    if found := _LIST.findall(text):
        return tuple(tuple(int(n) for n in group.split(",")) for group in found)
    if text.replace(" ", "") in ("{}", "{{}}", ""):
        return (tuple(range(devices)),)
    raise ValueError(f"unknown form of device groups in HLO: {text[:200]!r}")


def _iota(found: re.Match[str]) -> np.ndarray:
    shape = [int(n) for n in found[2].split(",")]
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    return numbers.transpose([int(n) for n in found[3].split(",")]) if found[3] else numbers


def _mesh_groups(found: re.Match[str]) -> Groups:
    sizes = {name: int(size) for name, size in _AXIS.findall(found[1])}
    order = np.arange(int(np.prod(list(sizes.values()))))
    if written := _DEVICE_IDS.search(found[0]):
        if iota := _IOTA.search(written[1]):
            order = _iota(iota).reshape(-1)
        else:
            order = np.array([int(n) for n in re.findall(r"\d+", written[1])])
    # Every axis is split into (larger parts, the part of the group, smaller parts).
    parts = {
        name: (int(before), int(size)) if size else (1, sizes[name])
        for name, before, size in _AXIS_PART.findall(found[3])
    }
    shape: list[int] = []
    grouped: list[int] = []
    for name, size in sizes.items():
        before, part = parts.get(name, (size, 1))
        shape += [before, part, size // (before * part)]
        if name in parts:
            grouped.append(len(shape) - 2)
    kept = [index for index in range(len(shape)) if index not in grouped]
    size = int(np.prod([shape[index] for index in grouped])) if grouped else 1
    return _rows(order.reshape(shape).transpose(kept + grouped).reshape(-1, size))


def _rows(groups: np.ndarray) -> Groups:
    return tuple(tuple(int(n) for n in row) for row in groups)


def group_axes(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Names the mesh axes along which the devices of the groups differ.

    Args:
        groups: Device numbers, as positions in the mesh's device array.
        mesh: Axis sizes in the mesh's order (`mesh.shape`).

    Returns:
        Axis names in the mesh's order; empty for groups of one device.

    Raises:
        ValueError: A device number is not in the mesh.
    """
    shape = tuple(mesh.values())
    numbers = [n for group in groups for n in group]
    if numbers and max(numbers) >= int(np.prod(shape)):
        raise ValueError(f"device {max(numbers)} is not in the mesh {dict(mesh)}")
    differs = np.zeros(len(shape), dtype=bool)
    for group in groups:
        places = np.array(np.unravel_index(np.array(group), shape))
        differs |= (places != places[:, :1]).any(axis=1)
    return tuple(name for name, one in zip(mesh, differs, strict=True) if one)
