"""A pretraining phase: the units called by hand, resumed bit for bit, its moments, its losses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrecipes.checkpoint.training_state import TrainingStates
from jaxrecipes.data.mixture import Part, TextMixture, make_mixture
from jaxrecipes.data.plain_texts import PlainText
from jaxrecipes.data.text_batches import pad_texts
from jaxrecipes.errors import PreemptedError
from jaxrecipes.experiment.task_model import TaskModel, of_encoder
from jaxrecipes.models.heads import init_masked_head
from jaxrecipes.params.layout import to_runtime
from jaxrecipes.params.paths import flatten
from jaxrecipes.train.encoder_step import make_objective_step
from jaxrecipes.train.optimizer import OptimizerSettings, learning_rate_schedule, make_optimizer
from jaxrecipes.train.phase import (
    BATCH_KEYS,
    PhaseProgram,
    mean_loss,
    restart_schedule,
    run_phase,
)
from jaxrecipes.train.state import create_state
from tests.encoders import WORDS, tiny_encoder

STEPS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> TaskModel:
    encoder = tiny_encoder(tmp_path_factory.mktemp("model"))
    return of_encoder(replace(encoder, config=replace(encoder.config, num_layers=1)))


@pytest.fixture(scope="module")
def mixture(model) -> TextMixture:
    rng = np.random.default_rng(0)
    texts = [PlainText((" ".join(rng.choice(WORDS, 6)),), "") for _ in range(10)]
    part = Part(model.tokenize_plain(texts, 16))
    return make_mixture([part], rows=4, max_tokens=16, pad_token_id=0, seed=0)


def params(model: TaskModel) -> Any:
    tree = {**model.params, "layers": {"0": model.params["layers"]["0"]}}
    return {**tree, "masked_head": init_masked_head(model.config, jax.random.key(1))}


@pytest.fixture(scope="module")
def program(model) -> PhaseProgram:
    settings = OptimizerSettings(total_steps=STEPS, learning_rate=1e-2, schedule="linear")
    decays = dict.fromkeys(flatten(params(model)), True)
    return PhaseProgram(
        objective=model.pretraining_objective(
            0.1, rate=0.3, mask_share=0.8, random_share=0.1, whole=False
        ),
        optimizer=make_optimizer(settings, layout=model.layout, decays=decays),
        schedule=learning_rate_schedule(settings),
        total_steps=STEPS,
        dropout=False,  # its masks follow the step, too (test_encoder_step.py), and compile long
        spike_window=8,
        seed=7,
    )


def run(program, model, mixture, folder, *, stop_at=None, seen=None, **options):
    with TrainingStates(folder) as states:
        return run_phase(
            program,
            to_runtime(model.layout, params(model)),
            mixture,
            states,
            save_every=3,
            identity={"phase": "a"},
            record=lambda step, values: None if seen is None else seen.append((step, values)),
            should_stop=lambda step: 15 if step == stop_at else None,
            **options,
        )


@pytest.fixture(scope="module")
def whole(program, model, mixture, tmp_path_factory):
    seen: list[Any] = []
    state = run(program, model, mixture, tmp_path_factory.mktemp("whole"), seen=seen)
    return state, seen


def equal(first: Any, second: Any) -> None:
    for path, leaf in flatten(first).items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(flatten(second)[path]), path)


def test_a_phase_is_its_units_called_by_hand(program, model, mixture, whole):
    step = jax.jit(make_objective_step(program.objective, program.optimizer, program.schedule))
    trainable = to_runtime(model.layout, params(model))
    state = create_state(trainable, program.optimizer, spike_window=8)
    losses = []
    for number in range(STEPS):
        batch = {name: mixture.batch(number)[name] for name in BATCH_KEYS}
        state, metrics = step(state, {}, batch, jax.random.key(7))
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose([one["loss"] for _, one in whole[1]], losses, rtol=1e-6)
    for path, leaf in flatten(whole[0].trainable).items():
        np.testing.assert_allclose(
            leaf, flatten(state.trainable)[path], rtol=1e-5, atol=1e-6, err_msg=path
        )
    changed = flatten(whole[0].trainable)["masked_head/dense/kernel"]
    assert np.abs(changed - flatten(trainable)["masked_head/dense/kernel"]).max() > 1e-4


@pytest.mark.parametrize("stop_at", [1, pytest.param(3, marks=pytest.mark.long)])
def test_a_phase_that_was_stopped_ends_with_the_same_bits(
    program, model, mixture, whole, tmp_path, stop_at
):
    with pytest.raises(PreemptedError, match=f"saved at step {stop_at} of {STEPS}"):
        run(program, model, mixture, tmp_path, stop_at=stop_at)
    seen: list[Any] = []
    starts: list[int] = []
    state = run(program, model, mixture, tmp_path, seen=seen, begin=starts.append)
    assert starts == [stop_at] and [step for step, _ in seen] == list(range(stop_at + 1, STEPS + 1))
    equal(state.trainable, whole[0].trainable)
    for first, second in zip(
        jax.tree.leaves(state.optimizer_state),
        jax.tree.leaves(whole[0].optimizer_state),
        strict=True,
    ):
        np.testing.assert_array_equal(first, second)


def test_moments_are_kept_and_the_course_of_the_rate_begins_anew(whole):
    given = whole[0].optimizer_state
    kept = restart_schedule(given)

    def states_of(tree, kind):
        nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kind))
        return [node for node in nodes if isinstance(node, kind)]

    counts = [states_of(tree, optax.ScaleByScheduleState)[0].count for tree in (given, kept)]
    assert [int(count) for count in counts] == [STEPS, 0]
    before, after = (states_of(tree, optax.ScaleByAdamState)[0] for tree in (given, kept))
    assert int(after.count) == STEPS
    equal(before.mu, after.mu)
    equal(before.nu, after.nu)


def test_the_measured_loss_has_no_dropout_and_the_same_masks_in_any_batching(
    program, model, mixture
):
    tree = to_runtime(model.layout, params(model))
    texts = mixture.texts.chosen([0, 1, 2])
    found = mean_loss(program.objective, tree, texts, max_tokens=16, pad_token_id=0, seed=5)

    @jax.jit
    def sums(batch: Any) -> tuple[jax.Array, jax.Array]:
        prepared = program.objective.prepare(batch, jax.random.key(5))
        problem = program.objective.problem({}, jnp.float32(1.0))
        loss = problem.loss(tree, problem.embed(tree, prepared), prepared)
        return loss, program.objective.count(prepared)

    # One text at a time: masks follow the text, and the mean is over tokens, not over texts.
    ones = [pad_texts(texts, np.array([number]), 1, 16, 0) for number in range(3)]
    parts = [sums({name: batch[name] for name in BATCH_KEYS}) for batch in ones]
    total, count = np.sum(np.array(parts, np.float64), axis=0)
    assert found == pytest.approx(total / count, rel=1e-5)


def test_masks_of_a_phase_follow_the_key(program, mixture):
    batch = {name: jnp.asarray(mixture.batch(0)[name]) for name in BATCH_KEYS}
    prepare = jax.jit(lambda key: program.objective.prepare(batch, key)["token_ids"])
    first, again, other = (np.asarray(prepare(jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
