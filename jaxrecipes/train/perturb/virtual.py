"""Perturbations that change the predictions: VAT, SMART and ALUM, which need no labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxrecipes.params.paths import Tree
from jaxrecipes.train.perturb.protocol import (
    Batch,
    Problem,
    Result,
    delta_statistics,
    perturbed_loss,
    perturbed_outputs,
    require_positive,
    require_teacher,
)
from jaxrecipes.train.perturb.segments import direction, normal_noise, project


@dataclass(frozen=True)
class VAT:
    """Virtual adversarial training (Miyato et al., arXiv 1704.03976; on text: 1605.07725).

    From a random unit direction d, `steps` power iterations d <- g / |g| with the gradient g of
    KL(p(x) || p(x + xi * d)); r = epsilon * d; the loss is L + weight * KL(p(x) || p(x + r)), where
    p(x) is a constant.

    Attributes:
        epsilon: L2 norm of an example's perturbation.
        xi: L2 length of the probe in the power iteration.
        steps: Power iterations.
        weight: Weight of the divergence.
    """

    epsilon: float = 1.0
    xi: float = 0.1
    steps: int = 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuses values outside of their range.

        Raises:
            ConfigError: Names the field, its value and its range.
        """
        require_positive(self, "epsilon", "xi", "steps", "weight")

    def perturbation(
        self, problem: Problem, params: Tree, batch: Batch, key: jax.Array
    ) -> jax.Array:
        """Finds the perturbation: float32 [rows, length, width], zero on padding."""
        segment_ids = batch["segment_ids"]
        clean = _outputs_of(problem, params, batch)

        def divergence(delta: jax.Array) -> jax.Array:
            moved = perturbed_outputs(problem, params, batch, delta)
            return _divergence(problem, clean, moved, batch)

        def iterate(unit: jax.Array, _: None) -> tuple[jax.Array, None]:
            return direction(jax.grad(divergence)(self.xi * unit), segment_ids), None

        start = direction(_noise(problem, params, batch, key), segment_ids)
        unit, _ = jax.lax.scan(iterate, start, None, length=self.steps)
        return jax.lax.stop_gradient(self.epsilon * unit)

    def __call__(
        self,
        problem: Problem,
        params: Tree,
        batch: Batch,
        key: jax.Array,
        teacher: Tree | None = None,
    ) -> Result:
        """See `Perturber`."""
        delta = self.perturbation(problem, params, batch, key)
        clean = _outputs_of(problem, params, batch)

        def total(params: Tree) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            loss = perturbed_loss(problem, params, batch, jnp.zeros(()))
            outputs = perturbed_outputs(problem, params, batch, delta)
            moved = _divergence(problem, clean, outputs, batch)
            return loss + self.weight * moved, (loss, moved)

        (value, (loss, moved)), gradient = jax.value_and_grad(total, has_aux=True)(params)
        return Result(
            value,
            gradient,
            {
                "clean_loss": loss,
                "divergence": moved,
                **delta_statistics(problem, params, batch, delta),
            },
        )


@dataclass(frozen=True)
class SMART:
    """Smoothness-inducing regularisation and proximal point method (arXiv 1911.03437).

    L + weight * max over |delta|_inf <= epsilon of s(f(x + delta), f(x)) + proximal * s(f(x), t(x))
    with the symmetric divergence s and the mean teacher t (`update_teacher`). delta starts as
    normal noise and takes `steps` steps delta <- project(delta + step_size * g / |g|_inf). The
    public code perturbs by 1 instead of `epsilon`, applies positions and LayerNorm twice, and has
    no proximal term. Weights are the paper's; in bfloat16 a perturbation of 1e-5 is rounded away.

    Attributes:
        weight: Weight of the smoothness term (lambda_s).
        proximal: Weight of the teacher term (mu); 0 needs no teacher.
        epsilon: Largest entry of a perturbation.
        noise: Standard deviation of the start.
        step_size: Largest entry of a step (eta).
        steps: Ascent steps.
    """

    weight: float = 1.0
    proximal: float = 1.0
    epsilon: float = 1e-5
    noise: float = 1e-5
    step_size: float = 1e-3
    steps: int = 1

    def __post_init__(self) -> None:
        """Refuses values outside of their range.

        Raises:
            ConfigError: Names the field, its value and its range.
        """
        require_positive(self, "weight", "epsilon", "noise", "step_size", "steps")
        require_positive(self, "proximal", zero=True)

    def perturbation(
        self, problem: Problem, params: Tree, batch: Batch, key: jax.Array
    ) -> jax.Array:
        """Finds the perturbation: float32 [rows, length, width], zero on padding."""
        segment_ids = batch["segment_ids"]
        clean = _outputs_of(problem, params, batch)

        def distance(delta: jax.Array) -> jax.Array:
            moved = perturbed_outputs(problem, params, batch, delta)
            return _symmetric(problem, clean, moved, batch)

        def climb(delta: jax.Array, _: None) -> tuple[jax.Array, None]:
            step = self.step_size * direction(jax.grad(distance)(delta), segment_ids, "linf")
            return project(delta + step, segment_ids, self.epsilon, "linf"), None

        start = self.noise * _noise(problem, params, batch, key)
        delta, _ = jax.lax.scan(climb, start, None, length=self.steps)
        return jax.lax.stop_gradient(delta)

    def __call__(
        self,
        problem: Problem,
        params: Tree,
        batch: Batch,
        key: jax.Array,
        teacher: Tree | None = None,
    ) -> Result:
        """See `Perturber`; `teacher` is read where `proximal` is not 0."""
        delta = self.perturbation(problem, params, batch, key)
        held = None
        if self.proximal:
            held = _outputs_of(problem, require_teacher(teacher, "smart"), batch)

        def total(params: Tree) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            loss = perturbed_loss(problem, params, batch, jnp.zeros(()))
            clean = perturbed_outputs(problem, params, batch, jnp.zeros(()))
            moved = _symmetric(
                problem, clean, perturbed_outputs(problem, params, batch, delta), batch
            )
            away = jnp.zeros(()) if held is None else _symmetric(problem, clean, held, batch)
            return loss + self.weight * moved + self.proximal * away, (loss, moved, away)

        (value, (loss, moved, away)), gradient = jax.value_and_grad(total, has_aux=True)(params)
        statistics = {
            "clean_loss": loss,
            "divergence": moved,
            **delta_statistics(problem, params, batch, delta),
        }
        if held is not None:
            statistics["teacher"] = away
        return Result(value, gradient, statistics)


@dataclass(frozen=True)
class ALUM:
    """Adversarial training for large language models (arXiv 2004.08994), also in pretraining.

    L + weight * s(f(x), f(x + delta)), s the symmetric divergence, found as in SMART.

    Attributes:
        weight: Weight of the divergence (alpha): 10 in pretraining, 1 in fine-tuning.
        epsilon: Largest entry of a perturbation.
        noise: Standard deviation of the start (sigma).
        step_size: Largest entry of a step (eta).
        steps: Ascent steps (K).
    """

    weight: float = 1.0
    epsilon: float = 1e-5
    noise: float = 1e-5
    step_size: float = 1e-3
    steps: int = 1

    def __post_init__(self) -> None:
        """Refuses values outside of their range.

        Raises:
            ConfigError: Names the field, its value and its range.
        """
        require_positive(self, "weight", "epsilon", "noise", "step_size", "steps")

    def __call__(
        self,
        problem: Problem,
        params: Tree,
        batch: Batch,
        key: jax.Array,
        teacher: Tree | None = None,
    ) -> Result:
        """See `Perturber`."""
        smooth = SMART(
            weight=self.weight,
            proximal=0.0,
            epsilon=self.epsilon,
            noise=self.noise,
            step_size=self.step_size,
            steps=self.steps,
        )
        return smooth(problem, params, batch, key)


def _noise(problem: Problem, params: Tree, batch: Batch, key: jax.Array) -> jax.Array:
    return normal_noise(key, batch, jax.eval_shape(problem.embed, params, batch).shape[-1])


def _outputs_of(problem: Problem, params: Tree, batch: Batch) -> Any:
    """The unperturbed predictions as constants."""
    return jax.lax.stop_gradient(perturbed_outputs(problem, params, batch, jnp.zeros(())))


def _divergence(problem: Problem, first: Any, second: Any, batch: Batch) -> jax.Array:
    assert problem.divergence is not None  # perturbed_outputs has checked it
    return problem.divergence(first, second, batch)


def _symmetric(problem: Problem, first: Any, second: Any, batch: Batch) -> jax.Array:
    return _divergence(problem, first, second, batch) + _divergence(problem, second, first, batch)
