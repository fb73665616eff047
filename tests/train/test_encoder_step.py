"""Steps of models with heads: exact losses, micro-batches, freezing, dropout, perturbations."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrecipes.checkpoint.random_model import ENCODER_PRESETS
from jaxrecipes.models.dropout import row_keys
from jaxrecipes.models.encoder import encode, init_encoder_params
from jaxrecipes.models.heads import (
    family_head,
    init_classifier,
    init_masked_head,
    masked_logits,
    masked_states,
    mean_head,
)
from jaxrecipes.params.layout import plan_layout, to_canonical, to_runtime
from jaxrecipes.params.partition import partition
from jaxrecipes.params.paths import flatten
from jaxrecipes.params.rules import label
from jaxrecipes.train.backbone import decoder_backbone, encoder_backbone
from jaxrecipes.train.encoder_step import make_objective_step
from jaxrecipes.train.flops import count_flops
from jaxrecipes.train.masking import MaskingSettings, mask_tokens
from jaxrecipes.train.objectives import (
    classification_objective,
    masked_objective,
    sum_of_chosen,
    text_logits,
)
from jaxrecipes.train.optimizer import OptimizerSettings, learning_rate_schedule, make_optimizer
from jaxrecipes.train.perturb import (
    ALUM,
    FGM,
    PGD,
    SMART,
    VAT,
    Ascent,
    FreeLB,
    KimKang,
    NEFTune,
    Perturbation,
)
from jaxrecipes.train.state import create_state
from tests.tiny import tiny_config, tiny_params

CONFIG = replace(ENCODER_PRESETS["tiny-bert"], vocab_size=60, num_layers=3, pad_token_id=0)
MASKING = MaskingSettings(4, 60, (0, 1, 2, 3, 4), rate=0.3)
HEAD = family_head("bert", 3, dropout=0.3)
ROWS, LENGTH = 32, 10
KEY = jax.random.key(7)


@cache
def params_of(head=HEAD):
    """Noise everywhere, so that nothing can be dropped unseen."""
    key = jax.random.key(0)
    params = init_encoder_params(CONFIG, key)
    params["classifier"] = init_classifier(head, CONFIG.hidden_size, key)
    params["masked_head"] = init_masked_head(CONFIG, key)
    leaves, structure = jax.tree.flatten(params)
    generator = np.random.default_rng(0)
    noisy = [
        np.asarray(leaf) + 0.2 * generator.standard_normal(leaf.shape).astype(np.float32)
        for leaf in leaves
    ]
    return jax.tree.unflatten(structure, noisy)


def batch_of(rows=ROWS, seed=0):
    """Texts of very different lengths, one a row, the last row empty."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, LENGTH + 1, rows)
    lengths[-1] = 0
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (rows, 1))
    segment_ids = (positions < lengths[:, None]).astype(np.int32)
    return {
        "token_ids": generator.integers(5, 60, (rows, LENGTH)).astype(np.int32) * segment_ids,
        "segment_ids": segment_ids,
        "positions": positions * segment_ids,
        "labels": generator.integers(0, 3, (rows, 1)).astype(np.int32),
    }


def objective_of(name, layout=None, dropout=0.0):
    backbone = encoder_backbone(CONFIG, layout=layout, dropout=dropout)
    if name == "masked":
        return masked_objective(backbone, CONFIG, MASKING, chunk=16)
    return classification_objective(backbone, HEAD)


def trainer(name, rules=((".*", True),), *, dropout=0.0, **options):
    """Jitted step, state, frozen tree, layout."""
    unused = "masked_head" if name == "classes" else "classifier"
    params = {key: value for key, value in params_of().items() if key != unused}
    trains = label(params, rules)
    layout = plan_layout(CONFIG, trains)
    trainable, frozen = partition(params, lambda path: trains[path])
    settings = OptimizerSettings(total_steps=50, learning_rate=1e-2, warmup_steps=2)
    decays = {path: path.endswith("kernel") for path, wanted in trains.items() if wanted}
    optimizer = make_optimizer(settings, layout=layout, decays=decays)
    step = make_objective_step(
        objective_of(name, layout, dropout),
        optimizer,
        learning_rate_schedule(settings),
        dropout=dropout > 0,
        **options,
    )
    state = create_state(to_runtime(layout, trainable), optimizer, spike_window=8)
    return jax.jit(step), state, to_runtime(layout, frozen), layout


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "dropout"),
    [pytest.param("classes", 0.1, marks=pytest.mark.long), ("masked", 0.0)],
)
def test_micro_batches_do_not_change_the_losses(name, dropout):
    curves = []
    for micro_batches in (1, 8, 32):
        step, state, frozen, _ = trainer(name, dropout=dropout, micro_batches=micro_batches)
        losses = []
        for number in range(3):
            state, metrics = step(state, frozen, batch_of(seed=number), KEY)
            losses.append([metrics["loss"], metrics["gradient_norm"], metrics["supervised"]])
        curves.append(np.array(losses))
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)
    np.testing.assert_allclose(curves[2], curves[0], rtol=1e-5)
    assert len(set(curves[0][:, 0])) == 3


def test_the_loss_of_classes_is_the_mean_over_texts():
    batch, params = batch_of(), params_of()
    objective = objective_of("classes")
    problem = objective.problem({}, objective.count(batch))
    ours = problem.loss(params, problem.embed(params, batch), batch)
    logits = problem.outputs(params, problem.embed(params, batch), batch)[:-1, 0]
    theirs = -jax.nn.log_softmax(logits)[np.arange(ROWS - 1), batch["labels"][:-1, 0]]
    np.testing.assert_allclose(ours, np.mean(theirs), rtol=1e-5)


def test_several_labels_are_torchs_binary_cross_entropy():
    torch = pytest.importorskip("torch")
    batch, params = batch_of(), params_of()
    generator = np.random.default_rng(0)
    batch["labels"] = (generator.random((ROWS, 1, 3)) < 0.4).astype(np.float32)
    backbone = encoder_backbone(CONFIG)
    objective = classification_objective(backbone, HEAD, multi_label=True)
    problem = objective.problem({}, objective.count(batch))
    embeddings = problem.embed(params, batch)
    logits = problem.outputs(params, embeddings, batch)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(np.asarray(logits))[:-1], torch.tensor(batch["labels"])[:-1]
    )
    np.testing.assert_allclose(problem.loss(params, embeddings, batch), theirs, rtol=1e-5)
    # KL of the same predictions is nothing, of others something.
    assert problem.divergence(logits, logits, batch) == 0.0
    p, q = jax.nn.sigmoid(logits), jax.nn.sigmoid(logits + 0.5)
    kl = p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q))
    np.testing.assert_allclose(
        problem.divergence(logits, logits + 0.5, batch), np.mean(kl[:-1]), rtol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.3, 0.01])
def test_the_loss_of_masked_tokens_is_that_of_all_logits(rate):
    batch, params = batch_of(), params_of()
    masking = replace(MASKING, rate=rate)
    objective = masked_objective(encoder_backbone(CONFIG), CONFIG, masking, chunk=7)
    key = jax.random.key(1)
    prepared = objective.prepare(batch, key)
    masked = mask_tokens(masking, batch, key)
    count = objective.count(prepared)
    problem = objective.problem({}, count)

    def ours(params):
        return problem.loss(params, problem.embed(params, prepared), prepared)

    def written_out(params):
        places = batch["segment_ids"], batch["positions"]
        states = encode(CONFIG, params, masked.token_ids, *places)
        states = masked_states(CONFIG, params["masked_head"], states).reshape(ROWS * LENGTH, -1)
        table = params["embedding"]["token"]["table"]
        logits = masked_logits(states, table, params["masked_head"]["bias"])
        log_p = jax.nn.log_softmax(logits)
        chosen = log_p[jnp.arange(ROWS * LENGTH), masked.targets.reshape(-1)]
        return -jnp.sum(chosen * masked.weights.reshape(-1)) / jnp.sum(masked.weights)

    loss, gradient = jax.jit(jax.value_and_grad(ours))(params)
    expected, its_gradient = jax.jit(jax.value_and_grad(written_out))(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for path, leaf in flatten(its_gradient).items():
        np.testing.assert_allclose(flatten(gradient)[path], leaf, atol=2e-5, err_msg=path)
    outputs = problem.outputs(params, problem.embed(params, prepared), prepared)
    assert problem.divergence(outputs, outputs, prepared) == 0.0


@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_no_chosen_token_is_lost_however_many_there_are(share):
    generator = np.random.default_rng(0)
    values = generator.normal(size=(1000, 4)).astype(np.float32)
    weights = (generator.random(1000) < share).astype(np.float32)

    def total(values):
        return sum_of_chosen(lambda one: jnp.sum(one**2, -1), (values,), weights, 0.05, 37)

    found, gradient = jax.jit(jax.value_and_grad(total))(jnp.asarray(values))
    np.testing.assert_allclose(found, np.sum(values**2 * weights[:, None]), rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 * values * weights[:, None], rtol=1e-5)


@pytest.mark.parametrize("name", ["classes", "masked"])
def test_frozen_leaves_stay_bit_identical(name):
    rules = [("layers/2/.*", True), ("(classifier|masked_head)/.*", True), (".*", False)]
    step, state, frozen, layout = trainer(name, rules)
    before = flatten(to_canonical(layout, state.trainable))
    held = jax.tree.map(np.array, frozen)
    for number in range(3):
        state, metrics = step(state, frozen, batch_of(seed=number), KEY)
    assert metrics["accepted"]
    after = flatten(to_canonical(layout, state.trainable))
    assert set(flatten(frozen)) & set(after) == set()
    assert all(path.startswith(("layers/2/", "classifier/", "masked_head/")) for path in after)
    for path, leaf in flatten(held).items():
        np.testing.assert_array_equal(flatten(frozen)[path], leaf)
    moved = [path for path, leaf in after.items() if np.any(np.asarray(leaf) != before[path])]
    # The gradient of a key's bias is zero but for rounding.
    assert set(after) - set(moved) <= {"layers/2/attention/key/bias"}


def test_layers_below_the_lowest_trained_one_have_no_backward_pass():
    def flops(rules):
        step, state, frozen, _ = trainer("classes", rules)
        return count_flops(step, state, frozen, batch_of(), KEY)

    whole = flops([(".*", True)])
    top = flops([("layers/2/.*", True), ("classifier/.*", True), (".*", False)])
    # Three layers of three passes each; or three forward passes, and two backward ones of a layer.
    assert top < 0.62 * whole


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classes", "masked"])
def test_a_run_goes_on_as_it_would_have(name):
    step, state, frozen, _ = trainer(name, dropout=0.2, perturbation=Perturbation(NEFTune()))
    losses, saved = [], None
    for number in range(4):
        if number == 2:
            saved = jax.tree.map(np.array, state)
        state, metrics = step(state, frozen, batch_of(), KEY)
        losses.append(float(metrics["loss"]))
    again = []
    for _ in range(2):
        saved, metrics = step(saved, frozen, batch_of(), KEY)
        again.append(float(metrics["loss"]))
    assert again == losses[2:]


def test_dropout_is_another_one_in_every_step_and_of_every_key():
    losses = set()
    step, state, frozen, _ = trainer("classes", dropout=0.3)
    for seed in (1, 2):
        for number in range(2):
            at = state.replace(step=jnp.asarray(number, jnp.int32))
            losses.add(float(step(at, frozen, batch_of(), jax.random.key(seed))[1]["loss"]))
    assert len(losses) == 4


ASCENT = Ascent(epsilon=0.1, noise=0.05, step_size=0.1)
PERTURBERS = (
    SMART(ascent=ASCENT),
    *(
        pytest.param(one, marks=pytest.mark.long)
        for one in (
            FreeLB(steps=2, initial_magnitude=0.1),
            FGM(),
            PGD(steps=2),
            NEFTune(),
            VAT(),
            ALUM(ascent=ASCENT),
            KimKang(PGD(steps=1)),
        )
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("perturber", PERTURBERS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("name", ["classes", pytest.param("masked", marks=pytest.mark.long)])
def test_every_perturbation_works_on_encoders(name, perturber):
    choice = Perturbation(perturber)
    step, state, frozen, _ = trainer(name, perturbation=choice)
    other = jax.tree.map(lambda leaf: leaf + 0.01, state.trainable)
    state = state.replace(teacher=choice.first_teacher(state.trainable, other))
    after, metrics = step(state, frozen, batch_of(), KEY)
    assert metrics["accepted"]
    assert np.isfinite(metrics["loss"])
    assert metrics["relative_delta"] > 0
    if isinstance(perturber, FGM):
        assert metrics["adversarial_loss"] > metrics["clean_loss"]
    assert np.any(
        np.asarray(after.trainable["embedding"]["token"]["table"])
        != np.asarray(state.trainable["embedding"]["token"]["table"])
    )


@pytest.mark.long
def test_a_perturbation_is_the_same_in_micro_batches():
    results = []
    for micro_batches in (1, 8):
        step, state, frozen, _ = trainer(
            "classes", perturbation=Perturbation(PGD(steps=2)), micro_batches=micro_batches
        )
        results.append(step(state, frozen, batch_of(), KEY)[1])
    for name in ("loss", "adversarial_loss", "gradient_norm", "delta_norm"):
        np.testing.assert_allclose(results[1][name], results[0][name], rtol=1e-4)


@pytest.mark.slow
def test_the_dropout_of_a_step_is_that_of_the_written_out_loss():
    step, state, frozen, layout = trainer("classes", dropout=0.2)
    _, metrics = step(state, frozen, batch_of(), KEY)
    keys = jax.random.split(jax.random.fold_in(KEY, 0), 3)
    batch = {**batch_of(), "dropout_keys": row_keys(keys[1], ROWS)}
    problem = objective_of("classes", layout, 0.2).problem(frozen, jnp.asarray(ROWS - 1.0))
    loss = problem.loss(state.trainable, problem.embed(state.trainable, batch), batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


@pytest.mark.long
def test_a_step_learns():
    # The tokens are random: without learning them by heart nobody gets below log(55), from 4.8.
    for name, share in (("classes", 0.8), ("masked", 0.9)):
        step, state, frozen, _ = trainer(name)
        losses = []
        for _ in range(25):
            state, metrics = step(state, frozen, batch_of(), KEY)
            losses.append(float(metrics["loss"]))
        assert np.mean(losses[-3:]) < share * np.mean(losses[:3])


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_packed_texts_are_classified_as_they_are_alone(kind):
    generator = np.random.default_rng(1)
    lengths = [5, 9, 3]
    alone = {key: np.zeros((3, 12), np.int32) for key in ("token_ids", "segment_ids", "positions")}
    packed = {key: np.zeros((1, 24), np.int32) for key in alone}
    start = 0
    for number, length in enumerate(lengths):
        tokens = generator.integers(5, 60, length)
        for row, at, first, segment in ((alone, number, 0, 1), (packed, 0, start, number + 1)):
            row["token_ids"][at, first : first + length] = tokens
            row["segment_ids"][at, first : first + length] = segment
            row["positions"][at, first : first + length] = np.arange(length)
        start += length
    labels = generator.integers(0, 3, 3).astype(np.int32)
    alone["labels"], packed["labels"] = labels[:, None], labels[None]
    if kind == "encoder":
        head = mean_head(3)
        backbone, params = encoder_backbone(CONFIG), params_of(head)
    else:
        config = tiny_config()
        head, backbone = family_head("llama", 3), decoder_backbone(config)
        params = tiny_params(config)
        params["classifier"] = init_classifier(head, config.hidden_size, jax.random.key(0))
    objective = classification_objective(backbone, head)
    losses, logits = [], []
    for batch in (alone, packed):
        problem = objective.problem({}, objective.count(batch))
        embeddings = problem.embed(params, batch)
        losses.append(problem.loss(params, embeddings, batch))
        logits.append(text_logits(backbone, head, params, embeddings, batch).reshape(3, 3))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5)
