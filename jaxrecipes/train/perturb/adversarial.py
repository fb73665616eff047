"""Perturbations that raise the loss: FGM, PGD, FreeLB, and Kim and Kang's retraining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxrecipes.errors import ConfigError
from jaxrecipes.params.paths import Tree
from jaxrecipes.train.perturb.protocol import (
    Batch,
    Problem,
    Result,
    Task,
    delta_statistics,
    perturbed_loss,
    require_positive,
    require_teacher,
)
from jaxrecipes.train.perturb.segments import (
    Norm,
    direction,
    norms,
    project,
    segment_lengths,
    uniform_noise,
)

_value_and_gradient = jax.value_and_grad(perturbed_loss, argnums=1)
_ascent = jax.grad(perturbed_loss, argnums=3)


@dataclass(frozen=True)
class FGM:
    """The fast gradient method on embeddings (Miyato et al., arXiv 1605.07725).

    r = epsilon * g / |g| with the gradient g of the loss over all embeddings of one example; the
    loss is L(x) + weight * L(x + r). Two passes. The well-known PyTorch class of this name perturbs
    the embedding table with one norm for all, which is another method.

    Attributes:
        epsilon: L2 norm of an example's perturbation.
        weight: Weight of the adversarial loss.
        relative: `epsilon` is in units of the norm of the example's embeddings. So a model cannot
            outgrow it, for which the paper normalises the table instead.
    """

    epsilon: float = 1.0
    weight: float = 1.0
    relative: bool = False

    def __post_init__(self) -> None:
        """Refuses values outside of their range.

        Raises:
            ConfigError: Names the field, its value and its range.
        """
        require_positive(self, "epsilon", "weight")

    def __call__(self, task: Task) -> Result:
        """See `Perturber`."""
        problem, params, batch, _, _ = task
        segment_ids = batch["segment_ids"]
        zero = jnp.zeros(_shape(problem, params, batch))
        clean, (clean_gradient, ascent) = jax.value_and_grad(perturbed_loss, argnums=(1, 3))(
            problem, params, batch, zero
        )
        delta = direction(ascent, segment_ids)
        delta *= _radius(problem, params, batch, self.epsilon, self.relative)[..., None]
        loss, gradient = _value_and_gradient(problem, params, batch, delta)
        return Result(
            clean + self.weight * loss,
            jax.tree.map(lambda a, b: a + self.weight * b, clean_gradient, gradient),
            {
                "clean_loss": clean,
                "adversarial_loss": loss,
                **delta_statistics(problem, params, batch, delta),
            },
        )


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent (Madry et al., arXiv 1706.06083) on embeddings.

    delta is 0 at first; K times delta <- project(delta + step_size * g / |g|); the gradient of the
    parameters is that of the last point alone. K + 1 passes.

    Attributes:
        epsilon: Radius of the L2 ball of an example's perturbation.
        step_size: Length of a step.
        steps: K.
        relative: Both lengths are in units of the norm of the example's embeddings.
    """

    epsilon: float = 1.0
    step_size: float = 0.3
    steps: int = 3
    relative: bool = False

    def __post_init__(self) -> None:
        """Refuses values outside of their range.

        Raises:
            ConfigError: Names the field, its value and its range.
        """
        require_positive(self, "epsilon", "step_size", "steps")

    def perturbation(self, problem: Problem, params: Tree, batch: Batch) -> jax.Array:
        """Finds the perturbation of each example.

        Args:
            problem: The model.
            params: The parameters that are attacked.
            batch: See `Task`.

        Returns:
            float32 [rows, length, width], zero on padding.
        """
        segment_ids = batch["segment_ids"]
        radius = _radius(problem, params, batch, self.epsilon, self.relative)
        size = _radius(problem, params, batch, self.step_size, self.relative)

        def climb(delta: jax.Array, _: None) -> tuple[jax.Array, None]:
            step = direction(_ascent(problem, params, batch, delta), segment_ids)
            return project(delta + size[..., None] * step, segment_ids, radius), None

        zero = jnp.zeros(_shape(problem, params, batch))
        return jax.lax.scan(climb, zero, None, length=self.steps)[0]

    def __call__(self, task: Task) -> Result:
        """See `Perturber`."""
        problem, params, batch, _, _ = task
        delta = jax.lax.stop_gradient(self.perturbation(problem, params, batch))
        loss, gradient = _value_and_gradient(problem, params, batch, delta)
        return Result(
            loss,
            gradient,
            {"adversarial_loss": loss, **delta_statistics(problem, params, batch, delta)},
        )


@dataclass(frozen=True)
class FreeLB:
    """Free large-batch adversarial training (Zhu et al., arXiv 1909.11764).

    From a random start, K times: the loss at delta is added with its parameter gradient, each with
    weight 1 / K, and delta takes a step. K passes, and as many parameter gradients. With `clean`
    the loss at delta = 0 is added, all with weight 1 / (K + 1): the published Hugging Face code
    never trains on the clean sample, which costs accuracy (its issue 10).

    Attributes:
        steps: K.
        step_size: Length of a step ("adv_lr").
        initial_magnitude: Size m of the random start ("init_mag"): U(-1, 1) * m / sqrt(L * width)
            with the true length L for L2, U(-m, m) for L-infinity; 0 for none.
        radius: Of the ball around the embeddings ("max_norm"); 0 for none.
        norm: Of steps and ball.
        clean: Add the clean loss.
    """

    steps: int = 3
    step_size: float = 0.1
    initial_magnitude: float = 0.0
    radius: float = 0.0
    norm: Norm = "l2"
    clean: bool = True

    def __post_init__(self) -> None:
        """Refuses values outside of their range.

        Raises:
            ConfigError: Names the field, its value and its range.
        """
        require_positive(self, "steps", "step_size")
        require_positive(self, "initial_magnitude", "radius", zero=True)
        if self.norm not in ("l2", "linf"):
            raise ConfigError(f"norm is {self.norm!r}; expected 'l2' or 'linf'")

    def initial(self, problem: Problem, params: Tree, batch: Batch, key: jax.Array) -> jax.Array:
        """Draws the start: float32 [rows, length, width], zero on padding, inside the ball."""
        shape, segment_ids = _shape(problem, params, batch), batch["segment_ids"]
        if not self.initial_magnitude:
            return jnp.zeros(shape)
        delta = self.initial_magnitude * uniform_noise(key, batch, shape[-1])
        if self.norm == "l2":
            lengths = jnp.maximum(segment_lengths(segment_ids), 1)
            delta /= jnp.sqrt(lengths * shape[-1])[..., None]
        return self._inside(delta, segment_ids)

    def _inside(self, delta: jax.Array, segment_ids: jax.Array) -> jax.Array:
        return project(delta, segment_ids, self.radius, self.norm) if self.radius else delta

    def __call__(self, task: Task) -> Result:
        """See `Perturber`; the statistics of delta are those of the last point with a loss."""
        problem, params, batch, key, _ = task
        segment_ids = batch["segment_ids"]
        passes = self.steps + self.clean

        def step(carry: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], jax.Array]:
            next_delta, _, gradient = carry
            loss, (of_params, ascent) = jax.value_and_grad(perturbed_loss, argnums=(1, 3))(
                problem, params, batch, next_delta
            )
            gradient = jax.tree.map(lambda a, b: a + b / passes, gradient, of_params)
            moved = next_delta + self.step_size * direction(ascent, segment_ids, self.norm)
            return (self._inside(moved, segment_ids), next_delta, gradient), loss

        start = self.initial(problem, params, batch, key)
        statistics = {}
        if self.clean:
            clean, gradient = _value_and_gradient(problem, params, batch, jnp.zeros(()))
            gradient = jax.tree.map(lambda leaf: leaf / passes, gradient)
            statistics["clean_loss"] = clean
        else:
            clean, gradient = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        (_, last, gradient), losses = jax.lax.scan(
            step, (start, start, gradient), None, length=self.steps
        )
        statistics["adversarial_loss"] = jnp.mean(losses)
        statistics |= delta_statistics(problem, params, batch, last)
        return Result((clean + jnp.sum(losses)) / passes, gradient, statistics)


@dataclass(frozen=True)
class KimKang:
    """Retraining on another model's adversarial embeddings (Kim and Kang, IEEE Access 10, 2022).

    A first model that was trained on the task is attacked with PGD; a fresh model is trained on its
    own embeddings plus the first one's perturbation, with the gold labels, and on the clean ones.
    Our interpretation of the abstract: losses and mixture of the paper are not public. The
    perturbation and not the perturbed embedding is carried over, since the first model's embeddings
    have moved.

    Attributes:
        attack: How the first model (`teacher`) is attacked.
        clean_weight: Weight of the clean loss; the adversarial one has weight 1.
    """

    attack: PGD = PGD()
    clean_weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuses values outside of their range.

        Raises:
            ConfigError: Names the field, its value and its range.
        """
        require_positive(self, "clean_weight", zero=True)

    def __call__(self, task: Task) -> Result:
        """See `Perturber`; `teacher` is the first model, which stays as it is."""
        problem, params, batch, _, teacher = task
        first = require_teacher(teacher, "kim_kang")
        delta = jax.lax.stop_gradient(self.attack.perturbation(problem, first, batch))
        loss, gradient = _value_and_gradient(problem, params, batch, delta)
        statistics = {
            "adversarial_loss": loss,
            **delta_statistics(problem, params, batch, delta),
        }
        if self.clean_weight:
            clean, clean_gradient = _value_and_gradient(problem, params, batch, jnp.zeros(()))
            loss = loss + self.clean_weight * clean
            gradient = jax.tree.map(
                lambda a, b: a + self.clean_weight * b, gradient, clean_gradient
            )
            statistics["clean_loss"] = clean
        return Result(loss, gradient, statistics)


def _shape(problem: Problem, params: Tree, batch: Batch) -> tuple[int, ...]:
    return jax.eval_shape(problem.embed, params, batch).shape


def _radius(problem: Problem, params: Tree, batch: Batch, size: float, relative: bool) -> jax.Array:
    """Returns float32 [rows, length]: at each token the size for its example."""
    segment_ids = batch["segment_ids"]
    if not relative:
        return jnp.full(segment_ids.shape, size, jnp.float32)
    return size * norms(jax.lax.stop_gradient(problem.embed(params, batch)), segment_ids)
