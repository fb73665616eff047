"""Fisher information: per-example gradients squared, a closed form, and sums over tasks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.errors import DataError
from jaxrecipes.models import decoder
from jaxrecipes.params.partition import partition
from jaxrecipes.params.paths import flatten
from jaxrecipes.train.causal_loss import batch_loss
from jaxrecipes.train.fisher import accumulate_fisher, diagonal_fisher, draw_tokens
from jaxrecipes.train.loss import next_token_targets
from tests.tiny import packed_batch, tiny_config, tiny_params


def rows_of(batch):
    return [{key: array[row] for key, array in batch.items()} for row in range(4)]


def examples_of(batch):
    """Every segment alone in a row of its own, with its supervised tokens."""
    found = []
    for row in range(4):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            inside = batch["segment_ids"][row] == segment
            alone = {}
            for key, values in batch.items():
                alone[key] = np.zeros((1, 16), values.dtype)
                alone[key][0, : inside.sum()] = 1 if key == "segment_ids" else values[row][inside]
            if alone["loss_mask"][0, 1 : inside.sum()].any():
                found.append(alone)
    return found


def test_it_is_the_mean_of_squared_gradients_of_examples_alone():
    """Of packed rows, and of the leaves that train only; not the square of the batch's gradient."""
    config = tiny_config(num_layers=2)
    params, batch = tiny_params(config), packed_batch(config)
    trainable, frozen = partition(params, lambda path: path.startswith("layers/1"))
    fisher, count = diagonal_fisher(
        config, trainable, frozen, rows_of(batch), targets="data", loss_chunk=7
    )
    alone = examples_of(batch)
    assert count == len(alone) > 4
    gradient = jax.jit(jax.grad(lambda params, one: batch_loss(config, params, one)))
    squares = [flatten(jax.tree.map(jnp.square, gradient(params, one))) for one in alone]
    assert set(flatten(fisher)) == {path for path in flatten(params) if path.startswith("layers/1")}
    for path, leaf in flatten(fisher).items():
        expected = np.mean([square[path] for square in squares], axis=0)
        np.testing.assert_allclose(leaf, expected, rtol=2e-3, atol=1e-5 * expected.max())
    whole = flatten(gradient(params, batch))
    path = "layers/1/mlp/up/kernel"
    assert not np.allclose(flatten(fisher)[path], np.square(whole[path]) / count, rtol=0.5)
    half, two = diagonal_fisher(
        config, trainable, frozen, rows_of(batch), targets="data", examples=2
    )
    assert two == 2
    np.testing.assert_allclose(
        flatten(half)[path], (squares[0][path] + squares[1][path]) / 2, rtol=2e-3, atol=1e-6
    )


def test_drawn_targets_give_the_closed_form_of_a_linear_model():
    """Of the head h of p = softmax(h x): F = sum over tokens of E (p - y)^2 x^2 = p (1 - p) x^2."""
    config = tiny_config("untied", num_layers=1, vocab_size=7)
    params = tiny_params(config)
    trainable, frozen = partition(params, lambda path: path == "head/kernel")
    batch = packed_batch(config)
    row = rows_of(batch)[0]
    draws = 300
    found = [
        diagonal_fisher(config, trainable, frozen, [row] * 60, seed=seed)[0]["head"]["kernel"]
        for seed in range(draws // 60)
    ]
    states = decoder.hidden_states(
        config, params, batch["token_ids"], batch["segment_ids"], batch["positions"]
    )[0]
    _, weights = next_token_targets(batch["token_ids"], batch["segment_ids"], batch["loss_mask"])
    p = jax.nn.softmax(states @ params["head"]["kernel"])
    variance = np.asarray(p * (1 - p)) * np.asarray(weights)[0][:, None]
    segments = len({*row["segment_ids"][np.asarray(weights)[0] > 0]})
    expected = np.einsum("th,tv->hv", np.square(np.asarray(states)), variance) / segments
    ratio = np.mean(found, axis=0).sum() / expected.sum()
    assert ratio == pytest.approx(1.0, abs=0.06)
    correlation = np.corrcoef(np.mean(found, axis=0).ravel(), expected.ravel())[0, 1]
    assert correlation > 0.97


def test_draws_follow_the_distribution_whatever_the_chunk():
    states = jnp.tile(jnp.asarray([[[1.0, -1.0]]]), (1, 20000, 1))
    head = jnp.asarray([[0.3, -0.2, 0.9], [0.1, 0.4, -0.5]])
    drawn = draw_tokens(states, head, jax.random.key(0), chunk=999)
    shares = np.bincount(np.asarray(drawn).ravel(), minlength=3) / 20000
    np.testing.assert_allclose(shares, jax.nn.softmax(states[0, 0] @ head), atol=0.015)
    capped = draw_tokens(states, head, jax.random.key(0), softcap=0.01)
    np.testing.assert_allclose(np.bincount(np.asarray(capped).ravel()) / 20000, 1 / 3, atol=0.015)


def test_rows_without_supervised_tokens_are_refused():
    config = tiny_config(num_layers=1)
    batch = packed_batch(config)
    batch["loss_mask"][:] = False
    # A first token is no target: there is nothing before it.
    batch["loss_mask"][:, 0] = True
    with pytest.raises(DataError, match="no supervised token"):
        diagonal_fisher(config, tiny_params(config), {}, rows_of(batch))


values = st.lists(
    st.tuples(*[st.floats(-2, 2, width=32)] * 1, st.floats(0, 3, width=32)), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(values, st.floats(-2, 2))
def test_separate_quadratics_are_one_but_for_a_constant(tasks, at):
    """The derivative of the sum over tasks of F_k (theta - theta_k)^2 is that of the joined one."""
    joined = None
    for start, fisher in tasks:
        now, own = {"a": jnp.asarray([start])}, {"a": jnp.asarray([fisher])}
        if joined is None:
            joined = {"start": now, "fisher": own}
        else:
            joined = accumulate_fisher(joined, now, own)
    assert joined is not None
    slope = float((joined["fisher"]["a"] * (at - joined["start"]["a"]))[0])
    expected = sum(fisher * (at - start) for start, fisher in tasks)
    assert slope == pytest.approx(expected, abs=1e-3)
    if not any(fisher for _, fisher in tasks):
        assert float(joined["start"]["a"][0]) == pytest.approx(tasks[-1][0])


@settings(max_examples=30, deadline=None)
@given(values, st.floats(0.1, 1))
def test_online_information_decays_around_the_latest_parameters(tasks, decay):
    joined = {"start": {"a": jnp.asarray([9.0])}, "fisher": {"a": jnp.zeros(1)}}
    for start, fisher in tasks:
        joined = accumulate_fisher(
            joined,
            {"a": jnp.asarray([start])},
            {"a": jnp.asarray([fisher])},
            how="online",
            decay=decay,
        )
    expected = sum(fisher * decay**age for age, (_, fisher) in enumerate(reversed(tasks)))
    assert float(joined["fisher"]["a"][0]) == pytest.approx(expected, abs=1e-4)
    assert float(joined["start"]["a"][0]) == pytest.approx(tasks[-1][0])
