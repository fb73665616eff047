"""The loop: batches in, guarded steps, evaluations and checkpoints at their steps, a clean end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jax
import numpy as np

from jaxrecipes.errors import DivergedError, InterruptedRunError, PreemptedError
from jaxrecipes.params.paths import Tree
from jaxrecipes.train.state import TrainState
from jaxrecipes.train.step import StepFunction

Batch = Mapping[str, Any]
BATCH_KEYS = ("token_ids", "segment_ids", "positions", "loss_mask")


@dataclass(frozen=True)
class LoopSettings:
    """When the loop does what.

    Attributes:
        total_steps: Steps of the whole run, those before a resume included.
        save_every: Steps between two checkpoints; the last step is always saved.
        evaluate_at: Steps after which `evaluate` is called.
        skip_limit: Skipped steps after which the run counts as diverged.
        limit_key: Where the config sets that limit, for the message.
        batch_keys: Entries of a batch that the step reads.
    """

    total_steps: int
    save_every: int
    evaluate_at: frozenset[int] = field(default_factory=frozenset)
    skip_limit: int = 10
    limit_key: str = "train.spikes.limit"
    batch_keys: tuple[str, ...] = BATCH_KEYS


def run_steps(
    step: StepFunction,
    state: TrainState,
    frozen: Tree,
    batches: Iterable[tuple[int, Batch]],
    settings: LoopSettings,
    *,
    record: Callable[[int, dict[str, Any]], None],
    evaluate: Callable[[int, TrainState], None],
    save: Callable[[int, TrainState], None],
    should_stop: Callable[[int], int | None],
) -> TrainState:
    """Trains until the last step, a stop signal or divergence.

    The order after a step is: record, evaluate, save. What a checkpoint of step n finds on disk is
    therefore complete up to n, and a rerun that drops later records repeats nothing and loses
    nothing.

    Args:
        step: Compiled step function that takes over (donates) the state.
        state: State to start from.
        frozen: Frozen leaves in the runtime layout.
        batches: Pairs (number of the batch, arrays), starting with the state's own step; `row_ids`
            are the numbers of its rows, for the record of a skipped step.
        settings: See `LoopSettings`.
        record: Takes a step number and its metrics, in order.
        evaluate: Called after the steps in `settings.evaluate_at`.
        save: Called with a step and a state that is complete up to it.
        should_stop: Asked after every step but the last; returns the signal to answer, or None.

    Returns:
        The final state.

    Raises:
        DivergedError: More steps were skipped than `settings.skip_limit`.
        PreemptedError: SIGTERM; the state was saved.
        InterruptedRunError: Ctrl-C; the state was saved.
    """
    pending: tuple[int, dict[str, jax.Array], Batch] | None = None
    done = int(state.step)
    settled_at = time.monotonic()

    def settle() -> None:
        # Metrics are read one step late, so that the device never waits for the host.
        nonlocal pending, settled_at
        if pending is None:
            return
        (number, metrics, batch), pending = pending, None
        values: dict[str, Any] = {key: np.asarray(value).item() for key, value in metrics.items()}
        now = time.monotonic()
        values["seconds"], settled_at = now - settled_at, now
        values["tokens_per_second"] = values["supervised_tokens"] / max(values["seconds"], 1e-9)
        if not values["accepted"]:
            values["rows"] = np.asarray(batch["row_ids"]).tolist()
        record(number, values)
        if values["skipped"] > settings.skip_limit:
            raise DivergedError(
                f"step {number}: {values['skipped']} steps were skipped because their loss or "
                f"gradient norm was not finite or far off (limit {settings.skip_limit}); lower the "
                "learning rate, look at the rows that metrics.jsonl names for them, or raise "
                f"{settings.limit_key}"
            )

    for number, batch in batches:
        if done >= settings.total_steps:
            break
        if number != done:
            raise ValueError(f"the batches continue at {number}, the state at {done}")
        state, metrics = step(state, frozen, {key: batch[key] for key in settings.batch_keys})
        settle()
        done += 1
        pending = (done, metrics, batch)
        evaluates = done in settings.evaluate_at
        saves = done % settings.save_every == 0 or done == settings.total_steps
        asked = should_stop(done) if done < settings.total_steps else None
        if evaluates or saves or asked is not None:
            settle()
        if evaluates:
            evaluate(done, state)
        if saves or asked is not None:
            save(done, state)
        if asked is not None:
            raise_stopped(
                asked,
                f"saved at step {done} of {settings.total_steps}; the same command goes on with "
                f"step {done + 1}",
            )
        if evaluates or saves:
            settled_at = time.monotonic()
    settle()
    return state


def raise_stopped(signal_number: int, where: str) -> NoReturn:
    """Answers a request to end, once everything is saved.

    Args:
        signal_number: SIGTERM or SIGINT.
        where: What is saved, and how to go on.

    Raises:
        PreemptedError: SIGTERM arrived.
        InterruptedRunError: Ctrl-C was pressed.
    """
    if signal_number == signal.SIGINT:
        raise InterruptedRunError(f"interrupted, {where}")
    raise PreemptedError(f"asked to end, {where}")
