import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxrecipes.train.perturb.divergence import chunked_kl, kl_divergence, squared_difference


def by_hand(p, q):
    p, q = log_softmax(p.astype(np.float64), -1), log_softmax(q.astype(np.float64), -1)
    return (np.exp(p) * (p - q)).sum(-1)


@pytest.mark.parametrize("apart", [3.0, 1e-2, 1e-4])
def test_kl_keeps_its_digits_for_close_distributions(apart):
    generator = np.random.default_rng(0)
    p = generator.normal(0, 2, (50, 100)).astype(np.float32)
    q = (p + apart * generator.normal(0, 1, p.shape)).astype(np.float32)
    np.testing.assert_allclose(kl_divergence(p, q), by_hand(p, q), rtol=2e-2, atol=1e-12)
    # In one direction, and with the gradient q - p.
    gradient = jax.grad(lambda q: kl_divergence(p, q).sum())(q)
    expected = np.exp(log_softmax(q, -1)) - np.exp(log_softmax(p, -1))
    np.testing.assert_allclose(gradient, expected, atol=2e-7)


def test_squares_of_both_directions_are_the_square():
    assert float(squared_difference(np.float32(3), np.float32(1))) * 2 == 4.0


@pytest.mark.parametrize("vocab_first", [True, False])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_chunks_are_the_whole(vocab_first, softcap):
    generator = np.random.default_rng(0)
    states, others = generator.normal(0, 1, (2, 3, 11, 8)).astype(np.float32)
    heads = generator.normal(0, 1, (2, 8, 30)).astype(np.float32)
    weights = (generator.random((3, 11)) < 0.7).astype(np.float32)
    stored = [head.T if vocab_first else head for head in heads]

    def total(states):
        return chunked_kl(
            states,
            stored[0],
            others,
            stored[1],
            weights,
            vocab_first=vocab_first,
            softcap=softcap,
            chunk=7,
        )

    def logits(states, head):
        values = states @ head
        return values if softcap is None else softcap * np.tanh(values / softcap)

    expected = (by_hand(logits(states, heads[0]), logits(others, heads[1])) * weights).sum()
    value, gradient = jax.value_and_grad(total)(states)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert (np.asarray(gradient)[weights == 0] == 0).all() and np.abs(gradient).max() > 0
