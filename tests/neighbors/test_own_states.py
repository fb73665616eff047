import numpy as np

from jaxrecipes.models.decoder import hidden_states
from jaxrecipes.neighbors.own_states import mean_state_vectors
from tests.tiny import tiny_config, tiny_params


def test_vectors_are_means_over_tokens_whatever_is_beside_them():
    config = tiny_config(num_layers=1)
    params = tiny_params(config)
    generator = np.random.default_rng(0)
    texts = [generator.integers(0, 61, size).tolist() for size in (3, 70, 12)]
    found = mean_state_vectors(config, params, texts, rows=2)
    assert found.shape == (3, 32)
    for text, vector in zip(texts, found, strict=True):
        tokens = np.asarray([text], np.int32)
        places = np.arange(len(text))[None]
        states = np.asarray(hidden_states(config, params, tokens, np.ones_like(tokens), places))
        mean = states[0].mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=2e-5)
