"""Adapters: they start as the identity, they alone train, and merged they compute the same."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrecipes.checkpoint.peft_names import decoder_modules
from jaxrecipes.models.decoder import hidden_states, logits
from jaxrecipes.models.dense import adapted_kernel, add_adapter, column_norms
from jaxrecipes.params.layout import plan_layout, to_canonical, to_runtime
from jaxrecipes.params.lora import (
    TRAINED_LEAVES,
    Adapted,
    adapter_rules,
    build_adapters,
    merge_adapters,
    split_adapters,
)
from jaxrecipes.params.lora_options import AdapterOptions
from jaxrecipes.params.lora_targets import Selection, select_modules
from jaxrecipes.params.partition import combine, partition
from jaxrecipes.params.paths import flatten, unflatten
from jaxrecipes.params.rules import label
from jaxrecipes.train.causal_loss import batch_loss
from jaxrecipes.train.flops import count_flops
from tests.tiny import packed_batch, tiny_config, tiny_params, trainer

RANKS = AdapterOptions(
    rank=4,
    alpha=8,
    targets=("q_proj", "down_proj"),
    rank_pattern={r"layers\.2\..*": 2},
    alpha_pattern={r"layers\.3\..*q_proj": 3.0},
    use_dora=True,
)
KINDS = {
    "plain": AdapterOptions(rank=4),
    "dora": AdapterOptions(rank=4, use_dora=True),
    "ranks": RANKS,
    "some_layers": AdapterOptions(rank=4, targets=("q_proj",), layers_to_transform=(1, 2)),
    "embeddings": AdapterOptions(rank=4, targets=("v_proj",), embeddings=True, use_dora=True),
    "saved": AdapterOptions(rank=4, targets=("q_proj",), modules_to_save=("norm",)),
    "tokens": AdapterOptions(rank=4, targets=("q_proj",), trainable_tokens=(7, 3)),
}


def made(config: Any, params: Any, options: AdapterOptions) -> tuple[Selection, Adapted]:
    selection = select_modules(options, decoder_modules(config))
    return selection, build_adapters(params, options, selection, jax.random.key(0))


def moved(tree: Any, seed: int = 0) -> Any:
    """Every adapter's A, B, magnitude and token rows, away from where they start."""
    generator = np.random.default_rng(seed)
    leaves = flatten(tree)
    for path in sorted(leaves):
        if path.endswith(("lora_a", "lora_b", "lora_magnitude", "token_delta")):
            noise = generator.standard_normal(leaves[path].shape).astype(np.float32)
            leaves[path] = np.asarray(leaves[path]) + 0.2 * noise
    return unflatten(leaves)


def all_logits(config: Any, params: Any) -> np.ndarray:
    batch = packed_batch(config)
    states = hidden_states(
        config, params, batch["token_ids"], batch["segment_ids"], batch["positions"]
    )
    return np.asarray(logits(config, params, states))


@pytest.mark.parametrize("kind", ["biased", "sandwich"])
@pytest.mark.parametrize("init", ["kaiming", "gaussian", "orthogonal", "pissa", "olora"])
def test_new_adapters_compute_the_base(kind: str, init: Any) -> None:
    config = tiny_config(kind, num_layers=2)
    params = tiny_params(config)
    options = AdapterOptions(
        rank=4, init=init, use_dora=kind == "biased", embeddings=True, trainable_tokens=()
    )
    _, adapted = made(config, params, options)
    before, after = (
        all_logits(config, params),
        all_logits(config, combine(adapted.adapters, adapted.base)),
    )
    if init in ("kaiming", "gaussian") and not options.use_dora:
        np.testing.assert_array_equal(after, before)
    np.testing.assert_allclose(after, before, atol=2e-4)
    changed = {
        path
        for path, leaf in flatten(adapted.base).items()
        if not np.array_equal(leaf, flatten(params)[path])
    }
    takes = init in ("pissa", "olora")
    assert bool(changed) == takes
    assert set(flatten(adapted.initial)) == {
        path
        for path in flatten(adapted.adapters)
        if takes and path.startswith("layers/") and path.endswith(("lora_a", "lora_b"))
    }
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(adapted.adapters)}
    assert dtypes == {np.dtype(np.float32)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ranks", "embeddings", "saved", "tokens"])
def test_only_adapters_train_and_the_base_stays_bit_for_bit(kind: str) -> None:
    config = tiny_config("untied" if kind == "saved" else "llama")
    params = tiny_params(config)
    selection, adapted = made(config, params, KINDS[kind])
    tree = combine(adapted.adapters, adapted.base)
    rules = adapter_rules(selection)
    trains = label(tree, rules)
    assert sum(flatten(tree)[path].size for path in trains if trains[path]) == selection.parameters
    layout = plan_layout(config, trains, tree=tree)
    step, state, frozen, _ = trainer(
        config, tree, rules, layout=layout, settings={"weight_decay": 0.5}
    )
    before = to_canonical(layout, combine(state.trainable, frozen))
    for seed in range(4):
        state, metrics = step(state, frozen, packed_batch(config, seed=seed))
    assert bool(metrics["accepted"])
    after = flatten(to_canonical(layout, combine(state.trainable, frozen)))
    for path, leaf in flatten(before).items():
        same = np.array_equal(np.asarray(leaf), np.asarray(after[path]))
        assert same != trains[path], path
    base = flatten(split_adapters(to_canonical(layout, frozen))[1])
    for path, leaf in base.items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(flatten(params)[path]), path)


@pytest.mark.slow
def test_scans_compute_what_single_layers_compute() -> None:
    """Layers of other ranks do not share a stack, layers of other alphas do."""
    config = tiny_config("llama", num_layers=6)
    params = tiny_params(config)
    selection, adapted = made(config, params, RANKS)
    tree = moved(combine(adapted.adapters, adapted.base))
    rules = adapter_rules(selection)
    layout = plan_layout(config, label(tree, rules), tree=tree)
    # Layers 0 and 1, then the one of rank 2, then 3 to 5, of which 3 has another alpha.
    assert [(segment.runs, segment.repeats) for segment in layout.segments] == [((2, 1, 3), 1)]
    batch = packed_batch(config)
    trainable, frozen = partition(tree, lambda path: path.endswith(TRAINED_LEAVES))

    def gradient(layout: Any, trainable: Any, frozen: Any) -> Any:
        def loss(trainable: Any) -> jax.Array:
            return batch_loss(config, combine(trainable, frozen), batch, layout=layout)

        return jax.jit(jax.value_and_grad(loss))(trainable)

    expected, single = gradient(None, trainable, frozen)
    value, scanned = gradient(layout, to_runtime(layout, trainable), to_runtime(layout, frozen))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    found = flatten(to_canonical(layout, scanned))
    for path, leaf in flatten(single).items():
        np.testing.assert_allclose(found[path], leaf, rtol=2e-3, atol=2e-4, err_msg=path)


def test_dora_treats_the_norm_as_a_constant() -> None:
    """Section 4.3 of the paper: the gradient is that of the formula with the norm as a number."""
    generator = np.random.default_rng(0)
    kernel, inputs, direction = (
        jnp.asarray(generator.standard_normal(shape), jnp.float32)
        for shape in ((5, 4), (3, 5), (3, 4))
    )
    leaves = {
        "lora_a": jnp.asarray(generator.standard_normal((5, 2)), jnp.float32),
        "lora_b": jnp.asarray(generator.standard_normal((2, 4)), jnp.float32),
        "lora_scale": jnp.asarray(1.5, jnp.float32),
        "lora_magnitude": jnp.asarray(generator.standard_normal(4), jnp.float32),
    }
    norms = column_norms(adapted_kernel(kernel, leaves))

    def ours(leaves: Any) -> jax.Array:
        return jnp.sum(
            direction * add_adapter(inputs @ kernel, inputs, leaves | {"kernel": kernel})
        )

    def with_constant_norm(leaves: Any) -> jax.Array:
        changed = kernel + leaves["lora_scale"] * leaves["lora_a"] @ leaves["lora_b"]
        return jnp.sum(direction * (inputs @ changed) * (leaves["lora_magnitude"] / norms))

    gradient, expected = jax.grad(ours)(leaves), jax.grad(with_constant_norm)(leaves)
    for name in ("lora_a", "lora_b", "lora_magnitude"):
        np.testing.assert_allclose(gradient[name], expected[name], rtol=2e-5, atol=1e-5)


@pytest.mark.slow
def test_a_step_computes_no_gradient_of_a_frozen_kernel() -> None:
    """A full step has these and this one has not; what is left are the adapters' own products."""
    config = tiny_config("llama", num_layers=2, hidden_size=64, intermediate_size=256, head_dim=16)
    params = tiny_params(config)
    batch = packed_batch(config, rows=4, length=32)
    counts = {}
    for rank in (1, 2):
        selection, adapted = made(config, params, AdapterOptions(rank=rank))
        tree = combine(adapted.adapters, adapted.base)
        rules = adapter_rules(selection)
        layout = plan_layout(config, label(tree, rules), tree=tree)
        step, state, frozen, _ = trainer(config, tree, rules, layout=layout)
        counts[rank] = count_flops(step, state, frozen, batch)
    step, state, frozen, _ = trainer(config, params, [(".*", True)])
    full = count_flops(step, state, frozen, batch)
    tokens = batch["token_ids"].size
    per_rank = counts[2] - counts[1]
    without = counts[1] - per_rank
    kernels = sum(leaf.size for path, leaf in flatten(params).items() if path.endswith("/kernel"))
    table = params["embedding"]["table"].size
    # What a full step has and this one has not: the gradients of kernels and of the table.
    assert full - without == 2 * tokens * (kernels + table)
    # Three products a factor: forward, and the gradients of factor and states. The lowest layer's
    # inputs need none, but JAX counts that once for each of its first three adapters.
    wanted = 3 * 2 * tokens * selection.parameters / 2
    assert per_rank <= wanted
    assert per_rank > 0.9 * wanted


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_computes_the_same(kind: str) -> None:
    config = tiny_config("sandwich" if kind == "embeddings" else "llama")
    params = tiny_params(config)
    _, adapted = made(config, params, KINDS[kind])
    tree = moved(combine(adapted.adapters, adapted.base))
    probe = packed_batch(config)["token_ids"]
    merged = merge_adapters(config, tree, probe=probe)
    before, after = all_logits(config, tree), all_logits(merged.config, merged.params)
    assert np.max(np.abs(before - all_logits(config, params))) > 1e-2
    np.testing.assert_allclose(after, before, atol=2e-4)
    assert merged.drift.max_logit_error is not None and merged.drift.max_logit_error < 2e-4
    assert merged.drift.max_error < 1e-6 and merged.drift.relative_error < 1e-6
    # A tied head never had the embedding's adapter, so it is a matrix of its own now.
    assert merged.config.tie_embeddings == (kind != "embeddings")
    assert set(split_adapters(merged.params)[0]) == set()


@pytest.mark.slow
def test_the_drift_of_a_merge_in_bfloat16_is_measured() -> None:
    config = tiny_config("llama")
    params = tiny_params(config)
    _, adapted = made(config, params, AdapterOptions(rank=4, targets=("q_proj",)))
    leaves = flatten(combine(adapted.adapters, adapted.base))
    for path in leaves:
        if path.endswith("lora_b"):
            leaves[path] = jnp.full(leaves[path].shape, 1e-4, jnp.float32)
    tree = unflatten(leaves)
    merged = merge_adapters(config, tree, dtype=jnp.bfloat16, probe=np.ones((1, 5), np.int32))
    kernel = flatten(merged.params)["layers/0/attention/query/kernel"]
    assert kernel.dtype == jnp.bfloat16
    exact = np.asarray(leaves["layers/0/attention/query/kernel"], np.float64)
    exact = exact + 8.0 * np.asarray(
        leaves["layers/0/attention/query/lora_a"], np.float64
    ) @ np.asarray(leaves["layers/0/attention/query/lora_b"], np.float64)
    error = np.max(np.abs(np.asarray(kernel, np.float64) - exact))
    assert merged.drift.max_error >= error * 0.999
    # An update this small is mostly lost, and the number says so.
    assert merged.drift.relative_error > 0.5
    assert merged.drift.worst.endswith("query/kernel")


def test_a_modules_start_depends_on_its_path_and_the_key_alone() -> None:
    config = tiny_config("llama")
    params = tiny_params(config)
    _, one = made(config, params, AdapterOptions(rank=4, targets=("q_proj",)))
    _, all_of_them = made(config, params, AdapterOptions(rank=4))
    for path, leaf in flatten(one.adapters).items():
        np.testing.assert_array_equal(leaf, flatten(all_of_them.adapters)[path])
    starts = [
        np.asarray(leaf) for path, leaf in flatten(one.adapters).items() if path.endswith("lora_a")
    ]
    assert not np.array_equal(starts[0], starts[1])
