from __future__ import annotations

import jax
import pytest

from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import init_params


def tiny_config(**changes) -> ModelConfig:
    fields = {
        "family": "llama",
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "layer_types": ("full_attention",) * 2,
        "query_scale": 8**-0.5,
    }
    return ModelConfig(**{**fields, **changes})


def loud_params(config: ModelConfig, seed: int):
    # Ten times the usual scale, so that distributions differ visibly between seeds.
    return jax.tree.map(
        lambda leaf: leaf * 10 if leaf.ndim == 2 else leaf,
        init_params(config, jax.random.key(seed)),
    )


@pytest.fixture(params=["tied", "untied", "softcap"])
def config(request) -> ModelConfig:
    return tiny_config(
        tie_embeddings=request.param != "untied",
        final_softcap=5.0 if request.param == "softcap" else None,
    )
