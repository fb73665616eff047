"""The next-token objective of decoders is the loss that everything else trains with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrecipes.checkpoint.random_model import PRESETS
from jaxrecipes.models.decoder import init_params
from jaxrecipes.train.causal_loss import batch_loss
from jaxrecipes.train.objectives import causal_objective

CONFIG = PRESETS["tiny-llama"]


def test_it_is_the_mean_over_tokens_that_have_one_before_them():
    params = init_params(CONFIG, jax.random.key(0))
    lengths = np.array([8, 5, 1, 0])
    positions = np.tile(np.arange(8, dtype=np.int32), (4, 1))
    segment_ids = (positions < lengths[:, None]).astype(np.int32)
    ids = np.random.default_rng(0).integers(0, 256, (4, 8)).astype(np.int32)
    batch = {"token_ids": ids, "segment_ids": segment_ids, "positions": positions * segment_ids}
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    objective = causal_objective(CONFIG)

    @jax.jit
    def both(params):
        prepared = objective.prepare(batch, jax.random.key(0))
        count = objective.count(prepared)
        problem = objective.problem({}, count)
        loss = problem.loss(params, problem.embed(params, prepared), prepared)
        return loss, count, batch_loss(CONFIG, params, prepared)

    loss, count, total = map(float, both(params))
    assert count == 7 + 4
    assert loss == pytest.approx(total / count, rel=1e-6) and loss > 1
