"""Dropout: how often, of what, and PEFT's layer with the same mask."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrecipes.checkpoint.peft_names import decoder_modules
from jaxrecipes.models.adapter_dropout import dropout
from jaxrecipes.models.decoder import embed, hidden_states_of_embeddings
from jaxrecipes.models.dense import Dense, adapted_kernel, column_norms
from jaxrecipes.params.lora import build_adapters
from jaxrecipes.params.lora_options import AdapterOptions
from jaxrecipes.params.lora_targets import select_modules
from jaxrecipes.params.partition import combine
from jaxrecipes.params.paths import flatten, unflatten
from jaxrecipes.train.dropout import dropout_seeds
from tests.tiny import packed_batch, tiny_config, tiny_params, trainer


def mask_of(rows: int, length: int, width: int, rate: float, salt: int, seed: int) -> np.ndarray:
    seeds = jax.random.bits(jax.random.key(seed), (rows, length))
    ones = jnp.ones((rows, length, width))
    return np.asarray(dropout(ones, seeds, jnp.uint32(salt), jnp.float32(rate)))


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 0.9])
def test_a_share_is_dropped_and_the_mean_is_kept(rate: float) -> None:
    found = mask_of(8, 64, 256, rate, 5, 0)
    count = found.size
    np.testing.assert_allclose(found[found != 0], 1 / (1 - rate), rtol=1e-5)
    error = 5 * np.sqrt(rate * (1 - rate) / count)
    assert abs(np.mean(found == 0) - rate) <= error
    # No column, no token and no pair of neighbours has a share of its own.
    for axes in ((0, 1), 2):
        shares = np.mean(found == 0, axis=axes)
        spread = 6 * np.sqrt(rate * (1 - rate) / (count / shares.size))
        assert np.all(np.abs(shares - rate) <= spread)
    both = np.mean((found[..., 1:] == 0) & (found[..., :-1] == 0))
    assert abs(both - rate**2) <= 2 * error


def test_layers_and_steps_drop_independently() -> None:
    first = mask_of(8, 64, 256, 0.5, 5, 0) == 0
    for other in (mask_of(8, 64, 256, 0.5, 6, 0) == 0, mask_of(8, 64, 256, 0.5, 5, 1) == 0):
        assert abs(np.mean(first & other) - 0.25) < 0.005
    np.testing.assert_array_equal(first, mask_of(8, 64, 256, 0.5, 5, 0) == 0)


@pytest.mark.parametrize("use_dora", [False, True])
def test_equals_pefts_layer_with_the_same_mask(use_dora: bool) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    generator = np.random.default_rng(0)
    inputs, kernel, lora_a, lora_b, bias = (
        generator.standard_normal(shape).astype(np.float32)
        for shape in ((2, 5, 12), (12, 7), (12, 3), (3, 7), (7,))
    )
    leaves: dict[str, Any] = {
        "kernel": kernel,
        "bias": bias,
        "lora_a": lora_a,
        "lora_b": lora_b,
        "lora_scale": jnp.float32(2.0),
        "lora_dropout": jnp.float32(0.3),
        "lora_salt": jnp.uint32(99),
    }
    magnitude = np.abs(generator.standard_normal(7)).astype(np.float32)
    if use_dora:
        leaves["lora_magnitude"] = magnitude
    seeds = jax.random.bits(jax.random.key(0), (2, 5))
    factor = np.asarray(dropout(jnp.ones((2, 5, 12)), seeds, jnp.uint32(99), jnp.float32(0.3)))

    class SameMask(torch.nn.Module):
        def forward(self, values: Any) -> Any:
            return values * torch.tensor(factor)

    holder = torch.nn.Sequential()
    holder.add_module("one", torch.nn.Linear(12, 7))
    holder.one.weight.data, holder.one.bias.data = torch.tensor(kernel.T), torch.tensor(bias)
    settings = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["one"], lora_dropout=0.3, use_dora=use_dora
    )
    model = peft.get_peft_model(holder, settings).train()
    layer = model.base_model.model.one
    layer.lora_A["default"].weight.data = torch.tensor(lora_a.T)
    layer.lora_B["default"].weight.data = torch.tensor(lora_b.T)
    if use_dora:
        layer.lora_magnitude_vector["default"].weight.data = torch.tensor(magnitude)
    layer.lora_dropout["default"] = SameMask()
    theirs = model(torch.tensor(inputs))
    torch.sin(theirs).sum().backward()

    def loss(trained: Any) -> Any:
        dense = Dense(7, True, jnp.float32)
        outputs: Any = dense.apply({"params": leaves | trained}, inputs, seeds)
        return jnp.sum(jnp.sin(outputs)), outputs

    names = ["lora_a", "lora_b", *(["lora_magnitude"] if use_dora else [])]
    trained = {name: jnp.asarray(leaves[name]) for name in names}
    gradient, outputs = jax.grad(loss, has_aux=True)(trained)
    np.testing.assert_allclose(outputs, theirs.detach().numpy(), atol=1e-5)
    expected = {
        "lora_a": layer.lora_A["default"].weight.grad.numpy().T,
        "lora_b": layer.lora_B["default"].weight.grad.numpy().T,
    }
    if use_dora:
        expected["lora_magnitude"] = layer.lora_magnitude_vector["default"].weight.grad.numpy()
    for name, leaf in gradient.items():
        np.testing.assert_allclose(leaf, expected[name], atol=2e-4, err_msg=name)
    # Without seeds nothing is dropped.
    plain: Any = Dense(7, True, jnp.float32).apply({"params": leaves}, inputs)
    whole = adapted_kernel(jnp.asarray(kernel), leaves)
    if use_dora:
        whole = whole * (magnitude / column_norms(whole))
    np.testing.assert_allclose(plain, inputs @ np.asarray(whole) + bias, atol=1e-5)


@pytest.mark.slow
def test_masks_do_not_depend_on_packing_or_on_the_cut_of_a_batch() -> None:
    config = tiny_config()
    options = AdapterOptions(rank=4, dropout=0.4)
    base = tiny_params(config)
    selection = select_modules(options, decoder_modules(config))
    made = build_adapters(base, options, selection, jax.random.key(0))
    generator = np.random.default_rng(0)
    adapters = {
        path: leaf
        if path.endswith(("lora_scale", "lora_dropout", "lora_salt"))
        else leaf + 0.3 * generator.standard_normal(leaf.shape).astype(np.float32)
        for path, leaf in flatten(made.adapters).items()
    }
    salts = [int(leaf) for path, leaf in adapters.items() if path.endswith("lora_salt")]
    assert len(set(salts)) == 7 * config.num_layers
    params = combine(unflatten(adapters), base)
    texts = [generator.integers(0, 61, size) for size in (5, 9, 2)]

    def run(rows: list[list[int]], key: int = 0, drop: bool = True) -> dict[int, np.ndarray]:
        """States of the texts, packed as the rows say."""
        batch = {
            name: np.zeros((len(rows), 16), np.int32)
            for name in ("token_ids", "segment_ids", "positions")
        }
        spans = {}
        for number, row in enumerate(rows):
            start = 0
            for segment, text in enumerate(row, 1):
                span = slice(start, start + len(texts[text]))
                spans[text] = (number, span)
                batch["token_ids"][number, span] = texts[text]
                batch["segment_ids"][number, span] = segment
                batch["positions"][number, span] = np.arange(len(texts[text]))
                start = span.stop
        arrays = {name: jnp.asarray(array) for name, array in batch.items()}
        states = hidden_states_of_embeddings(
            config,
            params,
            embed(config, params, arrays["token_ids"], jnp.float32),
            arrays["segment_ids"],
            arrays["positions"],
            dropout_seeds=dropout_seeds(jax.random.key(key), arrays) if drop else None,
        )
        return {text: np.asarray(states[row, span]) for text, (row, span) in spans.items()}

    packed = run([[0, 1, 2]])
    for rows in ([[2, 0], [1]], [[1, 2, 0]], [[0], [1], [2]]):
        for text, states in run(rows).items():
            np.testing.assert_allclose(states, packed[text], atol=1e-5)
    for changed in (run([[0, 1, 2]], key=1), run([[0, 1, 2]], drop=False)):
        assert np.abs(changed[1] - packed[1]).max() > 1e-2


@pytest.mark.long
def test_a_step_drops_anew_and_micro_batches_drop_the_same() -> None:
    config = tiny_config(num_layers=2)
    base = tiny_params(config)
    options = AdapterOptions(rank=2, dropout=0.3)
    selection = select_modules(options, decoder_modules(config))
    made = build_adapters(base, options, selection, jax.random.key(0))
    noisy = {
        path: leaf
        if path.endswith(("lora_scale", "lora_dropout", "lora_salt"))
        else leaf + 0.2 * jax.random.normal(jax.random.key(1), leaf.shape)
        for path, leaf in flatten(made.adapters).items()
    }
    params = combine(unflatten(noisy), base)
    rules = [(r".*/lora_(a|b)", True), (r".*", False)]
    losses = []
    for micro_batches, key in ((1, 0), (4, 0), (1, 1), (1, None)):
        step, state, frozen, _ = trainer(
            config,
            params,
            rules,
            micro_batches=micro_batches,
            dropout=key is not None,
            key=None if key is None else jax.random.key(key),
        )
        batch = packed_batch(config, rows=4)
        later = state.replace(step=state.step + 1)
        losses.append([float(step(one, frozen, batch)[1]["loss"]) for one in (state, later)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert losses[0][0] != losses[0][1]  # another mask in another step
    assert losses[0][0] != losses[2][0]  # and of another key
    assert losses[3][0] == losses[3][1] != losses[0][0]
