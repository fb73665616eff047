"""Kernels in few bits: bounds of the error, bitsandbytes' codes, and a base that stays as it is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.checkpoint.peft_names import decoder_modules
from jaxrecipes.config.recipe_options import LoraSection
from jaxrecipes.errors import ConfigError
from jaxrecipes.models.decoder import hidden_states
from jaxrecipes.models.quantized import BLOCK, NF4_TABLE, dequantize
from jaxrecipes.params.layout import to_canonical
from jaxrecipes.params.lora import merge_adapters
from jaxrecipes.params.lora_targets import select_modules
from jaxrecipes.params.paths import flatten
from jaxrecipes.params.quantize import (
    dequantize_tree,
    describe_rounding,
    is_quantized_leaf,
    parameter_count,
    quantize_kernel,
    quantize_tree,
)
from jaxrecipes.recipes.lora import adapter_options, build
from jaxrecipes.train.optimizer import count_bytes
from tests.tiny import packed_batch, tiny_config, tiny_params, trainer


@settings(max_examples=20, deadline=None)
@given(
    # Few shapes: each is compiled.
    shape=st.sampled_from([(2, 1), (64, 5), (130, 3)]),
    exponent=st.integers(-6, 6),
    seed=st.integers(0, 1000),
    heavy=st.booleans(),
)
def test_errors_are_bounded(shape: tuple[int, int], exponent: int, seed: int, heavy: bool) -> None:
    generator = np.random.default_rng(seed)
    draw = generator.standard_t(2, shape) if heavy else generator.standard_normal(shape)
    kernel = (draw * 10.0**exponent).astype(np.float32)
    kernel[:, 0] = 0  # an output, and blocks, of nothing
    column = np.abs(kernel).max(axis=0)
    found = np.asarray(dequantize(quantize_kernel(jnp.asarray(kernel), "int8"), jnp.float32))
    assert np.all(np.abs(found - kernel) <= column / 254 * 1.0001)

    blocks = np.array_split(kernel, range(BLOCK, len(kernel), BLOCK))
    absmax = np.stack([np.abs(block).max(axis=0) for block in blocks])
    spread = np.repeat(absmax, BLOCK, axis=0)[: len(kernel)]
    row = np.repeat(absmax.max(axis=1), BLOCK)[: len(kernel), None]
    half_gap = np.diff(NF4_TABLE).max() / 2
    for double in (False, True):
        made = quantize_kernel(jnp.asarray(kernel), "nf4", double=double)
        found = np.asarray(dequantize(made, jnp.float32))
        bound = half_gap * spread + (row / 510 if double else 0)
        assert np.all(np.abs(found - kernel) <= bound * 1.0001)
        assert np.all(found[:, 0] == 0)
    # The largest value of a block is kept.
    found = np.asarray(dequantize(quantize_kernel(jnp.asarray(kernel), "nf4"), jnp.float32))
    largest = np.abs(kernel) == spread
    kept = np.abs(found[largest] - kernel[largest])
    assert np.all(kept <= 1e-6 * np.abs(kernel[largest]))


def test_no_value_is_nearer_to_another_code() -> None:
    kernel = np.random.default_rng(0).standard_normal((BLOCK, 8)).astype(np.float32)
    made = quantize_kernel(jnp.asarray(kernel), "nf4")
    found = np.asarray(dequantize(made, jnp.float32))
    choices = np.array(NF4_TABLE)[:, None, None] * np.abs(kernel).max(axis=0)
    best = np.abs(choices - kernel).min(axis=0)
    np.testing.assert_allclose(np.abs(found - kernel), best, atol=1e-6)


def test_codes_and_scales_are_those_of_bitsandbytes() -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = np.random.default_rng(0).standard_normal((24, 128)).astype(np.float32)
    packed, state = functional.quantize_4bit(
        torch.tensor(weight), blocksize=BLOCK, quant_type="nf4", compress_statistics=False
    )
    made = quantize_kernel(jnp.asarray(weight.T), "nf4")
    theirs = packed.numpy().reshape(24, 64).T
    assert np.mean(np.asarray(made["kernel_nf4"]) == theirs) > 0.999  # ties may go either way
    np.testing.assert_allclose(
        made["kernel_absmax"], state.absmax.numpy().reshape(24, 2).T, rtol=1e-6
    )
    back = functional.dequantize_4bit(packed, state).numpy().T
    np.testing.assert_allclose(dequantize(made, jnp.float32), back, atol=0.2)
    assert np.mean(np.abs(np.asarray(dequantize(made, jnp.float32)) - back) < 1e-5) > 0.999


def test_what_cannot_be_stored_so_is_refused() -> None:
    with pytest.raises(ConfigError, match="two inputs into a byte"):
        quantize_kernel(jnp.ones((3, 2)), "nf4")
    with pytest.raises(ConfigError, match="double"):
        quantize_kernel(jnp.ones((4, 2)), "int8", double=True)


def surgery(section: LoraSection, config: Any) -> Any:
    return build(config, tiny_params(config), section, jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "section",
    [
        pytest.param(LoraSection(rank=2, base_quantization="int8"), id="int8"),
        pytest.param(
            LoraSection(rank=2, base_quantization="nf4", use_dora=True),
            id="dora",
            marks=pytest.mark.long,
        ),
        pytest.param(
            LoraSection(rank=2, base_quantization="nf4", double_quantization=True),
            id="double",
            marks=pytest.mark.long,
        ),
        pytest.param(
            LoraSection(
                rank=2,
                base_quantization="nf4",
                targets=["q_proj"],
                modules_to_save=["layers.1.mlp.up_proj"],
            ),
            id="saved",
            marks=pytest.mark.long,
        ),
    ],
)
def test_training_leaves_the_stored_base_as_it_is_bit_for_bit(section: LoraSection) -> None:
    config = tiny_config("biased", num_layers=2)
    made = surgery(section, config)
    leaves = flatten(made.params)
    saved = set(section.modules_to_save)
    plain = {path for path in leaves if path.endswith("/kernel") and path.startswith("layers/")}
    assert plain == ({"layers/1/mlp/up/kernel"} if saved else set())
    step, state, frozen, layout = trainer(
        config, made.params, made.rules, remat="dots", settings={"weight_decay": 0.5}
    )
    before = {path: np.array(leaf) for path, leaf in flatten(frozen).items()}
    losses = []
    for _ in range(4):
        state, metrics = step(state, frozen, packed_batch(config))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    for path, leaf in flatten(frozen).items():
        assert leaf.dtype == before[path].dtype
        np.testing.assert_array_equal(leaf, before[path], err_msg=path)
    stored = {path: leaf for path, leaf in before.items() if is_quantized_leaf(path)}
    kernels = [leaf for path, leaf in flatten(tiny_params(config)).items() if "kernel" in path]
    count = sum(parameter_count(path, leaf) for path, leaf in stored.items())
    assert count == sum(leaf.size for leaf in kernels) - (32 * 48 if saved else 0)
    # Whole blocks of 64 would take 4.5 bits; these kernels have 32 or 48 inputs.
    limit = 1.2 if section.base_quantization == "int8" else 0.9
    assert count_bytes(stored) < limit * count
    assert set(flatten(to_canonical(layout, state.trainable))) <= set(leaves)


@pytest.mark.slow
def test_the_model_computes_what_its_written_out_kernels_compute() -> None:
    config = tiny_config("biased")
    section = LoraSection(rank=2, base_quantization="nf4", use_dora=True)
    made = surgery(section, config)
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (
            leaf
            if leaf.dtype == jnp.uint8
            else leaf + 0.01 * generator.standard_normal(leaf.shape).astype(np.float32)
        ),
        made.params,
    )
    base = tiny_params(config)
    plain, rounding = dequantize_tree(params, base)
    assert not any(is_quantized_leaf(path) for path in flatten(plain))
    batch = packed_batch(config)
    arguments = (batch["token_ids"], batch["segment_ids"], batch["positions"])
    found = hidden_states(config, params, *arguments)
    np.testing.assert_allclose(found, hidden_states(config, plain, *arguments), atol=2e-4)
    merged = merge_adapters(config, plain)
    np.testing.assert_allclose(found, hidden_states(config, merged.params, *arguments), atol=2e-3)
    assert rounding is not None and 0.05 < rounding.relative_error < 0.15
    assert f"{rounding.kernels} quantised kernels" in describe_rounding(rounding)
    assert rounding.kernels == 7 * config.num_layers
    unchanged, nothing = dequantize_tree(base, base)
    assert nothing is None and flatten(unchanged).keys() == flatten(base).keys()


def test_options_that_contradict_each_other_are_refused() -> None:
    config = tiny_config()
    for section in (
        LoraSection(base_quantization="nf4", init="pissa", rank=2),
        LoraSection(double_quantization=True),
        LoraSection(base_quantization="int8", double_quantization=True),
    ):
        with pytest.raises(ConfigError, match="quanti"):
            surgery(section, config)


def test_only_linear_layers_that_do_not_train_are_stored_so() -> None:
    config = tiny_config("untied")
    params = tiny_params(config)
    selection = select_modules(adapter_options(LoraSection()), decoder_modules(config))
    folders = {adapter.module.path for adapter in selection.adapters}
    made = flatten(quantize_tree(params, folders, "int8"))
    for path, leaf in flatten(params).items():
        if path.rpartition("/")[0] in folders and path.endswith("kernel"):
            assert path not in made and made[f"{path}_int8"].dtype == jnp.int8
        else:
            assert made[path] is leaf
