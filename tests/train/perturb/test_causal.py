"""A decoder as a problem: its predictions are the model's own, whatever its head is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrecipes.models.decoder import hidden_states, logits
from jaxrecipes.params.partition import partition
from jaxrecipes.train.perturb.causal import causal_problem
from tests.tiny import tiny_config, tiny_params


@pytest.mark.parametrize("kind", ["llama", "untied"])
@pytest.mark.parametrize("trained_tokens", [False, True])
def test_predictions_are_the_logits_of_the_model(kind, trained_tokens):
    config = tiny_config(kind)
    params = tiny_params(config)
    if trained_tokens:
        ids = jnp.asarray([3, 7], jnp.int32)
        rows = jax.random.normal(jax.random.key(5), (2, config.hidden_size))
        leaves = {**params["embedding"], "token_ids": ids, "token_delta": rows}
        params = {**params, "embedding": leaves}
    token_ids = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 9)), jnp.int32)
    batch = {
        "token_ids": token_ids,
        "segment_ids": jnp.ones_like(token_ids),
        "positions": jnp.broadcast_to(jnp.arange(9, dtype=jnp.int32), token_ids.shape),
        "loss_mask": jnp.ones_like(token_ids),
    }
    trainable, frozen = partition(params, lambda path: not path.endswith("token_ids"))
    problem = causal_problem(config, frozen)
    assert problem.outputs is not None and problem.divergence is not None
    states, head = problem.outputs(trainable, problem.embed(trainable, batch), batch)
    found = states @ (head.T if config.tie_embeddings else head)
    inputs = (token_ids, batch["segment_ids"], batch["positions"])
    expected = logits(config, params, hidden_states(config, params, *inputs))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    same = problem.divergence((states, head), (states, head), batch)
    assert abs(float(same)) < 1e-6
