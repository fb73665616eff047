from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrecipes.plan.hlo_groups import group_axes, parse_groups
from jaxrecipes.plan.hlo_shapes import Shape, element_bits, shape_bytes, shapes
from jaxrecipes.plan.hlo_text import tuple_elements

meshes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(
    lambda sizes: {f"axis{index}": size for index, size in enumerate(sizes)}
)


def as_sets(groups):
    return sorted(tuple(sorted(group)) for group in groups)


def groups_along(mesh, axes):
    """By brute force: devices whose coordinates agree on all other axes are together."""
    groups = {}
    places = itertools.product(*(range(size) for size in mesh.values()))
    for number, place in enumerate(places):
        other = tuple(p for name, p in zip(mesh, place, strict=True) if name not in axes)
        groups.setdefault(other, []).append(number)
    return as_sets(groups.values())


@given(mesh=meshes, data=st.data())
def test_three_ways_of_writing_the_groups_of_some_axes(mesh, data):
    axes = tuple(name for name in mesh if data.draw(st.booleans()))
    expected = groups_along(mesh, axes)
    devices = math.prod(mesh.values())
    size = len(expected[0])

    listed = "{" + ",".join("{" + ",".join(map(str, group)) + "}" for group in expected) + "}"
    names = list(mesh)
    order = [names.index(n) for n in names if n not in axes] + [names.index(n) for n in axes]
    sizes = ",".join(map(str, mesh.values()))
    iota = f"[{devices // size},{size}]<=[{sizes}]T({','.join(map(str, order))})"
    pairs = ",".join(f"'{name}'={length}" for name, length in mesh.items())
    named = f"mesh[{pairs}] {{{','.join(repr(name) for name in axes)}}}"
    for text in (listed, iota, named):
        assert as_sets(parse_groups(text, devices)) == expected, text

    varying = tuple(name for name in axes if mesh[name] > 1)
    assert group_axes(expected, mesh) == varying


@given(
    before=st.integers(1, 3),
    part=st.integers(1, 3),
    after=st.integers(1, 3),
    other=st.integers(1, 3),
)
def test_a_part_of_an_axis_is_that_axis_split(before, part, after, other):
    split = {"x": before, "y": part, "z": after, "other": other}
    text = f"mesh['a'={before * part * after},'other'={other}] {{'a':({before}){part}}}"
    assert as_sets(parse_groups(text, 0)) == groups_along(split, ("y",))


def test_a_mesh_of_devices_in_another_order():
    assert as_sets(parse_groups("mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", 4)) == [
        (0, 2),
        (1, 3),
    ]
    assert as_sets(parse_groups("mesh['a'=2,'b'=2, device_ids=([4]<=[2,2]T(1,0))] {'b'}", 4)) == [
        (0, 2),
        (1, 3),
    ]


def test_forms_without_numbers():
    assert parse_groups("{}", 3) == ((0, 1, 2),)
    assert parse_groups("[2,2]<=[4]", 4) == ((0, 1), (2, 3))
    with pytest.raises(ValueError, match="unknown form"):
        parse_groups("everyone", 4)
    with pytest.raises(ValueError, match="device 4 is not in the mesh"):
        group_axes([(0, 4)], {"data": 4})


arrays = st.builds(
    Shape,
    st.sampled_from(["f32", "bf16", "s8", "pred", "f8e4m3fn", "u4", "c64"]),
    st.lists(st.integers(0, 2000), max_size=4).map(tuple),
)


def written(shape, layout):
    order = ",".join(str(i) for i in reversed(range(len(shape.dimensions))))
    suffix = f"{{{order}:T(8,128)(2,1)S(1)}}" if layout else ""
    return f"{shape.element_type}[{','.join(map(str, shape.dimensions))}]{suffix}"


@given(arrays=st.lists(arrays, min_size=1, max_size=8), layout=st.booleans())
def test_shapes_are_read_back_from_arrays_and_tuples(arrays, layout):
    texts = [written(one, layout) for one in arrays]
    marked = [f"/*index={i}*/{text}" if i and i % 5 == 0 else text for i, text in enumerate(texts)]
    together = f"({', '.join(marked)})"
    assert shapes(together) == arrays
    assert shapes(texts[0]) == arrays[:1]
    assert shape_bytes(together) == sum(one.size for one in arrays)
    assert tuple_elements(together) == texts
    assert tuple_elements(f"({together}, {texts[0]})") == [
        together if len(texts) < 6 else tuple_elements(f"({together})")[0],
        texts[0],
    ]


def test_sizes_of_elements():
    bits = {"bf16": 16, "f32": 32, "pred": 8, "f8e5m2": 8, "s4": 4, "c128": 128, "token": 0}
    assert {name: element_bits(name) for name in bits} == bits
    assert Shape("s4", (3,)).size == 2
    assert Shape("f32", ()).size == np.dtype(np.float32).itemsize
