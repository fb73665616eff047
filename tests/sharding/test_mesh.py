import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrecipes.errors import ConfigError
from jaxrecipes.sharding.mesh import AXES, MeshShape, describe_mesh, make_mesh, resolve_mesh_shape

SIZES = st.integers(1, 8)


@given(sizes=st.tuples(SIZES, SIZES, SIZES, SIZES), open_axis=st.sampled_from(AXES))
def test_the_open_axis_takes_what_the_others_leave(sizes, open_axis):
    shape = MeshShape(**dict(zip(AXES, sizes, strict=True)))
    left_open = MeshShape(**{**dict(zip(AXES, sizes, strict=True)), open_axis: -1})
    assert resolve_mesh_shape(left_open, shape.devices) == shape
    assert resolve_mesh_shape(shape, shape.devices) == shape


@pytest.mark.parametrize(
    ("shape", "devices", "message"),
    [
        (MeshShape(data=-1, fsdp=-1), 8, "only one axis"),
        (MeshShape(fsdp=-1, tensor=3), 8, "multiples of 3 devices; there are 8"),
        (MeshShape(fsdp=2), 8, "is 2 devices; there are 8"),
        (MeshShape(data=3, fsdp=2, slices=2), 6, "slices do not divide data"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(shape, devices, message):
    with pytest.raises(ConfigError, match=message):
        resolve_mesh_shape(shape, devices)


def test_slices_are_the_outermost_parts_of_the_data_axis(tpu_topology):
    """Two slices of a real topology: the data axis crosses between them, no other axis does."""
    from jaxrecipes.plan.topology import parse_topology, topology_devices

    tpu_topology("v5e:2x2")
    devices = topology_devices(parse_topology("v5e:2x2*2"))
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2, slices=2), devices)
    slices = [[device.slice_index for device in row.reshape(-1)] for row in mesh.devices]
    assert slices == [[0] * 4, [1] * 4]
    assert describe_mesh(mesh) == "data 2 x fsdp 2 x tensor 2" and describe_mesh(None)
