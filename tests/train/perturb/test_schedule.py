"""A perturbation within a training step: its parts, its first steps, its teacher."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np
import pytest

from jaxrecipes.train.perturb.options import build_method
from jaxrecipes.train.perturb.schedule import UNPERTURBED, Perturbation
from tests.tiny import packed_batch, tiny_config, tiny_params, trainer

# Large enough to be seen in float32 on a tiny random model.
OPTIONS = {
    "pgd": {"epsilon": 0.5, "steps": 2},
    "freelb": {"steps": 2, "initial_magnitude": 0.3},
    "neftune": {"alpha": 5.0},
    "smart": {"epsilon": 0.02, "noise": 0.01, "step_size": 0.02},
    "kim_kang": {"epsilon": 0.5, "steps": 2},
}
RULES = [(r"embedding/table", False), (r".*", True)]


def perturbation(name: str, **changes: int) -> Perturbation:
    return Perturbation(build_method(name, OPTIONS[name]), total_steps=20, **changes)


def train(choice: Perturbation, steps: int = 3, **options):
    """Returns the states and the metrics of a few steps, and the frozen leaves."""
    config = tiny_config("llama", num_layers=2)
    params = tiny_params(config)
    step, state, frozen, _ = trainer(
        config, params, RULES, loss_chunk=16, perturbation=choice, **options
    )
    other = jax.tree.map(lambda leaf: 1.02 * leaf, state.trainable)
    state = state.replace(teacher=choice.first_teacher(state.trainable, other))
    states, metrics = [state], []
    for number in range(steps):
        state, found = step(state, frozen, packed_batch(config, rows=4, seed=number))
        states.append(state)
        metrics.append({name: float(value) for name, value in found.items()})
    return states, metrics


@cache
def clean_run():
    return train(UNPERTURBED)


def close(tree, other, tolerance):
    for found, expected in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


# One that adds up gradients of its own, one with predictions and a teacher, one with noise alone.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["freelb", *(pytest.param(name, marks=pytest.mark.long) for name in ("smart", "neftune"))],
)
def test_micro_batches_change_nothing(name):
    choice = perturbation(name)
    whole, expected = train(choice, steps=1)
    parts, found = train(choice, steps=1, micro_batches=4)
    assert set(found[0]) == set(expected[0])
    assert {"delta_norm", "relative_delta"} < set(found[0])
    for key, value in expected[0].items():
        np.testing.assert_allclose(found[0][key], value, rtol=2e-4, err_msg=key)
    # The first update of AdamW is the sign of the gradient where that is not near zero.
    close(parts[-1].optimizer_state, whole[-1].optimizer_state, 2e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", ["freelb", "smart"])
def test_clean_steps_come_first_and_are_those_of_a_clean_run(name):
    clean, expected = clean_run()
    states, metrics = train(perturbation(name, clean_steps=2))
    assert [found["loss"] for found in metrics[:2]] == [one["loss"] for one in expected[:2]]
    close(states[2].trainable, clean[2].trainable, 1e-7)
    assert metrics[0]["delta_norm"] == metrics[1]["delta_norm"] == 0
    assert metrics[2]["delta_norm"] > 0
    assert metrics[2]["loss"] != expected[2]["loss"]


def test_noise_is_another_in_every_step_and_the_same_in_a_rerun():
    config = tiny_config("llama", num_layers=2)
    step, state, frozen, _ = trainer(
        config, tiny_params(config), RULES, perturbation=perturbation("neftune")
    )
    batch = packed_batch(config)
    later = state.replace(step=state.step + 1)
    losses = [float(step(one, frozen, batch)[1]["loss"]) for one in (state, later, state)]
    assert losses[0] != losses[1]
    assert losses[0] == losses[2]


def test_a_mean_teacher_starts_as_the_model_and_follows_by_its_decays():
    states, metrics = train(perturbation("smart"), steps=4)
    close(states[0].teacher, states[0].trainable, 0)
    assert abs(metrics[0]["teacher_divergence"]) < 1e-6
    assert metrics[-1]["teacher_divergence"] > 0
    # 0.99 in the first tenth of 20 steps, then 0.999.
    for number, decay in enumerate((0.99, 0.99, 0.999, 0.999)):
        before, after = states[number], states[number + 1]
        expected = jax.tree.map(
            lambda old, new, decay=decay: decay * old + (1 - decay) * new,
            before.teacher,
            after.trainable,
        )
        close(after.teacher, expected, 1e-6)


@pytest.mark.slow
def test_a_fixed_teacher_stays_and_is_what_is_attacked():
    states, metrics = train(perturbation("kim_kang"))
    close(states[-1].teacher, states[0].teacher, 0)
    own = perturbation("pgd")
    _, attacked = train(Perturbation(own.method, total_steps=20))
    # The same attack on the model itself is another one.
    assert metrics[0]["adversarial_loss"] != attacked[0]["adversarial_loss"]
