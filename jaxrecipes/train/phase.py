"""A pretraining phase: texts in, a trained tree out, from wherever it was left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrecipes.checkpoint.training_state import TrainingStates
from jaxrecipes.data.mixture import TextMixture
from jaxrecipes.data.text_batches import TokenizedTexts, texts_by_length
from jaxrecipes.params.paths import Tree
from jaxrecipes.train.encoder_step import make_objective_step
from jaxrecipes.train.loop import LoopSettings, run_steps
from jaxrecipes.train.objectives import Objective
from jaxrecipes.train.state import TrainState, create_state

BATCH_KEYS = ("token_ids", "segment_ids", "positions", "type_ids", "word_ids")
_EVALUATION_ROWS = 64


@dataclass(frozen=True)
class PhaseProgram:
    """What a phase computes.

    Attributes:
        objective: What is minimised.
        optimizer: From `optimizer.make_optimizer`, for the runtime tree.
        schedule: Its rate, for the metrics.
        total_steps: Length of the phase.
        dropout: Give batches `dropout_keys`.
        micro_batches: Parts that the rows of a batch are cut into.
        spike_sigma: See `spikes.accepts`.
        spike_window: See `create_state`.
        skip_limit: Skipped steps that end the run.
        seed: Of masks and dropout.
    """

    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    total_steps: int
    dropout: bool
    micro_batches: int = 1
    spike_sigma: float = 6.0
    spike_window: int = 128
    skip_limit: int = 10
    seed: int = 0


def run_phase(
    program: PhaseProgram,
    trainable: Tree,
    mixture: TextMixture,
    states: TrainingStates,
    *,
    save_every: int,
    identity: Mapping[str, Any],
    optimizer_state: Any = None,
    record: Callable[[int, dict[str, Any]], None],
    should_stop: Callable[[int], int | None],
    begin: Callable[[int], None] = lambda start: None,
    flush: Callable[[], None] = lambda: None,
) -> TrainState:
    """Trains to the end of a phase, or goes on where it was left.

    All that is random follows from the program's seed and the number of the step, and so does what
    a step reads: a phase that was killed and goes on ends with the bits of one that was not.

    Args:
        program: What to compute.
        trainable: Runtime tree to start from, float32; it is copied.
        mixture: What to read.
        states: Where states are saved; the last one is, too.
        save_every: Steps between two saves.
        identity: JSON values that a saved state must have to be used.
        optimizer_state: Moments to start with, from the end of an earlier phase; the course of the
            rate begins anew. None for empty ones.
        record: Takes the number of a step and its metrics.
        should_stop: See `loop.run_steps`.
        begin: Called with the number of steps that are done, before the first one.
        flush: Called before a state is saved: records up to its step must be on disk then.

    Returns:
        The final state.

    Raises:
        DivergedError: Too many steps were skipped.
        PreemptedError: SIGTERM; the state was saved.
        InterruptedRunError: Ctrl-C; the state was saved.
    """
    step = make_objective_step(
        program.objective,
        program.optimizer,
        program.schedule,
        dropout=program.dropout,
        micro_batches=program.micro_batches,
        spike_sigma=program.spike_sigma,
    )
    key = jax.random.key(program.seed)

    @partial(jax.jit, donate_argnums=0)
    def counted(state: TrainState, frozen: Tree, batch: Any) -> tuple[TrainState, Any]:
        after, metrics = step(state, frozen, batch, key)
        return after, {**metrics, "supervised_tokens": metrics["supervised"]}

    # Copied, because the step takes over what it is given.
    state = create_state(
        jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), trainable),
        program.optimizer,
        spike_window=program.spike_window,
    )
    if optimizer_state is not None:
        state = replace(state, optimizer_state=restart_schedule(optimizer_state))
    restored = states.restore(state, expected=identity)
    if restored is not None:
        state = restored.state
    start = int(state.step)
    begin(start)

    def batches() -> Any:
        for number in range(start, program.total_steps):
            members = mixture.members(number)
            yield number, {**mixture.batch(number), "row_ids": members}

    def save(step: int, state: TrainState) -> None:
        flush()
        states.save(step, state, identity)

    settings = LoopSettings(
        program.total_steps,
        save_every,
        skip_limit=program.skip_limit,
        limit_key="spikes.limit",
        batch_keys=BATCH_KEYS,
    )
    return run_steps(
        counted,
        state,
        {},
        batches(),
        settings,
        record=record,
        evaluate=lambda step, state: None,
        save=save,
        should_stop=should_stop,
    )


def restart_schedule(optimizer_state: Any) -> Any:
    """Keeps an optimizer's moments and begins the course of its rate anew.

    Args:
        optimizer_state: From `optimizer.make_optimizer`'s transformation; it is copied.

    Returns:
        The same with every `optax.ScaleByScheduleState` at 0.
    """

    def restart(node: Any) -> Any:
        if isinstance(node, optax.ScaleByScheduleState):
            return optax.ScaleByScheduleState(jnp.zeros_like(node.count))
        return jnp.copy(node)

    return jax.tree.map(
        restart, optimizer_state, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState)
    )


def mean_loss(
    objective: Objective,
    trainable: Tree,
    texts: TokenizedTexts,
    *,
    max_tokens: int,
    pad_token_id: int,
    seed: int,
) -> float:
    """Measures an objective on texts, without dropout and always with the same masks.

    Args:
        objective: What is measured.
        trainable: Runtime tree.
        texts: The texts.
        max_tokens: Longest row.
        pad_token_id: Fills a row.
        seed: Of the masks.

    Returns:
        Nats a masked token, or a next token.
    """
    key = jax.random.key(seed)

    @jax.jit
    def sums(trainable: Tree, batch: Any) -> tuple[jax.Array, jax.Array]:
        prepared = objective.prepare(batch, key)
        problem = objective.problem({}, jnp.float32(1.0))
        embeddings = problem.embed(trainable, prepared)
        return problem.loss(trainable, embeddings, prepared), objective.count(prepared)

    total = np.zeros(2)
    for _, batch in texts_by_length(texts, _EVALUATION_ROWS, max_tokens, pad_token_id):
        arrays = {name: batch[name] for name in BATCH_KEYS}
        total += np.array([float(one) for one in sums(trainable, arrays)])
    return float(total[0] / max(total[1], 1.0))
