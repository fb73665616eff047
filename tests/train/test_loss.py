import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.train.loss import chunked_cross_entropy, next_token_targets, token_losses


def naive(hidden, head, targets, weights, softcap):
    logits = hidden @ head
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    losses = -jax.nn.log_softmax(logits)[jnp.arange(len(targets)), targets]
    return jnp.sum(losses * weights)


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(
    tokens=st.integers(1, 40),
    chunk=st.integers(1, 48),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    vocab_first=st.booleans(),
    seed=st.integers(0, 99),
)
def test_loss_and_gradients_equal_the_written_out_formula(
    tokens, chunk, softcap, vocab_first, seed
):
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden = jax.random.normal(keys[0], (tokens, 8))
    head = jax.random.normal(keys[1], (8, 23))
    targets = jax.random.randint(keys[2], (tokens,), 0, 23)
    weights = (jax.random.uniform(keys[3], (tokens,)) < 0.7).astype(jnp.float32)

    def ours(hidden, head):
        head = head.T if vocab_first else head
        return chunked_cross_entropy(
            hidden[None],
            head,
            targets[None],
            weights[None],
            vocab_first=vocab_first,
            softcap=softcap,
            chunk=chunk,
        )

    def formula(hidden, head):
        return naive(hidden, head, targets, weights, softcap)

    # One program: compiling each operation of every example alone takes minutes.
    @jax.jit
    def computed(hidden, head):
        return {
            "expected": jax.value_and_grad(formula, (0, 1))(hidden, head),
            "both": jax.value_and_grad(ours, (0, 1))(hidden, head),
            # A frozen head and frozen states must not change the other's gradient.
            "alone": [jax.grad(ours, argument)(hidden, head) for argument in (0, 1)],
            "value": ours(hidden, head),
            "each": token_losses(hidden, head, targets, softcap=softcap, chunk=chunk),
        }

    found = computed(hidden, head)
    value, gradients = found["expected"]
    for got, want in zip(
        jax.tree.leaves(found["both"]), jax.tree.leaves(found["expected"]), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-5)
    for got, want in zip(found["alone"], gradients, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(found["value"], value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(found["each"] * weights), value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head_trains", [True, False])
def test_temporary_memory_is_at_most_a_quarter_of_the_naive_form(head_trains):
    tokens, hidden_size, vocab = 2048, 64, 32_768
    shapes = (
        jax.ShapeDtypeStruct((tokens, hidden_size), jnp.float32),
        jax.ShapeDtypeStruct((hidden_size, vocab), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
        jax.ShapeDtypeStruct((tokens,), jnp.float32),
    )

    def temp(function):
        gradient = jax.grad(function, (0, 1) if head_trains else 0)
        return jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    chunked = temp(
        lambda h, w, t, m: chunked_cross_entropy(h[None], w, t[None], m[None], chunk=256)
    )
    assert chunked <= temp(lambda h, w, t, m: naive(h, w, t, m, None)) / 4


def test_targets_stay_inside_their_document_and_padding_is_never_one():
    batch = {
        "token_ids": np.array([[5, 6, 7, 8, 9, 0, 0]], np.int32),
        "segment_ids": np.array([[1, 1, 2, 2, 2, 0, 0]], np.int32),
        "loss_mask": np.array([[1, 1, 1, 0, 1, 1, 1]], bool),
    }
    targets, weights = next_token_targets(**batch)
    np.testing.assert_array_equal(targets[0, :4], [6, 7, 8, 9])
    np.testing.assert_array_equal(weights[0], [1, 0, 0, 1, 0, 0, 0])
