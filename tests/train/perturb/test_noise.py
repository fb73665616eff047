import jax
import numpy as np

from jaxrecipes.train.perturb import NEFTune

from .problems import apart, cut, packed

WIDTH = 64


def test_the_scale_is_that_of_each_texts_true_length():
    batch, method = packed(), NEFTune(alpha=5.0)
    ratios = []
    for seed in range(20):
        noise = method.perturbation(batch, jax.random.key(seed), WIDTH)
        assert (np.asarray(noise)[batch["segment_ids"] == 0] == 0).all()
        for text in cut(noise, batch):
            bound = 5.0 / np.sqrt(text.size)
            assert np.abs(text).max() <= bound
            ratios.append(text.std() / (bound / np.sqrt(3)))
    # The library scales by the row: these would be sqrt(L / 20), 0.3 for two tokens.
    np.testing.assert_allclose(np.reshape(ratios, (20, -1)).mean(axis=0), 1.0, atol=0.05)


def test_packing_changes_no_bit():
    batch, key = packed(), jax.random.key(7)
    method = NEFTune(alpha=10.0)
    here = cut(method.perturbation(batch, key, WIDTH), batch)
    there = cut(method.perturbation(apart(batch), key, WIDTH), apart(batch))
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a, b)
    again = cut(method.perturbation(batch, jax.random.key(8), WIDTH), batch)
    assert not any((a == b).any() for a, b in zip(here, again, strict=True))
