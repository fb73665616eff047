"""The seeds of a step's dropout, which travel in its batch."""

from __future__ import annotations

import jax

from jaxrecipes.train.perturb.segments import token_keys


def dropout_seeds(key: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Makes random bits for every token of a batch.

    They belong in the batch, as `dropout_seeds`, before it is cut into micro-batches: then all
    passes over a batch, those of perturbations too, drop the same.

    Args:
        key: PRNG key of the step.
        batch: `token_ids`, `segment_ids` and `positions`, int32 [rows, length].

    Returns:
        uint32 [rows, length]: a function of `key`, of the tokens of the example and of the position
        in it, however the example is packed. Equal examples of one step drop the same.
    """
    return jax.vmap(jax.vmap(jax.random.bits))(token_keys(key, batch))
