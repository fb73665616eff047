"""Dropout by explicit keys, one a row, so that no batching changes what is dropped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import jax
import jax.numpy as jnp

# Places of a forward pass with a mask of their own; a layer's are told apart by `at_layer`.
Site = Literal["embeddings", "attention", "mlp", "head_inputs", "head_outputs"]
_SITES = get_args(Site)


@dataclass(frozen=True)
class Dropout:
    """Which entries of activations are set to zero (Srivastava et al. 2014).

    Attributes:
        rate: Probability of an entry to be dropped; the others grow by 1 / (1 - rate).
        keys: PRNG keys [rows]; None drops nothing: evaluation.
    """

    rate: float = 0.0
    keys: jax.Array | None = None

    def __call__(self, values: jax.Array, site: Site) -> jax.Array:
        """Drops entries.

        Args:
            values: Float [rows, ...].
            site: Which mask. One site and the same keys give the same mask again.

        Returns:
            The shape and dtype of `values`.
        """
        if self.keys is None or self.rate == 0.0:
            return values
        keys = jax.vmap(jax.random.fold_in, (0, None))(self.keys, _SITES.index(site))
        draw = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - self.rate, values.shape[1:]))
        scaled = values * jnp.asarray(1.0 / (1.0 - self.rate), values.dtype)
        return jnp.where(draw(keys), scaled, jnp.zeros((), values.dtype))

    def at_layer(self, number: jax.Array | int) -> Dropout:
        """Returns the dropout of one layer; `number` may be traced."""
        if self.keys is None or self.rate == 0.0:
            return self
        # Sites outside of layers use the keys as they are: numbers begin above them.
        fold = jax.vmap(jax.random.fold_in, (0, None))
        return replace(self, keys=fold(self.keys, number + len(_SITES)))


NO_DROPOUT = Dropout()


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """Makes one key a row: a PRNG key -> keys [rows], each a function of `key` and its number."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
