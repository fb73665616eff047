"""The optimizer over the trainable tree, from a handful of named settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from jaxrecipes.errors import ConfigError
from jaxrecipes.models.stacking import Layout
from jaxrecipes.params.layout import canonical_paths, runtime_path, to_canonical, to_runtime
from jaxrecipes.params.paths import flatten, unflatten

OPTIMIZERS = ("adamw", "lion", "adafactor", "muon")
SCHEDULES = ("constant", "linear", "cosine", "wsd")


@dataclass(frozen=True)
class OptimizerSettings:
    """Everything that shapes an update besides the gradient.

    Attributes:
        total_steps: Length of the schedule in steps.
        name: One of `OPTIMIZERS`.
        learning_rate: Peak rate.
        schedule: One of `SCHEDULES`; "wsd" stays at the peak and decays linearly in the last fifth.
        warmup_steps: Steps of linear increase from zero; the first step already learns.
        final_ratio: The last rate, as a fraction of the peak.
        weight_decay: Decoupled decay, times the rate, on the leaves that decay.
        beta1: First-moment decay of AdamW and Lion, momentum of Muon.
        beta2: Second-moment decay of AdamW and Lion.
        epsilon: Added to the root of the second moment (AdamW, and Adam's part of Muon).
        clip_norm: Largest global norm of the trainable gradient; None for no clipping.
    """

    total_steps: int
    name: str = "adamw"
    learning_rate: float = 1e-4
    schedule: str = "cosine"
    warmup_steps: int = 0
    final_ratio: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float | None = 1.0


def learning_rate_schedule(settings: OptimizerSettings) -> optax.Schedule:
    """Returns the rate as a function of the number of updates made so far.

    Raises:
        ConfigError: The schedule has an unknown name, or warm-up is longer than the run.
    """
    peak, last = settings.learning_rate, settings.learning_rate * settings.final_ratio
    steps = settings.total_steps - settings.warmup_steps
    if steps < 1:
        raise ConfigError(
            f"warm-up takes {settings.warmup_steps} of {settings.total_steps} steps; leave at "
            "least one step after it"
        )
    # The final rate is that of the last update, number total_steps - 1.
    span = max(steps - 1, 1)
    if settings.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif settings.schedule == "linear":
        after = optax.linear_schedule(peak, last, span)
    elif settings.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, span, settings.final_ratio)
    elif settings.schedule == "wsd":
        decay = max(steps // 5, 1)
        stable = optax.constant_schedule(peak)
        after = optax.join_schedules(
            [stable, optax.linear_schedule(peak, last, decay)], [span - decay]
        )
    else:
        raise ConfigError(f"schedule is {settings.schedule!r}; expected one of {SCHEDULES}")
    if not settings.warmup_steps:
        return after
    first = peak / settings.warmup_steps
    warmup = optax.linear_schedule(first, peak, max(settings.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after], [settings.warmup_steps])


def make_optimizer(
    settings: OptimizerSettings,
    *,
    layout: Layout,
    decays: Mapping[str, bool],
    rates: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Builds the optimizer of a trainable tree in its runtime layout.

    An update does not depend on the layout: AdamW and Lion work element by element, Muon is told
    which axes of a stack are a matrix, and Adafactor, whose statistics span a whole leaf, works on
    the canonical leaves.

    Args:
        settings: See `OptimizerSettings`.
        layout: The layout of the trees that the optimizer will see.
        decays: For each trainable canonical path whether weight decay applies.
        rates: For each trainable canonical path the factor on its rate; None for 1. It multiplies
            the whole update, its decay too, as another rate would. Leaves of one stack have one.

    Returns:
        An optax transformation.

    Raises:
        ConfigError: An unknown optimizer or schedule.
    """
    rate = learning_rate_schedule(settings)
    mask = unflatten({runtime_path(layout, path): value for path, value in decays.items()})
    if settings.name == "adamw":
        update = optax.adamw(
            rate,
            b1=settings.beta1,
            b2=settings.beta2,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            mask=mask,
        )
    elif settings.name == "lion":
        update = optax.lion(
            rate,
            b1=settings.beta1,
            b2=settings.beta2,
            weight_decay=settings.weight_decay,
            mask=mask,
        )
    elif settings.name == "adafactor":
        canonical_mask = unflatten(dict(decays))
        update = optax.chain(
            optax.adafactor(None, multiply_by_parameter_scale=False),
            optax.add_decayed_weights(-settings.weight_decay, canonical_mask),
            optax.scale_by_schedule(rate),
        )
        update = _on_canonical_leaves(update, layout)
    elif settings.name == "muon":
        update = muon(
            rate,
            beta=settings.beta1,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            weight_decay_mask=mask,
            adam_b1=settings.beta1,
            adam_b2=settings.beta2,
            adam_weight_decay=settings.weight_decay,
            muon_weight_dimension_numbers=lambda tree: _matrices(layout, tree),
        )
    else:
        raise ConfigError(f"optimizer is {settings.name!r}; expected one of {OPTIMIZERS}")
    parts = [update]
    if settings.clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(settings.clip_norm))
    if rates is not None and any(factor != 1 for factor in rates.values()):
        factors = unflatten({runtime_path(layout, path): value for path, value in rates.items()})
        parts.append(optax.stateless(lambda tree, _: jax.tree.map(jnp.multiply, tree, factors)))
    return optax.chain(*parts) if len(parts) > 1 else update


def _matrices(layout: Layout, tree: Any) -> Any:
    """Marks the leaves that Muon orthogonalises: the kernels of layers, stacked or not."""

    def dimensions(path: str, leaf: Any) -> MuonDimensionNumbers | None:
        canonical = canonical_paths(layout, path)[0]
        if canonical.startswith("layers/") and canonical.endswith("/kernel"):
            rank = len(leaf.shape)
            return MuonDimensionNumbers(reduction_axis=rank - 2, output_axis=rank - 1)
        return None

    return unflatten({path: dimensions(path, leaf) for path, leaf in flatten(tree).items()})


class _CanonicalState(NamedTuple):
    inner: Any


def _on_canonical_leaves(
    transformation: optax.GradientTransformation, layout: Layout
) -> optax.GradientTransformation:
    def init(params: Any) -> _CanonicalState:
        return _CanonicalState(transformation.init(to_canonical(layout, params)))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, _CanonicalState]:
        changed: Any
        changed, inner = transformation.update(
            to_canonical(layout, updates),
            state.inner,
            None if params is None else to_canonical(layout, params),
        )
        return to_runtime(layout, changed), _CanonicalState(inner)

    return optax.GradientTransformation(init, update)


def count_bytes(tree: Any) -> int:
    """Returns the bytes of all arrays (or shapes) in a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
