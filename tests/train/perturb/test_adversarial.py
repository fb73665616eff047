import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrecipes.errors import ConfigError
from jaxrecipes.train.causal_loss import batch_loss
from jaxrecipes.train.perturb import FGM, PGD, Clean, FreeLB, KimKang, NEFTune, Task
from tests.tiny import tiny_config

from .problems import PROBLEMS, apart, cut, decoder_problem, losses_of_texts, packed, toy_problem

KEY = jax.random.key(3)


def run(method, problem, params, batch, key=KEY, teacher=None):
    return jax.jit(lambda *rest: method(Task(problem, *rest)))(params, batch, key, teacher)


def close(first, second, rtol=1e-4):
    """Trees equal up to rounding, measured by the largest entry of each leaf."""
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, atol=rtol * max(np.abs(b).max(), 1e-3), rtol=0)


def step_of(gradient, batch, norm):
    """g / |g| of each text with NumPy."""
    order = 2 if norm == "l2" else np.inf
    step = np.zeros_like(gradient)
    for row, ids in enumerate(batch["segment_ids"]):
        for segment in range(1, ids.max() + 1):
            inside = ids == segment
            size = np.linalg.norm(gradient[row][inside].ravel(), order)
            step[row][inside] = gradient[row][inside] / max(size, 1e-8)
    return step


def into_ball(delta, batch, radius, norm):
    if norm == "linf":
        return np.clip(delta, -radius, radius)
    moved = np.zeros_like(delta)
    for row, ids in enumerate(batch["segment_ids"]):
        for segment in range(1, ids.max() + 1):
            inside = ids == segment
            size = np.linalg.norm(delta[row][inside])
            moved[row][inside] = delta[row][inside] * min(1.0, radius / max(size, 1e-30))
    return moved


def written_out(problem):
    """Loss with its gradients in params and delta at a point."""

    def loss(params, delta, batch):
        return problem.loss(params, problem.embed(params, batch) + delta, batch)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


@pytest.mark.slow
def test_clean_is_the_loss_of_the_train_step():
    problem, params = decoder_problem()
    batch = packed()
    result = run(Clean(), problem, params, batch)
    config = tiny_config(num_layers=2)
    loss, gradient = jax.value_and_grad(lambda params: batch_loss(config, params, batch))(params)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-6)
    close(result.gradient, gradient, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decoder", pytest.param("encoder", marks=pytest.mark.long)])
def test_fgm_is_its_formula(kind):
    problem, params = PROBLEMS[kind]()
    batch = packed()
    at = written_out(problem)
    clean, (clean_gradient, ascent) = at(params, np.zeros((4, 20, 32), np.float32), batch)
    delta = 0.5 * step_of(np.asarray(ascent), batch, "l2")
    loss, gradient = at(params, delta, batch)[0], at(params, delta, batch)[1][0]
    result = run(FGM(epsilon=0.5, weight=2.0), problem, params, batch)
    np.testing.assert_allclose(result.loss, clean + 2.0 * loss, rtol=1e-5)
    close(result.gradient, jax.tree.map(lambda a, b: a + 2.0 * b, clean_gradient, gradient))
    np.testing.assert_allclose(result.statistics["delta_norm"], 0.5, rtol=1e-4)
    assert result.statistics["adversarial_loss"] > result.statistics["clean_loss"]


def test_a_relative_radius_follows_the_embeddings():
    problem, params = decoder_problem()
    result = run(FGM(epsilon=0.25, relative=True), problem, params, packed())
    np.testing.assert_allclose(result.statistics["relative_delta"], 0.25, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"initial_magnitude": 0.6, "radius": 0.5, "clean": False},
        {"initial_magnitude": 0.3, "radius": 0.0, "clean": True},
        {"initial_magnitude": 0.05, "radius": 0.12, "norm": "linf", "clean": True},
    ],
)
@pytest.mark.parametrize(
    ("make", "tolerance"), [(toy_problem, 1e-6), (decoder_problem, 1e-5)], ids=["toy", "decoder"]
)
def test_freelb_is_the_written_out_sum(make, tolerance, options):
    problem, params = make()
    batch = packed()
    method = FreeLB(steps=3, step_size=0.2, **options)
    at = written_out(problem)
    delta = np.asarray(method.initial(problem, params, batch, KEY))
    for text in cut(delta, batch):
        bound = (
            method.initial_magnitude
            if method.norm == "linf"
            else method.initial_magnitude / np.sqrt(text.size)
        )
        assert 0 < np.abs(text).max() <= bound * (1 + 1e-6)
    losses, gradients = [], []
    if method.clean:
        loss, (gradient, _) = at(params, np.zeros_like(delta), batch)
        losses.append(loss)
        gradients.append(gradient)
    for _ in range(3):
        loss, (gradient, ascent) = at(params, delta, batch)
        losses.append(loss)
        gradients.append(gradient)
        delta = delta + 0.2 * step_of(np.asarray(ascent), batch, method.norm)
        if method.radius:
            delta = into_ball(delta, batch, method.radius, method.norm)
    result = run(method, problem, params, batch)
    np.testing.assert_allclose(result.loss, np.mean(losses), rtol=1e-5)
    expected = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *gradients)
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(result.gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a / size, b / size, atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_attacks_stay_in_the_ball_spare_padding_and_raise_the_loss(kind):
    problem, params = PROBLEMS[kind]()
    method = PGD(epsilon=0.4, step_size=0.2, steps=3)
    attack = jax.jit(lambda params, batch: method.perturbation(problem, params, batch))
    once = jax.jit(
        lambda params, batch: PGD(epsilon=0.1, step_size=0.1, steps=1).perturbation(
            problem, params, batch
        )
    )
    at, raised, texts = losses_of_texts(problem, params), np.zeros(2), 0
    for seed in range(8):
        batch = packed(seed=seed)
        deltas = [attack(params, batch), once(params, batch)]
        for delta, radius in zip(deltas, (0.4, 0.1), strict=True):
            assert (np.asarray(delta)[batch["segment_ids"] == 0] == 0).all()
            for text in cut(delta, batch):
                assert np.linalg.norm(text) <= radius * (1 + 1e-5)
        clean = at(batch, np.zeros((4, 20, 32)))
        raised += [(at(batch, delta) >= clean).sum() for delta in deltas]
        texts += len(clean)
    assert texts >= 60
    assert (raised >= 0.95 * texts).all(), raised / texts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "method"),
    [
        (decoder_problem, PGD(epsilon=0.4, step_size=0.2)),
        pytest.param(PROBLEMS["encoder"], PGD(epsilon=0.4, step_size=0.2), marks=pytest.mark.long),
        (decoder_problem, FreeLB(initial_magnitude=0.3, radius=0.5, step_size=0.2)),
        (toy_problem, NEFTune(alpha=5.0)),
    ],
)
def test_packed_texts_are_perturbed_as_if_each_were_alone(make, method):
    problem, params = make()
    batch = packed()
    together = run(method, problem, params, batch)
    alone = run(method, problem, params, apart(batch))
    np.testing.assert_allclose(together.loss, alone.loss, rtol=1e-5)
    close(together.gradient, alone.gradient, 5e-4)
    for name, value in together.statistics.items():
        np.testing.assert_allclose(value, alone.statistics[name], rtol=1e-4)
    if isinstance(method, PGD):
        deltas = [
            cut(method.perturbation(problem, params, texts), texts)
            for texts in (batch, apart(batch))
        ]
        for here, there in zip(*deltas, strict=True):
            np.testing.assert_allclose(here, there, atol=2e-5)


def test_kim_kang_trains_a_fresh_model_on_the_first_ones_perturbation():
    problem, params = toy_problem()
    first = jax.tree.map(lambda leaf: leaf * 1.1, params)
    batch, method = packed(), KimKang(attack=PGD(steps=2), clean_weight=0.5)
    delta = method.attack.perturbation(problem, first, batch)
    at = written_out(problem)
    loss, (gradient, _) = at(params, np.asarray(delta), batch)
    clean, (clean_gradient, _) = at(params, np.zeros_like(delta), batch)
    result = run(method, problem, params, batch, teacher=first)
    np.testing.assert_allclose(result.loss, loss + 0.5 * clean, rtol=1e-5)
    close(result.gradient, jax.tree.map(lambda a, b: a + 0.5 * b, gradient, clean_gradient), 5e-4)
    with pytest.raises(ConfigError, match="kim_kang needs the parameters of a teacher"):
        method(Task(problem, params, batch, KEY))


def test_texts_without_a_loss_stay_where_they_are():
    problem, params = decoder_problem()
    batch = packed()
    batch["loss_mask"] = np.zeros_like(batch["loss_mask"])
    result = run(PGD(), problem, params, batch)
    assert float(result.loss) == 0 and float(result.statistics["delta_norm"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.gradient))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FGM(epsilon=0.0), "FGM: epsilon is 0.0; expected a finite number above 0"),
        (lambda: PGD(steps=0), "PGD: steps is 0"),
        (lambda: FreeLB(radius=-1.0), "FreeLB: radius is -1.0; .* of 0 or more"),
        (lambda: FreeLB(norm="l1"), "norm is 'l1'"),  # type: ignore[arg-type]
        (lambda: NEFTune(alpha=float("nan")), "NEFTune: alpha is nan"),
    ],
)
def test_options_out_of_range_are_errors(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
