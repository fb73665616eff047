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
    Task,
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
        return self._climb(problem, params, batch, key, _outputs_of(problem, params, batch))

    def _climb(
        self, problem: Problem, params: Tree, batch: Batch, key: jax.Array, clean: Any
    ) -> jax.Array:
        segment_ids = batch["segment_ids"]

        def divergence(delta: jax.Array) -> jax.Array:
            moved = perturbed_outputs(problem, params, batch, delta)
            return _divergence(problem, clean, moved, batch)

        def iterate(unit: jax.Array, _: None) -> tuple[jax.Array, None]:
            return direction(jax.grad(divergence)(self.xi * unit), segment_ids), None

        start = direction(_noise(problem, params, batch, key), segment_ids)
        unit, _ = jax.lax.scan(iterate, start, None, length=self.steps)
        return jax.lax.stop_gradient(self.epsilon * unit)

    def __call__(self, task: Task) -> Result:
        """See `Perturber`."""
        problem, params, batch, key, _ = task
        clean = _outputs_of(problem, params, batch)
        delta = self._climb(problem, params, batch, key, clean)

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
class Ascent:
    """How SMART and ALUM look for the perturbation that changes the predictions most.

    delta starts as normal noise; `steps` times delta <- project(delta + step_size * g / |g|_inf)
    with the gradient g of the symmetric divergence s(f(x), f(x + delta)).

    Attributes:
        epsilon: Largest entry of a perturbation.
        noise: Standard deviation of the start (sigma).
        step_size: Largest entry of a step (eta).
        steps: Steps (K).
    """

    epsilon: float = 1e-5
    noise: float = 1e-5
    step_size: float = 1e-3
    steps: int = 1

    def __post_init__(self) -> None:
        """Refuses values outside of their range.

        Raises:
            ConfigError: Names the field, its value and its range.
        """
        require_positive(self, "epsilon", "noise", "step_size", "steps")

    def __call__(self, problem: Problem, params: Tree, batch: Batch, key: jax.Array) -> jax.Array:
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


@dataclass(frozen=True)
class SMART:
    """Smoothness-inducing regularisation and proximal point method (arXiv 1911.03437).

    L + weight * max over |delta|_inf <= epsilon of s(f(x + delta), f(x)) + proximal * s(f(x), t(x))
    with the symmetric divergence s and the mean teacher t (`update_teacher`). The public code
    perturbs by 1 instead of `epsilon`, applies positions and LayerNorm twice, and has no proximal
    term. Weights are the paper's; in bfloat16 a perturbation of 1e-5 is rounded away.

    Attributes:
        weight: Weight of the smoothness term (lambda_s).
        proximal: Weight of the teacher term (mu); 0 needs no teacher.
        ascent: How the perturbation is found.
    """

    weight: float = 1.0
    proximal: float = 1.0
    ascent: Ascent = Ascent()

    def __post_init__(self) -> None:
        """Refuses values outside of their range.

        Raises:
            ConfigError: Names the field, its value and its range.
        """
        require_positive(self, "weight")
        require_positive(self, "proximal", zero=True)

    def __call__(self, task: Task) -> Result:
        """See `Perturber`; `teacher` is read where `proximal` is not 0."""
        problem, params, batch, key, teacher = task
        delta = self.ascent(problem, params, batch, key)
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
            statistics["teacher_divergence"] = away
        return Result(value, gradient, statistics)


@dataclass(frozen=True)
class ALUM:
    """Adversarial training for large language models (arXiv 2004.08994), also in pretraining.

    L + weight * s(f(x), f(x + delta)), s the symmetric divergence: SMART without its teacher.

    Attributes:
        weight: Weight of the divergence (alpha): 10 in pretraining, 1 in fine-tuning.
        ascent: How the perturbation is found.
    """

    weight: float = 1.0
    ascent: Ascent = Ascent()

    def __call__(self, task: Task) -> Result:
        """See `Perturber`."""
        return SMART(weight=self.weight, proximal=0.0, ascent=self.ascent)(task)


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
