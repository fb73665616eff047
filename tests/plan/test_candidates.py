"""What a search leaves out, with compilations replaced by answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import pytest
from rich.console import Console

from jaxrecipes.experiment.base_model import peek_model_config
from jaxrecipes.plan.candidates import Trial, Tried, find_changes, search
from jaxrecipes.plan.changes import Change
from jaxrecipes.plan.chips import Chip
from jaxrecipes.plan.target import Target
from tests.plan.test_changes import config

FAST = Chip(name="fast", device_kind="cpu", memory_bytes=2**40, bf16_flops=1e12)


def answer(*, fits: bool, speed: float) -> Any:
    bound = SimpleNamespace(sequential=1.0)
    measurement = SimpleNamespace(peak_bytes=1)
    return SimpleNamespace(fits=fits, tokens_per_second=speed, bound=bound, measurement=measurement)


@pytest.fixture
def trial(monkeypatch):
    """A trial on one device whose answers come from `trial.answer(change)`."""
    target = Target(tuple(jax.devices()[:1]), None, FAST)
    model = peek_model_config("random:tiny-llama", None)
    made = Trial("full", config(4, remat="dots"), model, 3, target, None, Console(quiet=True))
    asked: list[str] = []

    def run(self: Trial, change: Change, label: str) -> Tried:
        asked.append(str(change))
        return Tried(change, self.answer(str(change)), 0)  # type: ignore[attr-defined]

    monkeypatch.setattr(Trial, "run", run)
    made.asked = asked  # type: ignore[attr-defined]
    return made


def test_nothing_is_compiled_that_cannot_be_faster(trial):
    trial.answer = lambda change: answer(fits=True, speed=1e15)
    assert [str(one.change) for one in search(trial, 50)] == ["train.remat=none"]


def test_what_needs_more_than_what_did_not_fit_is_left_out(trial):
    trial.answer = lambda change: answer(fits=False, speed=1.0)
    search(trial, 50)
    # One mesh; none, dots, full and groups with four, two and one rows: each smaller than before.
    rows = {"": 4, "train.micro_batch_size=2": 2, "train.micro_batch_size=1": 1}
    order = {"train.remat=none": 0, "": 1, "train.remat=full": 2, "train.remat=groups": 3}
    seen = []
    for text in trial.asked:
        remat = next((part for part in text.split() if "remat" in part), "")
        micro = next((part for part in text.split() if "micro" in part), "")
        seen.append((order[remat], rows[micro]))
    assert len(seen) == len(set(seen)) == 12
    for number, (remat, count) in enumerate(seen):
        assert not any(remat <= r and count >= c for r, c in seen[:number])


def test_the_limit_holds(trial):
    trial.answer = lambda change: answer(fits=True, speed=1.0)
    assert len(search(trial, 4)) == 4
    assert len(find_changes(trial, 2)) == 2


def test_pairs_are_tried_only_while_nothing_fits(trial):
    trial.answer = lambda change: answer(fits=False, speed=1.0)
    find_changes(trial, 50)
    assert any(" " in text for text in trial.asked)
    trial.asked.clear()
    trial.answer = lambda change: answer(fits=True, speed=1.0)
    find_changes(trial, 50)
    assert trial.asked and not any(" " in text for text in trial.asked)
