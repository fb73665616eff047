"""Weights between two models: WiSE-FT (arXiv 2109.01903), a baseline against forgetting.

The weights `base + alpha * (trained - base)` trade what was learned for what was forgotten, without
any training. A leaf that the two share bit for bit, for instance a frozen one, stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxrecipes.errors import CheckpointError, ConfigError
from jaxrecipes.params.paths import Tree, flatten, unflatten

_SHOWN = 3


def interpolate(base: Mapping[str, Any], trained: Mapping[str, Any], alpha: float) -> Tree:
    """Computes base + alpha * (trained - base), leaf by leaf.

    Args:
        base: Tree of arrays.
        trained: Tree with the same paths and shapes.
        alpha: From 0, which gives the base, to 1, which gives the trained weights, both exactly.

    Returns:
        The tree. Floats are computed in float32 at least; a leaf has the wider dtype of the two.

    Raises:
        ConfigError: `alpha` is not a number from 0 to 1.
        CheckpointError: The trees differ in paths or shapes, or in a leaf that is no float.
    """
    if not (math.isfinite(alpha) and 0 <= alpha <= 1):
        raise ConfigError(f"alpha is {alpha}; expected 0 (the base) to 1 (the trained weights)")
    ours, theirs = flatten(base), flatten(trained)
    _refuse_other_paths(ours, theirs)
    return unflatten({path: _between(path, ours[path], theirs[path], alpha) for path in ours})


def interpolations(
    base: Mapping[str, Any], trained: Mapping[str, Any], alphas: Sequence[float]
) -> Iterator[tuple[float, Tree]]:
    """Yields (alpha, tree) for each alpha; only one tree exists at a time.

    Raises:
        ConfigError: See `interpolate`.
        CheckpointError: See `interpolate`.
    """
    for alpha in alphas:
        yield alpha, interpolate(base, trained, alpha)


def alpha_grid(points: int) -> tuple[float, ...]:
    """Returns evenly spaced alphas with both ends, for instance 0, 0.25, 0.5, 0.75, 1.

    Raises:
        ConfigError: There are fewer than two points.
    """
    if points < 2:
        raise ConfigError(f"a grid of {points} alphas; expected at least 2, the base and the end")
    return tuple(index / (points - 1) for index in range(points))


def _between(path: str, base: Any, trained: Any, alpha: float) -> Any:
    if base.shape != trained.shape:
        raise CheckpointError(
            f"{path} has shape {tuple(base.shape)} in the base and {tuple(trained.shape)} in the "
            "trained weights; weights between two models exist only where all shapes are equal"
        )
    if base is trained:
        return base
    dtype = jnp.promote_types(base.dtype, trained.dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        if base.dtype != trained.dtype or not bool((base == trained).all()):
            raise CheckpointError(
                f"{path} is {dtype.name} and differs between base and trained weights; only floats "
                "have values between"
            )
        return base
    # Not from the sum below: base + (trained - base) rounds.
    if alpha in (0, 1):
        return jnp.asarray(trained if alpha else base, dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    start = jnp.asarray(base, wide)
    return (start + alpha * (jnp.asarray(trained, wide) - start)).astype(dtype)


def _refuse_other_paths(base: Mapping[str, Any], trained: Mapping[str, Any]) -> None:
    for mine, other, names in (
        (base, trained, ("base", "trained weights")),
        (trained, base, ("trained weights", "base")),
    ):
        extra = [path for path in mine if path not in other]
        if extra:
            more = f" and {len(extra) - _SHOWN} more" if len(extra) > _SHOWN else ""
            raise CheckpointError(
                f"only the {names[0]} have {', '.join(extra[:_SHOWN])}{more}, the {names[1]} do "
                "not; weights between two models exist only for one architecture (merge adapters "
                "first; a model with inserted blocks has no base of its shape)"
            )
