"""cuDNN's attention: what can be said without a GPU, and isolation where there is one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.errors import ConfigError
from jaxrecipes.models.attention import Places, attention, visible
from jaxrecipes.models.cudnn import cudnn_attention, cudnn_obstacle, packed_mask
from jaxrecipes.models.query_shard import QueryShard
from tests.models.test_attention import packed, with_gradients

BATCH, LENGTH, HEADS, KV_HEADS, HEAD_DIM = 2, 100, 4, 2, 64
on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")


def rows(seed, length=LENGTH):
    generator = np.random.default_rng(seed)
    segment_ids, positions = packed(generator, BATCH, length)
    query = generator.standard_normal((BATCH, length, HEADS, HEAD_DIM))
    key, value = generator.standard_normal((2, BATCH, length, KV_HEADS, HEAD_DIM))
    weights = generator.standard_normal(query.shape) * (segment_ids != 0)[:, :, None, None]
    arrays = [jnp.asarray(array, jnp.bfloat16) for array in (query, key, value)]
    return arrays, segment_ids, positions, weights


def options(segment_ids, positions, window=None):
    return {
        "places": Places.of_rows(segment_ids, positions),
        "scale": 0.2,
        "sliding_window": window,
    }


@pytest.fixture
def without_cudnn(monkeypatch):
    """The same call computed by XLA, so that everything around the kernel runs on a CPU."""
    original = jax.nn.dot_product_attention

    def computed_by_xla(*arguments, implementation, **keywords):
        assert implementation == "cudnn"
        return original(*arguments, implementation="xla", **keywords)

    monkeypatch.setattr(jax.nn, "dot_product_attention", computed_by_xla)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), window=st.sampled_from([None, 1, 5]))
def test_the_mask_is_the_references_and_leaves_no_query_without_a_key(seed, window):
    segment_ids, positions = packed(np.random.default_rng(seed), BATCH, 23)
    both = (Places.of_rows(segment_ids, positions), window)
    mask = np.asarray(packed_mask(*both))
    assert mask.shape == (BATCH, 1, 23, 23)
    real = segment_ids != 0
    assert (mask[:, 0][real] == np.asarray(visible(*both))[real]).all()
    assert not (mask[:, 0] & (real[:, :, None] != real[:, None, :])).any()
    assert mask.any(axis=-1).all()


@pytest.mark.parametrize("window", [None, 7])
def test_the_call_says_what_the_reference_computes(without_cudnn, window):
    arrays, segment_ids, positions, weights = rows(1)
    keywords = options(segment_ids, positions, window)
    found = with_gradients(functools.partial(cudnn_attention, **keywords), arrays, weights)
    expected = with_gradients(functools.partial(attention, **keywords), arrays, weights)
    real = segment_ids != 0
    for one, other in zip(found, expected, strict=True):
        one, other = (np.asarray(array, np.float32)[real] for array in (one, other))
        np.testing.assert_allclose(one, other, atol=0.06, rtol=0.02)  # bfloat16
        assert np.abs(one - other).mean() < 0.005


def test_a_part_of_the_row_is_computed_with_its_own_mask(without_cudnn):
    arrays, segment_ids, positions, _ = rows(2, 128)
    row, keywords = (segment_ids, positions), options(segment_ids, positions)
    whole = np.asarray(cudnn_attention(*arrays, **keywords), np.float32)
    for part in (0, 1):
        here = slice(64 * part, 64 * part + 64)
        keywords["places"] = Places(*(array[:, here] for array in row), *row)
        shard = QueryShard(part, 2)
        found = cudnn_attention(arrays[0][:, here], *arrays[1:], **keywords, query_shard=shard)
        real = segment_ids[:, here] != 0
        found = np.asarray(found, np.float32)[real]
        np.testing.assert_allclose(found, whole[:, here][real], atol=0.02)


def test_a_row_out_of_order_is_nan(without_cudnn):
    arrays, segment_ids, positions, _ = rows(3)
    segment_ids = np.ones_like(segment_ids)
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1))
    positions[1] = positions[1, ::-1]
    output = cudnn_attention(*arrays, **options(segment_ids, positions))
    assert np.isfinite(output[0]).all()
    assert np.isnan(output[1]).all()


def test_the_program_for_a_gpu_calls_the_fused_kernel_with_the_mask(monkeypatch):
    # Lowering asks for cuDNN's version, and there is none here.
    kernel = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(kernel, lambda: 91000)
    arrays, segment_ids, positions, weights = rows(1)
    function = functools.partial(cudnn_attention, **options(segment_ids, positions, 7))
    traced = jax.jit(functools.partial(with_gradients, function)).trace(arrays, weights)
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert program.count("@__cudnn$fmhaScaleBiasSoftmax(") == 1
    assert program.count("@__cudnn$fmhaScaleBiasSoftmaxBackward(") == 1
    assert '"mask_type": "CAUSAL"' in program.replace("\\22", '"')
    assert "tensor<2x1x128x128xbf16>" in program  # 100 tokens padded to 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"softcap": 30.0}, "soft-caps its attention logits .at 30.0.*reference"),
        ({"dtype": jnp.float32}, "bfloat16 or float16, not float32"),
        ({"head_dim": 60}, "multiple of 8.*the model's are 60"),
        ({"head_dim": 264}, "at most 256 wide, the model's are 264"),
        ({"queries": 1}, "1 queries and 16 keys; decoding with a cache uses the reference"),
    ],
)
def test_refuses_what_the_kernel_cannot_compute(change, message):
    head_dim, dtype = change.get("head_dim", 64), change.get("dtype", jnp.bfloat16)
    queries = change.get("queries", 16)
    query = jnp.zeros((1, queries, 2, head_dim), dtype)
    key = jnp.zeros((1, 16, 2, head_dim), dtype)
    one, many = np.ones((1, queries), np.int32), np.ones((1, 16), np.int32)
    with pytest.raises(ConfigError, match=message):
        cudnn_attention(
            query,
            key,
            key,
            places=Places(one, one, many, many),
            scale=1.0,
            softcap=change.get("softcap"),
        )


def test_wide_heads_need_a_hopper():
    assert "at most 128 wide" in str(cudnn_obstacle("bfloat16", 256, None, 8.0))
    assert cudnn_obstacle("bfloat16", 256, None, 9.0) is None
    assert cudnn_obstacle("float16", 128, None, 8.0) is None


@on_gpu
@pytest.mark.parametrize("window", [None, 50])
def test_a_document_does_not_notice_its_neighbours(window):
    """On the GPU's kernel itself: output and gradients, bit for bit."""
    length = 512
    arrays, _, _, weights = rows(4, length)
    sizes = (150, 170, 160, 32)  # three documents and padding
    segment_ids = np.repeat([[1, 2, 3, 0]], sizes, axis=1).repeat(BATCH, 0).astype(np.int32)
    positions = np.tile(np.concatenate([np.arange(size) for size in sizes]), (BATCH, 1))
    keywords = options(segment_ids, positions.astype(np.int32), window)
    weights = weights * (segment_ids != 0)[:, :, None, None]
    function = functools.partial(cudnn_attention, **keywords)
    run = jax.jit(functools.partial(with_gradients, function))
    before = run(arrays, weights)
    changed = segment_ids == 1
    other = [jnp.where(changed[:, :, None, None], 100 * array + 7, array) for array in arrays]
    after = run(other, weights)
    rest = (segment_ids == 2) | (segment_ids == 3)
    for one, two in zip(before, after, strict=True):
        assert (np.asarray(one)[rest] == np.asarray(two)[rest]).all()
        assert (np.asarray(one)[changed] != np.asarray(two)[changed]).any()


@on_gpu
@pytest.mark.parametrize("window", [None, 7])
def test_equals_the_reference_on_the_gpu(window):
    arrays, segment_ids, positions, weights = rows(1, 512)
    keywords = options(segment_ids, positions, window)
    found = with_gradients(functools.partial(cudnn_attention, **keywords), arrays, weights)
    expected = with_gradients(functools.partial(attention, **keywords), arrays, weights)
    real = segment_ids != 0
    for one, other in zip(found, expected, strict=True):
        one, other = (np.asarray(array, np.float32)[real] for array in (one, other))
        np.testing.assert_allclose(one, other, atol=0.06, rtol=0.02)
