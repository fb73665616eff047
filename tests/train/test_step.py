import jax
import numpy as np
import pytest

from jaxrecipes.models import decoder
from jaxrecipes.models.stacking import REMAT_POLICIES
from jaxrecipes.params.expansion import expand_blocks
from jaxrecipes.params.layout import to_canonical
from jaxrecipes.params.partition import combine
from jaxrecipes.params.paths import flatten
from jaxrecipes.params.surgery import layers_pattern
from jaxrecipes.train.causal_loss import batch_loss
from tests.tiny import KINDS, packed_batch, tiny_config, tiny_params, trainer


def recipes(config, params):
    """(config, params, rules) of every recipe that changes or freezes something."""
    expanded = expand_blocks(config, params, new_blocks=2)
    copied = expand_blocks(config, params, new_blocks=2, init="copy")
    yield "full", config, params, [(".*", True)]
    for name, e in (("block_expansion", expanded), ("copy", copied)):
        yield name, e.config, e.params, [(layers_pattern(e.positions), True), (".*", False)]
    yield "strided_freeze", config, params, [(layers_pattern([1, 3]), True), (".*", False)]
    yield "norms", config, params, [(".*norm/scale", True), (".*", False)]
    yield "top", config, params, [("(layers/3|final_norm)/.*", True), (".*", False)]


@pytest.mark.parametrize(
    "kind",
    [kind if kind == "untied" else pytest.param(kind, marks=pytest.mark.long) for kind in KINDS],
)
def test_frozen_leaves_stay_bit_identical_and_trained_ones_move(kind):
    base = tiny_config(kind)
    for name, config, params, rules in recipes(base, tiny_params(base)):
        step, state, frozen, layout = trainer(
            config, params, rules, settings={"weight_decay": 0.1, "total_steps": 20}
        )
        losses = []
        for number in range(20):
            state, metrics = step(state, frozen, packed_batch(config, seed=number % 2))
            losses.append(float(metrics["loss"]))
        after = flatten(to_canonical(layout, combine(state.trainable, frozen)))
        trained = set(flatten(to_canonical(layout, state.trainable)))
        assert np.mean(losses[-2:]) < np.mean(losses[:2]), name
        for path, before in flatten(params).items():
            same = np.array_equal(after[path], before)
            assert same == (path not in trained), (name, path)


@pytest.mark.slow
def test_micro_batches_are_one_batch():
    config = tiny_config()
    params, batch = tiny_params(config), packed_batch(config, rows=8)
    # Rows with very different numbers of supervised tokens: a mean of means would differ.
    batch["loss_mask"][:6] = False
    batch["loss_mask"][:6, 1] = True
    results = {}
    for parts in (1, 2, 8):
        step, state, frozen, _ = trainer(config, params, [(".*", True)], micro_batches=parts)
        for _ in range(4):
            state, metrics = step(state, frozen, batch)
        results[parts] = (state.trainable, float(metrics["loss"]), float(metrics["gradient_norm"]))
    for parts in (2, 8):
        assert results[parts][1:] == pytest.approx(results[1][1:], rel=1e-5)
        for a, b in zip(
            jax.tree.leaves(results[1][0]), jax.tree.leaves(results[parts][0]), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_have_the_loss_of_their_documents_alone(kind):
    config = tiny_config(kind)
    params, batch = tiny_params(config), packed_batch(config)
    apart = {key: [] for key in batch}
    for row in range(4):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            inside = batch["segment_ids"][row] == segment
            for key, values in batch.items():
                alone = np.zeros(16, values.dtype)
                alone[: inside.sum()] = 1 if key == "segment_ids" else values[row][inside]
                apart[key].append(alone)
    apart = {key: np.stack(rows) for key, rows in apart.items()}
    assert len(apart["token_ids"]) > 4
    np.testing.assert_allclose(
        batch_loss(config, params, batch), batch_loss(config, params, apart), rtol=2e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_does_not_see_its_neighbour(kind):
    config = tiny_config(kind)
    params, batch = tiny_params(config), packed_batch(config)
    first = batch["segment_ids"] == 1
    changed = np.where(first, (batch["token_ids"] + 7) % config.vocab_size, batch["token_ids"])

    def states(token_ids):
        return np.asarray(
            decoder.hidden_states(
                config, params, token_ids, batch["segment_ids"], batch["positions"]
            )
        )

    before, after = states(batch["token_ids"]), states(changed)
    others = (batch["segment_ids"] > 1)[..., None]
    assert np.array_equal(np.where(others, before, 0), np.where(others, after, 0))
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("policy", REMAT_POLICIES)
def test_remat_changes_memory_and_not_the_result(policy):
    config = tiny_config(num_layers=6)
    params, batch = tiny_params(config), packed_batch(config)
    rules = [("layers/(1|3|5)/.*", True), (".*", False)]
    step, state, frozen, _ = trainer(config, params, rules, remat=policy)
    plain, plain_state, _, _ = trainer(config, params, rules)
    state, metrics = step(state, frozen, batch)
    plain_state, expected = plain(plain_state, frozen, batch)
    assert float(metrics["gradient_norm"]) == pytest.approx(
        float(expected["gradient_norm"]), rel=1e-5
    )


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_and_keeps_trained_leaves_in_float32():
    import jax.numpy as jnp

    config = tiny_config()
    step, state, frozen, _ = trainer(
        config,
        tiny_params(config),
        [("layers/1/.*", True), (".*", False)],
        compute_dtype=jnp.bfloat16,
    )
    frozen = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), frozen)
    new, metrics = step(state, frozen, packed_batch(config))
    assert {leaf.dtype for leaf in jax.tree.leaves(new.trainable)} == {jnp.dtype("float32")}
    reference, plain, whole, _ = trainer(
        config, tiny_params(config), [("layers/1/.*", True), (".*", False)]
    )
    _, expected = reference(plain, whole, packed_batch(config))
    assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), rel=0.02)
    assert float(metrics["loss"]) != float(expected["loss"])


def test_a_bad_step_changes_nothing_but_the_counters():
    config = tiny_config()
    step, state, frozen, _ = trainer(config, tiny_params(config), [(".*", True)])
    batch = packed_batch(config)
    state, _ = step(state, frozen, batch)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, state.trainable)
    for bad_state, bad_batch in (
        (state.replace(trainable=broken), batch),
        (state, {**batch, "loss_mask": np.zeros_like(batch["loss_mask"])}),
    ):
        after, metrics = step(bad_state, frozen, bad_batch)
        assert not bool(metrics["accepted"]) and int(metrics["skipped"]) == 1
        for old, new in zip(
            jax.tree.leaves((bad_state.trainable, bad_state.optimizer_state)),
            jax.tree.leaves((after.trainable, after.optimizer_state)),
            strict=True,
        ):
            np.testing.assert_array_equal(old, new)
        assert int(after.step) == 2
