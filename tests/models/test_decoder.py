"""The decoder's tree, and what a packed row may see."""

import jax
import numpy as np
import pytest

from jaxrecipes.models.decoder import abstract_params, hidden_states, init_params, logits
from tests.tiny import KINDS, TWO_KINDS, tiny_config


@pytest.mark.parametrize("kind", KINDS)
def test_the_abstract_tree_is_that_of_initialisation(kind):
    config = tiny_config(kind, num_layers=5)
    full = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert abstract_params(config) == full
    assert list(abstract_params(config)["layers"]) == [str(index) for index in range(5)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", TWO_KINDS)
def test_documents_of_a_packed_row_do_not_see_each_other(kind):
    config = tiny_config(kind)
    params = init_params(config, jax.random.key(1))
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, config.vocab_size, size) for size in (5, 9, 3)]
    length = 20  # three tokens of padding
    token_ids, segment_ids, positions = np.zeros((3, 1, length), np.int32)
    start = 0
    for number, document in enumerate(documents, 1):
        stop = start + len(document)
        token_ids[0, start:stop] = document
        segment_ids[0, start:stop] = number
        positions[0, start:stop] = np.arange(len(document))
        start = stop
    together = hidden_states(config, params, token_ids, segment_ids, positions)[0]
    start = 0
    for document in documents:
        one = np.asarray(document, np.int32)[None]
        at = np.arange(len(document), dtype=np.int32)[None]
        alone = hidden_states(config, params, one, np.ones_like(one), at)[0]
        np.testing.assert_allclose(together[start : start + len(document)], alone, atol=1e-5)
        np.testing.assert_allclose(
            logits(config, params, together[start : start + len(document)]),
            logits(config, params, alone),
            atol=1e-4,
        )
        start += len(document)
