"""NEFTune: noise on the embeddings, scaled by the true length of each example."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxrecipes.train.perturb.protocol import (
    Batch,
    Result,
    Task,
    delta_statistics,
    perturbed_loss,
    require_positive,
)
from jaxrecipes.train.perturb.segments import segment_lengths, uniform_noise


@dataclass(frozen=True)
class NEFTune:
    """Noisy embedding instruction fine-tuning (Jain et al., arXiv 2310.05914).

    U(-1, 1) * alpha / sqrt(L * width), where L is the length of the example: not of the padded or
    packed row, by which the `transformers` library scales. No pass more than without noise.

    Attributes:
        alpha: Expected norm of an example's noise times sqrt(3); the paper takes 5, 10 or 15.
    """

    alpha: float = 5.0

    def __post_init__(self) -> None:
        """Refuses values outside of their range.

        Raises:
            ConfigError: Names the field, its value and its range.
        """
        require_positive(self, "alpha")

    def perturbation(self, batch: Batch, key: jax.Array, width: int) -> jax.Array:
        """Draws the noise.

        Args:
            batch: `token_ids`, `segment_ids` and `positions`, int32 [rows, length].
            key: Key of the step; see `segments.token_keys` for what else the noise depends on.
            width: Of an embedding.

        Returns:
            float32 [rows, length, width], zero on padding.
        """
        lengths = jnp.maximum(segment_lengths(batch["segment_ids"]), 1)
        scale = self.alpha / jnp.sqrt(lengths.astype(jnp.float32) * width)
        return uniform_noise(key, batch, width) * scale[..., None]

    def __call__(self, task: Task) -> Result:
        """See `Perturber`."""
        problem, params, batch, key, _ = task
        width = jax.eval_shape(problem.embed, params, batch).shape[-1]
        delta = self.perturbation(batch, key, width)
        loss, gradient = jax.value_and_grad(perturbed_loss, argnums=1)(
            problem, params, batch, delta
        )
        return Result(
            loss,
            gradient,
            {"adversarial_loss": loss, **delta_statistics(problem, params, batch, delta)},
        )
