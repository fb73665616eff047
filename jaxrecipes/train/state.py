"""What changes from step to step, and nothing else."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxrecipes.params.paths import Tree


@flax.struct.dataclass
class SpikeState:
    """What the spike guard remembers.

    Attributes:
        losses: float32 [window], the losses of the latest accepted steps, in a ring.
        norms: float32 [window], their gradient norms.
        accepted: int32 scalar, steps accepted so far.
        skipped: int32 scalar, steps skipped so far.
    """

    losses: jax.Array
    norms: jax.Array
    accepted: jax.Array
    skipped: jax.Array


@flax.struct.dataclass
class TrainState:
    """The state of a run.

    Attributes:
        step: int32 scalar, batches consumed.
        trainable: Trainable leaves in the runtime layout, float32.
        optimizer_state: Of the trainable leaves only.
        spikes: The spike guard's memory.
        teacher: Second tree like `trainable`, where a perturbation has one; see
            `perturb.schedule.Perturbation`.
    """

    step: jax.Array
    trainable: Tree
    optimizer_state: Any
    spikes: SpikeState
    teacher: Tree | None = None


def create_state(
    trainable: Tree,
    optimizer: optax.GradientTransformation,
    *,
    spike_window: int,
    teacher: Tree | None = None,
) -> TrainState:
    """Returns the state before the first step.

    Args:
        trainable: Trainable leaves in the runtime layout, float32.
        optimizer: From `optimizer.make_optimizer`.
        spike_window: Accepted steps that the spike guard looks back on.
        teacher: Tree like `trainable`, for a perturbation that has one.
    """
    spikes = SpikeState(
        losses=jnp.zeros((spike_window,), jnp.float32),
        norms=jnp.zeros((spike_window,), jnp.float32),
        accepted=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
    )
    return TrainState(
        jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), spikes, teacher
    )
