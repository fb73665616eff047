"""Tiny models of every kind, without files: for tests of surgery and training."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from jaxrecipes.models.config import FULL_ATTENTION, SLIDING_ATTENTION, ModelConfig, RopeConfig
from jaxrecipes.models.decoder import init_params
from jaxrecipes.params.layout import plan_layout, to_runtime
from jaxrecipes.params.partition import partition
from jaxrecipes.params.rules import label
from jaxrecipes.train.optimizer import OptimizerSettings, learning_rate_schedule, make_optimizer
from jaxrecipes.train.state import create_state
from jaxrecipes.train.step import make_train_step

KINDS = ("llama", "untied", "biased", "sandwich", "sliding")
# For tests that compile long: the plainest and the one with most features; the others are `long`.
TWO_KINDS = [
    kind if kind in ("llama", "sandwich") else pytest.param(kind, marks=pytest.mark.long)
    for kind in KINDS
]


def tiny_config(kind: str = "llama", num_layers: int = 4, **changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "family": "llama",
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": num_layers,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "layer_types": (FULL_ATTENTION,) * num_layers,
        "query_scale": 8**-0.5,
    }
    if kind == "untied":
        fields.update(tie_embeddings=False)
    elif kind == "biased":
        fields.update(attention_bias=True, attention_output_bias=True, mlp_bias=True)
    elif kind in ("sandwich", "sliding"):
        local = [SLIDING_ATTENTION, FULL_ATTENTION]
        fields.update(
            layer_types=tuple(local[index % 2] for index in range(num_layers)),
            sliding_window=5,
            rope_local=RopeConfig(1000.0),
            query_key_norm=True,
        )
        if kind == "sandwich":
            fields.update(
                family="gemma2",
                sandwich_norms=True,
                norm_plus_one=True,
                activation="gelu_tanh",
                attention_softcap=5.0,
                final_softcap=7.0,
                embedding_scale=32**0.5,
            )
    return ModelConfig(**{**fields, **changes})


def tiny_params(config: ModelConfig, seed: int = 0) -> dict[str, Any]:
    """Random everywhere, norms and biases too, so that nothing can be dropped unseen."""
    leaves, structure = _tiny_leaves(config, seed)
    return jax.tree.unflatten(structure, leaves)


@cache  # a fifth of the time of some tests is initialisation, one operation after the other
def _tiny_leaves(config: ModelConfig, seed: int) -> tuple[list[np.ndarray], Any]:
    leaves, structure = jax.tree.flatten(init_params(config, jax.random.key(seed)))
    generator = np.random.default_rng(seed)
    noisy = [
        np.asarray(leaf) + 0.2 * generator.standard_normal(leaf.shape).astype(np.float32)
        for leaf in leaves
    ]
    for leaf in noisy:
        leaf.setflags(write=False)  # they are shared
    return noisy, structure


def packed_batch(config: ModelConfig, rows: int = 4, length: int = 16, seed: int = 0) -> dict:
    """Random documents of random lengths, padded at the end, some tokens not supervised."""
    generator = np.random.default_rng(seed)
    batch = {
        key: np.zeros((rows, length), np.int32) for key in ("token_ids", "segment_ids", "positions")
    }
    batch["loss_mask"] = np.zeros((rows, length), bool)
    for row in range(rows):
        start, segment = 0, 1
        while start < length - 2:
            size = min(int(generator.integers(2, length)), length - start)
            span = slice(start, start + size)
            batch["token_ids"][row, span] = generator.integers(0, config.vocab_size, size)
            batch["segment_ids"][row, span] = segment
            batch["positions"][row, span] = np.arange(size)
            batch["loss_mask"][row, span] = generator.random(size) < 0.8
            start, segment = start + size, segment + 1
    batch["loss_mask"][:, 1] = True
    return batch


def trainer(
    config: ModelConfig,
    params: Any,
    rules: Any,
    *,
    layout: Any = "planned",
    optimizer: str = "adamw",
    window: int = 8,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Any, Any, Any, Any]:
    """Returns (jitted step, state, frozen, layout) of a small run."""
    trains = label(params, rules)
    plan = plan_layout(config, trains) if layout == "planned" else layout
    trainable, frozen = partition(params, lambda path: trains[path])
    choice = OptimizerSettings(
        **{
            "total_steps": 50,
            "name": optimizer,
            "learning_rate": 1e-2,
            "warmup_steps": 2,
            **(settings or {}),
        }
    )
    decays = {path: path.endswith("kernel") for path, wanted in trains.items() if wanted}
    transformation = make_optimizer(choice, layout=plan, decays=decays)
    state = create_state(to_runtime(plan, trainable), transformation, spike_window=window)
    step = make_train_step(
        config, transformation, learning_rate_schedule(choice), layout=plan, **options
    )
    return jax.jit(step), state, to_runtime(plan, frozen), plan
