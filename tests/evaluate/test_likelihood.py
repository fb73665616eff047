"""Losses and divergences against brute force over whole distributions."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxrecipes.errors import DataError
from jaxrecipes.evaluate import head_scores, likelihood
from jaxrecipes.evaluate.likelihood import (
    base_cache,
    base_sums,
    evaluate_set,
)
from jaxrecipes.evaluate.rows import pack_scored
from jaxrecipes.models.decoder import hidden_states, logits
from jaxrecipes.params.layout import plan_layout, to_runtime
from jaxrecipes.params.paths import flatten

from .conftest import loud_params, tiny_config

VOCAB = 97


def documents(count: int = 7, seed: int = 0) -> list[tuple[str, list[int], int]]:
    generator = np.random.default_rng(seed)
    return [
        (
            f"d{i}",
            generator.integers(0, VOCAB, int(size)).tolist(),
            int(generator.integers(1, size)),
        )
        for i, size in enumerate(generator.integers(2, 20, count))
    ]


@partial(jax.jit, static_argnums=0)
def padded_logits(config, params, ids, count):
    places = np.arange(ids.shape[1], dtype=np.int32)[None]
    states = hidden_states(config, params, ids, (places < count).astype(np.int32), places)
    return logits(config, params, states)[0]


def log_probabilities(config, params, tokens) -> np.ndarray:
    ids = np.zeros((1, 20), np.int32)
    ids[0, : len(tokens)] = tokens
    values = np.asarray(padded_logits(config, params, ids, len(tokens)))[: len(tokens)]
    return log_softmax(values.astype(np.float64), axis=-1)


def brute_force(config, base, params, sequences):
    nll, kl, correct = [], [], []
    for _, tokens, first in sequences:
        ours = log_probabilities(config, params, tokens)[first - 1 : -1]
        theirs = log_probabilities(config, base, tokens)[first - 1 : -1]
        targets = np.asarray(tokens[first:])
        nll.append(-ours[np.arange(targets.size), targets].sum())
        correct.append((ours.argmax(-1) == targets).sum())
        kl.append((np.exp(theirs) * (theirs - ours)).sum())
    return np.array(nll), np.array(kl), np.array(correct)


def with_head_of(config, params, base):
    if config.tie_embeddings:
        return {**params, "embedding": base["embedding"]}
    return {**params, "head": base["head"]}


@pytest.mark.parametrize("head_trains", [True, False])
@pytest.mark.parametrize("length", [24, 64])
def test_sums_by_document_equal_brute_force(config, head_trains, length):
    base, params = loud_params(config, 0), loud_params(config, 1)
    if not head_trains:
        params = with_head_of(config, params, base)
    sequences = documents()
    rows = pack_scored(sequences, length=length)
    cache = base_cache(config, base, rows, batch_size=2, chunk=16)
    sums = evaluate_set(config, params, rows, base=cache, batch_size=2, chunk=16)
    nll, kl, correct = brute_force(config, base, params, sequences)
    assert sums.kl is not None and sums.base_nll is not None
    np.testing.assert_allclose(sums.nll, nll, rtol=2e-5)
    np.testing.assert_allclose(sums.kl, kl, rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(sums.correct, correct)
    np.testing.assert_array_equal(sums.tokens, [len(t) - first for _, t, first in sequences])
    base_nll, _, _ = brute_force(config, base, base, sequences)
    np.testing.assert_allclose(sums.base_nll, base_nll, rtol=2e-5)


def test_packing_does_not_change_results(config):
    params = loud_params(config, 1)
    sequences = documents()
    packed = evaluate_set(config, params, pack_scored(sequences, length=64), chunk=32)
    for index, sequence in enumerate(sequences):
        rows = pack_scored([sequence], length=20)
        alone = evaluate_set(config, params, rows, chunk=32)
        np.testing.assert_allclose(packed.nll[index], alone.nll[0], rtol=1e-5)


def test_batch_size_and_chunk_do_not_change_results(config):
    params, base = loud_params(config, 1), loud_params(config, 0)
    rows = pack_scored(documents(), length=24)
    results = [
        evaluate_set(
            config,
            params,
            rows,
            base=base_cache(config, base, rows, batch_size=batch, chunk=chunk),
            batch_size=batch,
            chunk=chunk,
        )
        for batch, chunk in [(1, 7), (3, 16), (16, 512)]
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other.nll, results[0].nll, rtol=1e-5)
        np.testing.assert_allclose(other.kl, results[0].kl, rtol=1e-4, atol=1e-4)


def test_divergence_of_a_model_from_itself_is_zero(config):
    params = loud_params(config, 0)
    rows = pack_scored(documents(), length=32)
    sums = evaluate_set(config, params, rows, base=base_cache(config, params, rows))
    divergence, change = sums.divergence(), sums.change()
    assert divergence is not None and change is not None
    assert abs(divergence.value) < 1e-6
    assert change.value == pytest.approx(0, abs=1e-6)


def test_divergence_is_positive_for_a_small_change(config):
    params = loud_params(config, 0)
    moved = jax.tree.map(lambda leaf: leaf * 1.003, params)
    rows = pack_scored(documents(30), length=32)
    sums = evaluate_set(config, moved, rows, base=base_cache(config, params, rows))
    assert sums.kl is not None
    assert (sums.kl > -1e-4).all() and sums.kl.sum() > 0


def test_both_ways_to_compute_divergence_agree(monkeypatch):
    config = tiny_config()
    base = loud_params(config, 0)
    params = with_head_of(config, loud_params(config, 1), base)
    rows = pack_scored(documents(), length=32)
    cache = base_cache(config, base, rows)
    shortcut = evaluate_set(config, params, rows, base=cache)
    monkeypatch.setattr(likelihood, "same_head", lambda *_: False)
    whole = evaluate_set(config, params, rows, base=cache)
    np.testing.assert_allclose(shortcut.kl, whole.kl, rtol=1e-4, atol=1e-4)


def test_run_time_layout_gives_the_same(config):
    params = loud_params(config, 1)
    layout = plan_layout(config, dict.fromkeys(flatten(params), True))
    rows = pack_scored(documents(), length=32)
    canonical = evaluate_set(config, params, rows)
    runtime = evaluate_set(config, to_runtime(layout, params), rows, layout=layout)
    np.testing.assert_allclose(runtime.nll, canonical.nll, rtol=1e-5)


def test_measures_are_ratios_of_sums():
    config = tiny_config()
    rows = pack_scored(documents(), length=32)
    sums = evaluate_set(
        config, loud_params(config, 1), rows, token_bytes=np.full(VOCAB, 3, np.int32)
    )
    loss = sums.nll.sum() / sums.tokens.sum()
    bits = sums.bits_per_byte()
    assert sums.loss().value == pytest.approx(loss)
    assert sums.perplexity().value == pytest.approx(np.exp(loss))
    assert bits is not None and bits.value == pytest.approx(loss / np.log(2) / 3)
    assert sums.divergence() is None and sums.change() is None


def test_logits_of_all_tokens_never_exist():
    config = tiny_config(vocab_size=4096)
    rows = pack_scored([("d", list(range(1000)), 1)], length=1000)
    sizes = []
    original = head_scores._logits

    def spy(*args):
        result = original(*args)
        sizes.append(result.shape)
        return result

    head_scores._logits = spy
    try:
        base = loud_params(config, 0)
        cache = base_cache(config, base, rows, chunk=48)
        evaluate_set(config, loud_params(config, 1), rows, base=cache, chunk=48)
    finally:
        head_scores._logits = original
    assert sizes and all(shape == (48, 4096) for shape in sizes)


def test_sums_of_the_base_need_no_forward_pass(config):
    base = loud_params(config, 0)
    rows = pack_scored(documents(), length=32)
    cache = base_cache(config, base, rows)
    token_bytes = np.arange(config.vocab_size, dtype=np.int32)
    known = base_sums(rows, cache, token_bytes)
    measured = evaluate_set(config, base, rows, base=cache, token_bytes=token_bytes)
    assert known.document_ids == measured.document_ids
    for name in ("tokens", "nll", "correct", "bytes", "base_nll"):
        np.testing.assert_array_equal(getattr(known, name), getattr(measured, name))
    np.testing.assert_array_equal(known.kl, 0)
    np.testing.assert_allclose(measured.kl, 0, atol=1e-4)


def test_cache_of_other_rows_is_refused(config):
    params = loud_params(config, 0)
    cache = base_cache(config, params, pack_scored(documents(5), length=32))
    with pytest.raises(DataError, match="other rows"):
        evaluate_set(config, params, pack_scored(documents(6), length=32), base=cache)


def test_token_outside_the_vocabulary_is_refused():
    config = tiny_config()
    with pytest.raises(DataError, match="token id 97"):
        evaluate_set(config, loud_params(config, 0), pack_scored([("d", [1, 97], 1)], length=8))


def test_rows_without_a_target_are_refused():
    config = tiny_config()
    rows = pack_scored([("d", [1, 2], 1)], length=8)
    rows.loss_mask[:] = False
    with pytest.raises(DataError, match="supervised"):
        evaluate_set(config, loud_params(config, 0), rows)


def test_loss_and_divergence_equal_torch():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    hf = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    config = tiny_config()
    torch.manual_seed(0)
    models = [transformers.LlamaForCausalLM(hf).eval() for _ in range(2)]
    trees = [_canonical(model) for model in models]
    sequences = documents()
    rows = pack_scored(sequences, length=40)
    sums = evaluate_set(config, trees[1], rows, base=base_cache(config, trees[0], rows))
    for index, (_, tokens, first) in enumerate(sequences):
        with torch.no_grad():
            base, ours = (
                model(torch.tensor([tokens])).logits[0, first - 1 : -1].log_softmax(-1)
                for model in models
            )
        nll = torch.nn.functional.nll_loss(ours, torch.tensor(tokens[first:]), reduction="sum")
        kl = torch.nn.functional.kl_div(ours, base, log_target=True, reduction="sum")
        assert sums.kl is not None
        assert sums.nll[index] == pytest.approx(float(nll), rel=1e-4)
        assert sums.kl[index] == pytest.approx(float(kl), rel=1e-3, abs=1e-4)


def _canonical(model):
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    layers = {}
    for index in range(2):
        prefix = f"model.layers.{index}."
        layers[str(index)] = {
            "attention_norm": {"scale": weights[prefix + "input_layernorm.weight"]},
            "mlp_norm": {"scale": weights[prefix + "post_attention_layernorm.weight"]},
            "attention": {
                ours: {"kernel": weights[f"{prefix}self_attn.{theirs}_proj.weight"].T}
                for ours, theirs in zip(["query", "key", "value", "output"], "qkvo", strict=True)
            },
            "mlp": {
                name: {"kernel": weights[f"{prefix}mlp.{name}_proj.weight"].T}
                for name in ("gate", "up", "down")
            },
        }
    return {
        "embedding": {"table": weights["model.embed_tokens.weight"]},
        "layers": layers,
        "final_norm": {"scale": weights["model.norm.weight"]},
    }
