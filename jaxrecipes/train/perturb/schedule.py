"""A method of perturbation within a run: its noise, its first steps, its teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from jaxrecipes.params.paths import Tree
from jaxrecipes.train.perturb.adversarial import KimKang
from jaxrecipes.train.perturb.protocol import (
    Batch,
    Clean,
    Perturber,
    Problem,
    Result,
    Task,
    update_teacher,
)
from jaxrecipes.train.perturb.virtual import SMART

# mean: an average of past parameters, which begins as the parameters themselves (SMART).
# fixed: parameters of another model, which stay (Kim and Kang).
TeacherKind = Literal["none", "mean", "fixed"]

# SMART's decays of the mean teacher, and up to which share of the steps the first one holds.
EARLY_DECAY, LATE_DECAY, EARLY_SHARE = 0.99, 0.999, 0.1


@dataclass(frozen=True)
class Perturbation:
    """When and how a training step perturbs word embeddings.

    Attributes:
        method: The method with its options.
        clean_steps: Steps of the run before the method begins; they train on clean embeddings.
        total_steps: Length of the run.
    """

    method: Perturber
    clean_steps: int = 0
    total_steps: int = 1

    @property
    def teacher(self) -> TeacherKind:
        """What `TrainState.teacher` is: the teacher that the method reads."""
        if isinstance(self.method, KimKang):
            return "fixed"
        return "mean" if isinstance(self.method, SMART) and self.method.proximal else "none"

    def __call__(
        self,
        problem: Problem,
        params: Tree,
        batch: Batch,
        key: jax.Array,
        step: jax.Array,
        teacher: Tree | None = None,
    ) -> Result:
        """Computes loss and gradient of a batch, or of a part of it.

        Args:
            problem: The model; its loss is a share of the whole batch's.
            params: What is differentiated.
            batch: See `Task`.
            key: PRNG key of the step, for noise.
            step: int32 scalar, number of the step.
            teacher: `TrainState.teacher`.

        Returns:
            See `Perturber`. In the clean steps the losses among the statistics are the clean one,
            and everything else is zero.
        """

        def perturbed(params: Tree) -> Result:
            return self.method(Task(problem, params, batch, key, teacher))

        if not self.clean_steps:
            return perturbed(params)
        shapes = jax.eval_shape(perturbed, params)

        def clean(params: Tree) -> Result:
            found = Clean()(Task(problem, params, batch, key))
            statistics = {
                name: found.loss if name.endswith("loss") else jnp.zeros(leaf.shape, leaf.dtype)
                for name, leaf in shapes.statistics.items()
            }
            return Result(found.loss, found.gradient, statistics)

        return jax.lax.cond(step < self.clean_steps, clean, perturbed, params)

    def first_teacher(self, params: Tree, other: Tree | None = None) -> Tree | None:
        """Returns the teacher before the first step.

        Args:
            params: What is differentiated, before the first step.
            other: A fixed teacher's parameters.
        """
        if self.teacher == "mean":
            # A copy: the state gives its buffers away one by one.
            return jax.tree.map(jnp.copy, params)
        return other if self.teacher == "fixed" else None

    def next_teacher(self, teacher: Tree | None, params: Tree, step: jax.Array) -> Tree | None:
        """Returns the teacher after a step.

        Args:
            teacher: The teacher before it.
            params: The parameters after it.
            step: int32 scalar, its number.
        """
        if self.teacher != "mean" or teacher is None:
            return teacher
        early = step < EARLY_SHARE * self.total_steps
        return update_teacher(teacher, params, jnp.where(early, EARLY_DECAY, LATE_DECAY))


UNPERTURBED = Perturbation(Clean())
