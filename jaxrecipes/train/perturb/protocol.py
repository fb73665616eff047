"""What every method of perturbing word embeddings is given, and what it returns.

A model is two functions: `embed`, from tokens to word embeddings (before positions, types and
normalisation, which the second adds once), and `loss`, from word embeddings on. A perturbation is
an argument of the second, so that one `jax.grad` gives its gradient. What is random in `loss`, such
as dropout, comes from keys in the batch: it is the same in all steps of a method.

An example is a segment: a whole unpadded row, or one document of a packed row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxrecipes.errors import ConfigError
from jaxrecipes.params.paths import Tree
from jaxrecipes.train.perturb.segments import example_mean, norms

Batch = dict[str, jax.Array]
# Scalars by name: clean_loss, adversarial_loss, divergence (of VAT, SMART and ALUM),
# teacher_divergence (SMART's proximal term), delta_norm and relative_delta (means over examples;
# the latter of |delta| / |embeddings|). A method leaves out what it does not compute anyway.
Statistics = dict[str, jax.Array]


@dataclass(frozen=True)
class Problem:
    """A model as methods of perturbation see it; `params` is what is differentiated.

    Attributes:
        embed: (params, batch) -> word embeddings, float [rows, length, width].
        loss: (params, word embeddings, batch) -> scalar loss.
        outputs: (params, word embeddings, batch) -> what a model predicts, any tree; None where no
            method needs it (VAT, SMART and ALUM do).
        divergence: (outputs, other outputs, batch) -> scalar, how far the second predictions are
            from the first, normalised as the loss is; not negative, zero for equal ones.
        examples: What sums of statistics over examples are divided by: the examples of the whole
            batch, where the method sees a part of it. None: the examples that it sees.
    """

    embed: Callable[[Tree, Batch], jax.Array]
    loss: Callable[[Tree, jax.Array, Batch], jax.Array]
    outputs: Callable[[Tree, jax.Array, Batch], Any] | None = None
    divergence: Callable[[Any, Any, Batch], jax.Array] | None = None
    examples: jax.Array | None = None


class Result(NamedTuple):
    """What a method returns.

    Attributes:
        loss: Scalar that was minimised.
        gradient: Its gradient, a tree like `params`.
        statistics: See `Statistics`.
    """

    loss: jax.Array
    gradient: Tree
    statistics: Statistics


class Task(NamedTuple):
    """What a method works on.

    Attributes:
        problem: The model.
        params: What is differentiated.
        batch: `token_ids`, `segment_ids` (0 is padding) and `positions`, int32 [rows, length], and
            what the functions of `problem` read. Segment ids of a row are at most `length`.
        key: PRNG key of the step, for noise. The noise of an example depends on it and on the
            example's tokens, not on the example's place in a packed batch.
        teacher: A second tree like `params`, for methods with a teacher.
    """

    problem: Problem
    params: Tree
    batch: Batch
    key: jax.Array
    teacher: Tree | None = None


class Perturber(Protocol):
    """A method with its options: a frozen dataclass, static under `jax.jit`."""

    def __call__(self, task: Task) -> Result:
        """Computes loss and gradient of one batch.

        Args:
            task: Model, parameters and batch.

        Returns:
            Loss, gradient and statistics.

        Raises:
            ConfigError: The method needs a teacher, outputs or a divergence, and there is none.
        """
        ...


@dataclass(frozen=True)
class Clean:
    """No perturbation, in the same form: the baseline, and what runs before a method starts."""

    def __call__(self, task: Task) -> Result:
        """See `Perturber`."""
        problem, params, batch, _, _ = task

        def loss(params: Tree) -> jax.Array:
            return problem.loss(params, problem.embed(params, batch), batch)

        return Result(*jax.value_and_grad(loss)(params), {})


def perturbed_loss(problem: Problem, params: Tree, batch: Batch, delta: jax.Array) -> jax.Array:
    """Computes the loss of word embeddings plus delta; differentiable in both.

    The embeddings are looked up again, so that their table has its gradient in every step.

    Args:
        problem: The model.
        params: What is differentiated.
        batch: See `Task`.
        delta: float32 [rows, length, width], or a scalar zero.

    Returns:
        The scalar loss.
    """
    return problem.loss(params, _add(problem.embed(params, batch), delta), batch)


def perturbed_outputs(problem: Problem, params: Tree, batch: Batch, delta: jax.Array) -> Any:
    """Computes what a model predicts from word embeddings plus delta.

    Raises:
        ConfigError: The problem has no outputs or no divergence.
    """
    if problem.outputs is None or problem.divergence is None:
        raise ConfigError(
            "this method compares predictions, and the model was given without them: build its "
            "Problem with outputs and divergence, or choose fgm, pgd, freelb or neftune"
        )
    return problem.outputs(params, _add(problem.embed(params, batch), delta), batch)


def delta_statistics(
    problem: Problem, params: Tree, batch: Batch, delta: jax.Array
) -> dict[str, jax.Array]:
    """Measures a perturbation: means over examples of its norm, alone and over the embeddings'."""
    segment_ids = batch["segment_ids"]
    size = norms(delta, segment_ids)
    relative = size / jnp.maximum(norms(problem.embed(params, batch), segment_ids), 1e-12)
    return {
        "delta_norm": example_mean(size, segment_ids, problem.examples),
        "relative_delta": example_mean(relative, segment_ids, problem.examples),
    }


def require_positive(options: Any, *names: str, zero: bool = False) -> None:
    """Refuses options that are not positive.

    Args:
        options: A dataclass of options.
        *names: Its fields.
        zero: Allow zero.

    Raises:
        ConfigError: Names the field, its value and its range.
    """
    for name in names:
        value = getattr(options, name)
        if not (value > 0 or (zero and value == 0)) or value == float("inf"):
            raise ConfigError(
                f"{type(options).__name__}: {name} is {value}; expected a finite number "
                f"{'of 0 or more' if zero else 'above 0'}"
            )


def require_teacher(teacher: Tree | None, method: str) -> Tree:
    """Returns the teacher.

    Raises:
        ConfigError: There is none.
    """
    if teacher is None:
        raise ConfigError(f"{method} needs the parameters of a teacher, and none was given")
    return teacher


def update_teacher(teacher: Tree, params: Tree, decay: float | jax.Array) -> Tree:
    """Moves a mean teacher (SMART's momentum): decay * teacher + (1 - decay) * params.

    Args:
        teacher: Float tree.
        params: Tree with the same paths.
        decay: From 0 to 1; SMART takes 0.99 for the first tenth of the steps, then 0.999.

    Returns:
        The new teacher, in the teacher's dtypes.
    """
    return jax.tree.map(
        lambda old, new: (decay * old + (1.0 - decay) * new).astype(old.dtype), teacher, params
    )


def _add(embeddings: jax.Array, delta: jax.Array) -> jax.Array:
    # In float32: the perturbations of SMART are smaller than what bfloat16 tells apart.
    return embeddings.astype(jnp.float32) + delta
