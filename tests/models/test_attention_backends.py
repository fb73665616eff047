"""Which backend a run gets, and why."""

from dataclasses import replace

import numpy as np
import pytest

from jaxrecipes.errors import ConfigError
from jaxrecipes.models.attention_backends import BACKENDS, choose_backend
from jaxrecipes.models.config import ModelConfig

LLAMA = ModelConfig(
    family="llama",
    vocab_size=272,
    hidden_size=32,
    intermediate_size=48,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    max_position_embeddings=128,
    layer_types=("full_attention",),
    query_scale=0.125,
)
SOFT_CAPPED = replace(LLAMA, family="gemma2", attention_softcap=50.0)
WIDE = replace(LLAMA, family="gemma3", head_dim=256)


@pytest.mark.parametrize(
    ("platform", "config", "dtype", "capability", "backend", "reason"),
    [
        ("tpu", LLAMA, "bfloat16", None, "splash", "the kernel for TPU"),
        ("tpu", SOFT_CAPPED, "float32", None, "splash", "the kernel for TPU"),
        ("gpu", LLAMA, "bfloat16", None, "cudnn", "the kernel for GPU"),
        ("gpu", LLAMA, "float16", 8.0, "cudnn", "the kernel for GPU"),
        ("gpu", LLAMA, "float32", 9.0, "reference", "not float32"),
        ("gpu", SOFT_CAPPED, "bfloat16", 9.0, "reference", "soft-caps"),
        ("gpu", WIDE, "bfloat16", 9.0, "cudnn", "the kernel for GPU"),
        ("gpu", WIDE, "bfloat16", 8.9, "reference", "at most 128 wide"),
        ("cpu", LLAMA, "bfloat16", None, "reference", "no attention kernel for CPU"),
    ],
)
def test_auto_takes_the_platforms_kernel_where_it_can(
    platform, config, dtype, capability, backend, reason
):
    chosen, why = choose_backend("auto", platform, config, dtype, compute_capability=capability)
    assert chosen == backend
    assert reason in why
    assert "\n" not in why


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_the_reference_can_be_had_everywhere(platform):
    asked = choose_backend("reference", platform, SOFT_CAPPED, "float32")
    assert asked == ("reference", "model.attention asks for it")


@pytest.mark.parametrize(
    ("requested", "platform", "config", "dtype", "message"),
    [
        ("flash", "cpu", LLAMA, "bfloat16", "'flash' is no attention backend; expected auto, ref"),
        ("splash", "cpu", LLAMA, "bfloat16", "splash runs on TPU, and this run is on CPU"),
        ("splash", "gpu", LLAMA, "bfloat16", "splash runs on TPU, and this run is on GPU"),
        ("cudnn", "tpu", LLAMA, "bfloat16", "cudnn runs on GPU, and this run is on TPU"),
        ("cudnn", "gpu", SOFT_CAPPED, "bfloat16", "soft-caps.*model.attention: reference"),
        ("cudnn", "gpu", LLAMA, "float32", "not float32; use model.compute_dtype: bfloat16"),
    ],
)
def test_what_cannot_work_is_refused_by_name(requested, platform, config, dtype, message):
    with pytest.raises(ConfigError, match=f"^model.attention: .*{message}"):
        choose_backend(requested, platform, config, dtype)


def test_every_backend_can_be_called_like_the_reference():
    import inspect

    # Kernels are for decoders, which are always causal.
    wanted = set(inspect.signature(BACKENDS["reference"]).parameters) - {"causal"}
    for name, function in BACKENDS.items():
        assert wanted <= set(inspect.signature(function).parameters), name


def test_the_names_are_those_of_the_config():
    from typing import get_args

    from jaxrecipes.config.experiment import ModelSection

    allowed = get_args(ModelSection.model_fields["attention"].annotation)
    assert np.unique(allowed).tolist() == sorted({"auto", *BACKENDS})
