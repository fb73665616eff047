"""The TPU kernel against the reference, emulated on CPU, and compiled by the TPU compiler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import SingleDeviceSharding

from jaxrecipes.errors import ConfigError
from jaxrecipes.models import splash
from jaxrecipes.models.attention import Places, attention
from jaxrecipes.models.query_shard import QueryShard
from jaxrecipes.models.splash import RESIDUAL_NAME, splash_attention
from tests.models.test_attention import packed

BATCH = 2
# length, heads, kv_heads, head_dim, sliding_window, softcap. 640 is five blocks, 300 is padded to
# three in a window of 100, 64 is less than one.
CASES = {
    "five blocks": (640, 2, 1, 16, None, None),
    "window": (640, 2, 2, 16, 130, None),
    "padded, window, softcap, groups": (300, 4, 2, 64, 100, 3.0),
    "one short block": (64, 4, 2, 8, None, 5.0),
}


def rows(seed, length, heads, kv_heads, head_dim):
    generator = np.random.default_rng(seed)
    segment_ids, positions = packed(generator, BATCH, length)
    query = generator.standard_normal((BATCH, length, heads, head_dim), np.float32)
    key, value = generator.standard_normal((2, BATCH, length, kv_heads, head_dim), np.float32)
    # As in training, nothing reads the output at padding.
    weights = generator.standard_normal(query.shape).astype(np.float32)
    weights *= (segment_ids != 0)[:, :, None, None]
    return (query, key, value), segment_ids, positions, weights


@functools.cache
def compiled(backend, window, softcap):
    """Output and the three gradients of a weighted sum of it."""
    function = functools.partial(splash_attention, interpret=True)
    if backend == "reference":
        function = attention

    def run(arrays, segment_ids, positions, weights):
        def mixed(*arrays):
            output = function(
                *arrays,
                Places.of_rows(segment_ids, positions),
                scale=0.3,
                softcap=softcap,
                sliding_window=window,
            )
            return jnp.sum(output * weights), output

        (_, output), gradients = jax.value_and_grad(mixed, (0, 1, 2), has_aux=True)(*arrays)
        return output, gradients

    return jax.jit(run)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_equals_the_reference_and_so_do_the_gradients(case, seed):
    length, heads, kv_heads, head_dim, window, softcap = CASES[case]
    inputs = rows(seed, length, heads, kv_heads, head_dim)
    found, found_gradients = compiled("splash", window, softcap)(*inputs)
    expected, expected_gradients = compiled("reference", window, softcap)(*inputs)
    real = inputs[1] != 0
    np.testing.assert_allclose(np.asarray(found)[real], np.asarray(expected)[real], atol=1e-5)
    assert np.isfinite(found).all()
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("case", ["five blocks", "window"])
@pytest.mark.parametrize("backend", ["splash", "reference"])
def test_a_document_does_not_notice_its_neighbours(backend, case):
    length, heads, kv_heads, head_dim, window, softcap = CASES[case]
    arrays, _, _, weights = rows(0, length, heads, kv_heads, head_dim)
    # Three documents, none of which begins at a block's edge, and padding.
    segment_ids = np.repeat([[1, 2, 3, 0]], [200, 190, 210, 40], axis=1).repeat(BATCH, 0)
    positions = np.concatenate([np.arange(size) for size in (200, 190, 210, 40)])
    positions = np.tile(positions, (BATCH, 1))
    segment_ids, positions = segment_ids.astype(np.int32), positions.astype(np.int32)
    weights = weights * (segment_ids != 0)[:, :, None, None]
    run = compiled(backend, window, softcap)
    before = run(arrays, segment_ids, positions, weights)
    changed = segment_ids == 1
    other = [np.where(changed[:, :, None, None], 1e3 * array + 7, array) for array in arrays]
    after = run(tuple(other), segment_ids, positions, weights)
    rest = (segment_ids == 2) | (segment_ids == 3)
    for one, two in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (np.asarray(one)[rest] == np.asarray(two)[rest]).all()
        assert (np.asarray(one)[changed] != np.asarray(two)[changed]).any()


def test_a_row_out_of_order_is_nan_and_its_neighbour_in_the_batch_is_not():
    arrays, segment_ids, positions, weights = rows(3, 64, 4, 2, 8)
    segment_ids, positions = np.ones_like(segment_ids), np.tile(np.arange(64), (BATCH, 1))
    positions = positions.astype(np.int32)
    positions[0, 5:] += 1
    output, _ = compiled("splash", None, 5.0)(arrays, segment_ids, positions, weights)
    assert np.isnan(output[0]).all()
    assert np.isfinite(output[1]).all()


def test_refuses_queries_that_are_not_the_row():
    query, cache = np.zeros((1, 1, 2, 8), np.float32), np.zeros((1, 16, 2, 8), np.float32)
    one, many = np.ones((1, 1), np.int32), np.ones((1, 16), np.int32)
    call = functools.partial(
        splash_attention,
        places=Places(one, one, many, many),
        scale=1.0,
    )
    with pytest.raises(ConfigError, match="1 queries and 16 keys.*reference"):
        call(query, cache, cache)
    with pytest.raises(ConfigError, match="16 devices.*multiple of 2048 tokens, got 16"):
        call(query, cache, cache, query_shard=QueryShard(0, 16))


def test_blocks_fit_the_row_and_the_window():
    def block(length, window=None, itemsize=2, exact=False):
        return splash._block(length, window, itemsize, exact=exact)

    assert [block(length) for length in (4096, 2048, 32768)] == [1024] * 3
    assert block(4096, itemsize=4) == 512
    assert block(4096, window=600) == 512
    assert block(4096, window=3) == 128
    assert block(100) == 128
    assert block(640) == 128  # 768 and more would be 1/5 longer
    assert block(3968) == 1024  # 31 x 128 becomes 4096
    assert block(3968, exact=True) == 128


def compile_for(topology, case, wrap=lambda function: function):
    """Forward and backward pass in bfloat16 on one chip, compiled."""
    length, heads, kv_heads, head_dim, window, softcap = case
    sharding = SingleDeviceSharding(topology.devices[0])

    def shape(*dimensions, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(dimensions, dtype, sharding=sharding)

    def loss(query, key, value, segment_ids, positions):
        output = splash_attention(
            query,
            key,
            value,
            Places.of_rows(segment_ids, positions),
            scale=head_dim**-0.5,
            softcap=softcap,
            sliding_window=window,
        )
        return jnp.sum(output.astype(jnp.float32) ** 2)

    integers = shape(1, length, dtype=jnp.int32)
    keys = shape(1, length, kv_heads, head_dim)
    lowered = jax.jit(jax.value_and_grad(wrap(loss), (0, 1, 2))).lower(
        shape(1, length, heads, head_dim), keys, keys, integers, integers
    )
    return lowered.compile()


def count_kernels(program):
    return program.as_text().count('custom_call_target="tpu_custom_call"')


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("v5e:2x2", (2048, 8, 2, 128, None, None)),
        ("v5e:2x2", (1000, 9, 3, 64, None, None)),
        pytest.param("v5e:2x2", (4096, 8, 4, 256, 1024, 50.0), marks=pytest.mark.long),
        pytest.param("v5p:2x2x1", (4096, 32, 8, 96, None, None), marks=pytest.mark.long),
        pytest.param("v6e:2x2", (4096, 32, 8, 128, None, None), marks=pytest.mark.long),
        pytest.param("v5e:2x2", (32768, 8, 2, 128, None, None), marks=pytest.mark.long),
    ],
)
def test_the_tpu_compiler_takes_forward_and_backward_pass(tpu_topology, name, case):
    program = compile_for(tpu_topology(name), case)
    length, heads = case[:2]
    # Where one block holds the row, the backward pass is one kernel.
    assert count_kernels(program) == (2 if length <= 1024 else 3)
    logits = 4 * heads * length * length
    assert program.memory_analysis().temp_size_in_bytes < logits / 4


def test_a_remat_policy_can_save_what_the_backward_pass_reads(tpu_topology):
    def kernels(policy):
        wrap = functools.partial(jax.checkpoint, policy=policy)
        program = compile_for(tpu_topology("v5e:2x2"), (256, 2, 2, 128, None, None), wrap)
        return count_kernels(program)

    policies = jax.checkpoint_policies
    assert kernels(policies.save_only_these_names(RESIDUAL_NAME)) == 2
    assert kernels(policies.nothing_saveable) == 3  # the forward kernel runs again
