"""Penalties that hold a model near where it began: L2, EWC, and KL to the base.

The loss of a step becomes `loss + penalty`. With theta the trained leaves, theta* the anchor and c
the coefficient:

    l2   c / 2 * sum_i (theta_i - theta*_i)^2
    ewc  c / 2 * sum_i F_i (theta_i - theta*_i)^2, F the diagonal Fisher information, see `fisher`
         (elastic weight consolidation, Kirkpatrick et al. 2016, arXiv 1612.00796, equation 3)
    kl   c / count * sum over supervised tokens of KL(base || model), of next-token distributions;
         `count` are the supervised tokens of the batch, as in the loss. The base is the model with
         theta* in place of theta, so it needs no weights but the anchor.

All are zero before the first step, unless the Fisher information is of several tasks. The first
two depend on no row, so they are added once a step, whatever the number of micro-batches.

The anchor does not change. It is therefore no part of the training state, which is saved again and
again, but of the frozen argument of the step, under the key `ANCHOR`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrecipes.errors import ConfigError
from jaxrecipes.params.paths import Tree
from jaxrecipes.train.perturb.protocol import Batch, Problem, Result

PenaltyKind = Literal["l2", "ewc", "kl"]
# Key of the anchor in the frozen argument; no leaf of a model begins with it.
ANCHOR = "anchor"


@dataclass(frozen=True)
class Penalty:
    """What is added to the loss of a step.

    Its anchor is a dict of trees like the trainable one: `start`, theta*, and for `ewc` also
    `fisher`, F.

    Attributes:
        kind: See the module.
        coefficient: c; positive.
    """

    kind: PenaltyKind
    coefficient: float

    def __post_init__(self) -> None:
        """Refuses a coefficient that is not positive and finite."""
        if not 0 < self.coefficient < float("inf"):
            raise ConfigError(
                f"Penalty: coefficient is {self.coefficient}; expected a finite number above 0 "
                "(no penalty at all is None)"
            )

    @property
    def trees(self) -> tuple[str, ...]:
        """Names of the anchor's trees."""
        return ("start", "fisher") if self.kind == "ewc" else ("start",)

    def distance(self, params: Tree, anchor: Mapping[str, Tree]) -> jax.Array:
        """Computes the penalty of parameters.

        Args:
            params: Trainable leaves, float32.
            anchor: See the class.

        Returns:
            float32 scalar; zero for `kl`, which depends on rows.
        """
        if self.kind == "kl":
            return jnp.zeros((), jnp.float32)
        moved = jax.tree.map(
            lambda leaf, start: jnp.square(leaf - start), params, dict(anchor["start"])
        )
        if self.kind == "ewc":
            moved = jax.tree.map(jnp.multiply, moved, dict(anchor["fisher"]))
        total = sum((jnp.sum(leaf) for leaf in jax.tree.leaves(moved)), jnp.zeros((), jnp.float32))
        return 0.5 * self.coefficient * total

    def divergence(
        self, problem: Problem, params: Tree, batch: Batch, anchor: Mapping[str, Tree]
    ) -> jax.Array:
        """Computes the share of rows in `kl`.

        Args:
            problem: The model, with outputs and a divergence that is a share of the whole batch's.
            params: Trainable leaves.
            batch: Rows. Both models are without dropout: a base that drops would be another one.
            anchor: See the class.

        Returns:
            float32 scalar.
        """
        assert problem.outputs is not None and problem.divergence is not None
        rows = {name: array for name, array in batch.items() if name != "dropout_seeds"}
        start = dict(anchor["start"])
        base = problem.outputs(start, problem.embed(start, rows), rows)
        model = problem.outputs(params, problem.embed(params, rows), rows)
        return self.coefficient * problem.divergence(base, model, rows)

    def on_rows(
        self,
        result: Result,
        problem: Problem,
        params: Tree,
        batch: Batch,
        anchor: Mapping[str, Tree],
    ) -> Result:
        """Adds to a part of a batch what depends on its rows; nothing but `kl` does.

        Args:
            result: Loss, gradient and statistics of the part.
            problem: The model.
            params: Trainable leaves.
            batch: The part.
            anchor: See the class.

        Returns:
            The same with the penalty; statistics `task_loss` and `penalty` say what is what.
        """
        if self.kind != "kl":
            return result
        return _add(
            result, jax.value_and_grad(self.divergence, argnums=1)(problem, params, batch, anchor)
        )

    def on_parameters(self, result: Result, params: Tree, anchor: Mapping[str, Tree]) -> Result:
        """Adds to the sum over a batch's parts what depends on no row: `l2` and `ewc`.

        Args:
            result: Loss, gradient and statistics of the batch.
            params: Trainable leaves.
            anchor: See the class.

        Returns:
            As `on_rows`.
        """
        if self.kind == "kl":
            return result
        return _add(result, jax.value_and_grad(self.distance)(params, anchor))


def _add(result: Result, penalty: tuple[jax.Array, Tree]) -> Result:
    value, gradient = penalty
    return Result(
        result.loss + value,
        jax.tree.map(jnp.add, result.gradient, gradient),
        {**result.statistics, "task_loss": result.loss, "penalty": value},
    )


def take_anchor(frozen: Mapping[str, Any]) -> tuple[Tree, Mapping[str, Tree]]:
    """Takes the frozen argument of a step apart.

    Args:
        frozen: Frozen leaves, with or without an anchor.

    Returns:
        The frozen leaves alone, and the anchor; an empty one where there is none.
    """
    leaves = {name: tree for name, tree in frozen.items() if name != ANCHOR}
    return leaves, frozen.get(ANCHOR, {})


def with_anchor(frozen: Mapping[str, Any], anchor: Mapping[str, Tree]) -> Tree:
    """Puts the frozen argument of a step together; the inverse of `take_anchor`."""
    return {**frozen, ANCHOR: dict(anchor)} if anchor else dict(frozen)
