"""The TPU kernel over rows that are sharded: each device has its queries and all keys."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrecipes.errors import ConfigError
from jaxrecipes.models.attention import Places, attention
from jaxrecipes.models.query_shard import QueryShard, zigzag_order
from jaxrecipes.models.splash import splash_attention
from tests.models.test_attention import packed, with_gradients

BATCH, LENGTH, HEADS, KV_HEADS, HEAD_DIM = 1, 512, 2, 1, 16
AXIS = "context"
ON_ROWS = PartitionSpec(None, AXIS)
# zigzag, sliding_window, softcap
CASES = [(False, None, None), (True, None, 3.0), (False, 130, None)]


def rows(seed):
    generator = np.random.default_rng(seed)
    segment_ids, positions = packed(generator, BATCH, LENGTH)
    query = generator.standard_normal((BATCH, LENGTH, HEADS, HEAD_DIM), np.float32)
    key, value = generator.standard_normal((2, BATCH, LENGTH, KV_HEADS, HEAD_DIM), np.float32)
    weights = generator.standard_normal(query.shape).astype(np.float32)
    weights *= (segment_ids != 0)[:, :, None, None]
    return (query, key, value), segment_ids, positions, weights


def expected(arrays, segment_ids, positions, weights, window, softcap):
    def mixed(*arrays):
        return attention(
            *arrays,
            Places.of_rows(segment_ids, positions),
            scale=0.3,
            softcap=softcap,
            sliding_window=window,
        )

    return jax.jit(functools.partial(with_gradients, mixed))(arrays, weights)


def over_devices(mesh, zigzag, window, softcap, interpret):
    """The kernel under `shard_map`, all arrays sharded over the row's tokens."""
    count = mesh.shape[AXIS]

    def local(query, key, value, segment_ids, positions):
        def whole(array):
            array = jax.lax.all_gather(array, AXIS, axis=1, tiled=True)
            if zigzag:
                array = array[:, np.argsort(zigzag_order(array.shape[1], count))]
            return array

        return splash_attention(
            query,
            whole(key),
            whole(value),
            Places(segment_ids, positions, whole(segment_ids), whole(positions)),
            scale=0.3,
            softcap=softcap,
            sliding_window=window,
            query_shard=QueryShard(jax.lax.axis_index(AXIS), count, zigzag),
            interpret=interpret,
        )

    return jax.shard_map(
        local, mesh=mesh, in_specs=(ON_ROWS,) * 5, out_specs=ON_ROWS, check_vma=False
    )


@pytest.mark.slow
def test_two_devices_equal_one():
    """Runs `main` in a process with two simulated devices."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.test_splash_context"],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"equal: {case}" for case in CASES]


def main():
    mesh = Mesh(np.array(jax.devices()), (AXIS,), axis_types=(AxisType.Auto,))
    assert mesh.size == 2
    arrays, segment_ids, positions, weights = rows(5)
    for case in CASES:
        zigzag, window, softcap = case
        order = zigzag_order(LENGTH, 2) if zigzag else np.arange(LENGTH)
        sharded = [
            jax.device_put(array[:, order], NamedSharding(mesh, ON_ROWS))
            for array in (*arrays, segment_ids, positions, weights)
        ]
        function = over_devices(mesh, *case, interpret=True)

        def run(query, key, value, segment_ids, positions, weights, function=function):
            def mixed(query, key, value):
                return function(query, key, value, segment_ids, positions)

            return with_gradients(mixed, (query, key, value), weights)

        found = jax.jit(run)(*sharded)
        wanted = expected(arrays, segment_ids, positions, weights, window, softcap)
        # Padding of the output means nothing.
        real = (segment_ids != 0)[:, order]
        wanted = [np.asarray(array)[:, order] for array in wanted]
        np.testing.assert_allclose(np.asarray(found[0])[real], wanted[0][real], atol=1e-5)
        for one, other in zip(found[1:], wanted[1:], strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5)
        print(f"equal: {case}")


def test_queries_of_another_part_are_nan():
    arrays, segment_ids, positions, _ = rows(5)
    half = LENGTH // 2

    def first_half(index):
        return splash_attention(
            arrays[0][:, :half],
            *arrays[1:],
            Places(segment_ids[:, :half], positions[:, :half], segment_ids, positions),
            scale=0.3,
            query_shard=QueryShard(index, 2),
            interpret=True,
        )

    run = jax.jit(first_half)
    assert np.isfinite(run(0)).all()
    assert np.isnan(run(1)).all()


def test_zigzag_gives_each_device_a_chunk_from_either_end():
    assert zigzag_order(8, 2).tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
    with pytest.raises(ConfigError, match="multiple of 6"):
        zigzag_order(9, 3)


@pytest.mark.parametrize("zigzag", [False, True])
def test_the_tpu_compiler_takes_rows_sharded_over_four_chips(tpu_topology, zigzag):
    devices = np.array(tpu_topology("v5e:2x2").devices)
    mesh = Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))
    function = over_devices(mesh, zigzag, None, None, interpret=False)

    def shape(*dimensions, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(dimensions, dtype, sharding=NamedSharding(mesh, ON_ROWS))

    def loss(*arguments):
        return jnp.sum(function(*arguments).astype(jnp.float32) ** 2)

    length = 2048
    keys, integers = shape(1, length, 1, 128), shape(1, length, dtype=jnp.int32)
    lowered = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(
        shape(1, length, 4, 128), keys, keys, integers, integers
    )
    # Keys and values are gathered, their gradients summed back to where they belong.
    assert lowered.as_text().count("stablehlo.all_gather") == 4
    assert lowered.as_text().count("stablehlo.reduce_scatter") == 2
    program = lowered.compile().as_text()
    assert program.count('custom_call_target="tpu_custom_call"') == 3


if __name__ == "__main__":
    main()
