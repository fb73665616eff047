"""Several adapters in one forward pass measure what each measures alone."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from jaxrecipes.checkpoint.peft_names import decoder_modules
from jaxrecipes.errors import ConfigError
from jaxrecipes.evaluate.adapters import align_adapters, evaluate_adapters
from jaxrecipes.evaluate.likelihood import evaluate_set
from jaxrecipes.evaluate.rows import pack_scored
from jaxrecipes.params.lora import build_adapters, split_adapters
from jaxrecipes.params.lora_options import AdapterOptions
from jaxrecipes.params.lora_targets import select_modules
from jaxrecipes.params.partition import combine
from jaxrecipes.params.paths import flatten, unflatten
from tests.tiny import tiny_config, tiny_params

SETS = {
    "ranks_and_targets": [
        AdapterOptions(rank=2, targets=("q_proj", "down_proj")),
        AdapterOptions(rank=5, alpha=3, targets=("v_proj", "down_proj")),
        AdapterOptions(rank=3, targets=("q_proj",), rank_pattern={r"layers\.2\..*": 4}),
        AdapterOptions(rank=1, targets=("up_proj",), embeddings=True),
    ],
    "dora": [
        AdapterOptions(rank=2, targets=("k_proj",), use_dora=True),
        AdapterOptions(rank=4, targets=("k_proj",), use_dora=True),
    ],
    "tokens": [
        AdapterOptions(rank=2, targets=("k_proj",), trainable_tokens=(3, 7)),
        AdapterOptions(rank=2, targets=("o_proj",), trainable_tokens=(5, 1)),
    ],
}


def adapter(config: Any, base: Any, options: AdapterOptions, seed: int) -> Any:
    selection = select_modules(options, decoder_modules(config))
    made = build_adapters(base, options, selection, jax.random.key(seed))
    generator = np.random.default_rng(seed)
    return unflatten(
        {
            path: leaf
            if path.endswith(("lora_scale", "token_ids"))
            else np.asarray(leaf) + 0.3 * generator.standard_normal(leaf.shape).astype(np.float32)
            for path, leaf in flatten(made.adapters).items()
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_equals_one_by_one(name: str) -> None:
    config = tiny_config(num_layers=3)
    base = tiny_params(config)
    adapters = {
        str(seed): adapter(config, base, options, seed) for seed, options in enumerate(SETS[name])
    }
    generator = np.random.default_rng(0)
    rows = pack_scored(
        [(f"d{i}", generator.integers(0, 61, 5 + 3 * i).tolist(), 1) for i in range(6)], length=24
    )
    together = evaluate_adapters(config, base, adapters, rows, batch_size=3)
    losses = []
    for key, tree in adapters.items():
        alone = evaluate_set(config, combine(tree, base), rows)
        np.testing.assert_allclose(together[key].nll, alone.nll, rtol=2e-5)
        np.testing.assert_array_equal(together[key].correct, alone.correct)
        losses.append(alone.nll)
    for first, second in zip(losses[:-1], losses[1:], strict=True):
        assert np.abs(first - second).max() > 1e-2  # the adapters do differ


def test_what_cannot_be_aligned_is_refused() -> None:
    config = tiny_config(num_layers=2)
    base = tiny_params(config)
    dora = adapter(config, base, AdapterOptions(targets=("k_proj",), use_dora=True), 0)
    plain = adapter(config, base, AdapterOptions(targets=("k_proj",)), 0)
    with pytest.raises(ConfigError, match=r"adapter b: .*lora_magnitude is missing"):
        align_adapters({"a": dora, "b": plain})
    with pytest.raises(ConfigError, match="final_norm/scale is no leaf of an adapter"):
        align_adapters({"a": combine(plain, {"final_norm": base["final_norm"]})})
    with pytest.raises(ConfigError, match="at least one"):
        align_adapters({})
    assert set(flatten(split_adapters(combine(plain, base))[0])) == set(flatten(plain))
