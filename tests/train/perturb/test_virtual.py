from functools import partial

import jax
import numpy as np
import pytest

from jaxrecipes.errors import ConfigError
from jaxrecipes.train.perturb import ALUM, SMART, VAT, Ascent, Problem, Task, update_teacher

from .problems import apart, cut, decoder_problem, packed, toy_problem
from .test_adversarial import close, run

KEY = jax.random.key(5)
PROBLEMS = {"decoder": decoder_problem, "toy": toy_problem}
# Larger than the papers' 1e-5, so that float32 shows the effects.
SMALL = Ascent(epsilon=0.02, noise=0.01, step_size=0.02, steps=2)


def divergence(problem, params, batch, delta, other=None):
    embeddings = problem.embed(params, batch)
    clean = problem.outputs(params, embeddings, batch)
    moved = problem.outputs(other or params, embeddings + delta, batch)
    return float(problem.divergence(clean, moved, batch))


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROBLEMS)
def test_vat_finds_where_predictions_change_most(kind):
    problem, params = PROBLEMS[kind]()
    batch, method = packed(), VAT(epsilon=0.3, xi=0.05, steps=2)
    delta = jax.jit(partial(method.perturbation, problem))(params, batch, KEY)
    assert (np.asarray(delta)[batch["segment_ids"] == 0] == 0).all()
    for text in cut(delta, batch):
        assert np.linalg.norm(text) == pytest.approx(0.3, rel=1e-4)
    found = divergence(problem, params, batch, delta)
    generator = np.random.default_rng(0)
    for _ in range(5):
        other = np.zeros_like(delta)
        for row, ids in enumerate(batch["segment_ids"]):
            for segment in range(1, ids.max() + 1):
                noise = generator.normal(size=((ids == segment).sum(), delta.shape[-1]))
                other[row][ids == segment] = 0.3 * noise / np.linalg.norm(noise)
        assert found > divergence(problem, params, batch, other)


def test_vat_holds_the_clean_prediction_constant():
    problem, params = toy_problem()
    batch, method = packed(), VAT(epsilon=0.3, weight=2.0)
    delta = method.perturbation(problem, params, batch, KEY)
    held = problem.outputs(params, problem.embed(params, batch), batch)

    def total(params):
        embeddings = problem.embed(params, batch)
        moved = problem.outputs(params, embeddings + delta, batch)
        kl = problem.divergence(held, moved, batch)
        return problem.loss(params, embeddings, batch) + 2.0 * kl

    loss, gradient = jax.jit(jax.value_and_grad(total))(params)
    result = run(method, problem, params, batch, KEY)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-5)
    close(result.gradient, gradient)


def test_smart_is_its_formula():
    problem, params = toy_problem()
    teacher = jax.tree.map(lambda leaf: leaf * 1.05, params)
    batch, method = packed(), SMART(weight=3.0, proximal=0.7, ascent=SMALL)
    delta = SMALL(problem, params, batch, KEY)
    outputs = problem.outputs(teacher, problem.embed(teacher, batch), batch)

    def symmetric(a, b):
        return problem.divergence(a, b, batch) + problem.divergence(b, a, batch)

    def total(params):
        embeddings = problem.embed(params, batch)
        clean = problem.outputs(params, embeddings, batch)
        moved = problem.outputs(params, embeddings + delta, batch)
        smooth, near = symmetric(clean, moved), symmetric(clean, outputs)
        return problem.loss(params, embeddings, batch) + 3.0 * smooth + 0.7 * near

    loss, gradient = jax.jit(jax.value_and_grad(total))(params)
    result = run(method, problem, params, batch, KEY, teacher)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-5)
    close(result.gradient, gradient)
    assert result.statistics["teacher_divergence"] > 0 and result.statistics["divergence"] > 0


@pytest.mark.parametrize("kind", PROBLEMS)
def test_smart_stays_in_its_ball_and_changes_predictions_more_than_its_start(kind):
    problem, params = PROBLEMS[kind]()
    batch = packed()
    delta = np.asarray(jax.jit(partial(SMALL, problem))(params, batch, KEY))
    assert (delta[batch["segment_ids"] == 0] == 0).all()
    # As large as the option says, and not 1 as in the public code.
    assert 0.019 < np.abs(delta).max() <= 0.02 * (1 + 1e-6)
    noise = np.random.default_rng(0).uniform(-0.02, 0.02, delta.shape)
    noise[batch["segment_ids"] == 0] = 0
    assert divergence(problem, params, batch, delta) > divergence(problem, params, batch, noise)


@pytest.mark.slow
def test_alum_is_smart_without_a_teacher():
    problem, params = decoder_problem()
    batch = packed()
    alum = run(ALUM(weight=10.0, ascent=SMALL), problem, params, batch, KEY)
    smart = run(SMART(weight=10.0, proximal=0.0, ascent=SMALL), problem, params, batch, KEY)
    close(alum.gradient, smart.gradient)
    value = alum.statistics["clean_loss"] + 10.0 * alum.statistics["divergence"]
    np.testing.assert_allclose(alum.loss, value, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(VAT(epsilon=0.3), id="vat"),
        pytest.param(ALUM(ascent=SMALL), id="alum", marks=pytest.mark.long),
    ],
)
def test_packed_texts_are_perturbed_as_if_each_were_alone(method):
    problem, params = decoder_problem()
    batch = packed()
    together = run(method, problem, params, batch, KEY)
    alone = run(method, problem, params, apart(batch), KEY)
    np.testing.assert_allclose(together.loss, alone.loss, rtol=1e-4)
    close(together.gradient, alone.gradient, 2e-3)


def test_the_papers_sizes_are_finite_in_float32():
    problem, params = decoder_problem()
    result = run(ALUM(), problem, params, packed(), KEY)
    assert 0 < float(result.statistics["divergence"]) < 1e-3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.gradient))


def test_what_is_missing_is_named():
    problem, params = toy_problem()
    with pytest.raises(ConfigError, match="smart needs the parameters of a teacher"):
        SMART()(Task(problem, params, packed(), KEY))
    bare = Problem(problem.embed, problem.loss)
    with pytest.raises(ConfigError, match="compares predictions"):
        VAT()(Task(bare, params, packed(), KEY))


def test_a_mean_teacher_follows_slowly():
    teacher = update_teacher({"a": np.ones(2, np.float32)}, {"a": np.zeros(2, np.float32)}, 0.9)
    np.testing.assert_allclose(teacher["a"], 0.9, rtol=1e-6)
