"""LoRA+ moves every leaf exactly as PEFT's optimizer does."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pydantic import ValidationError

from jaxrecipes.checkpoint.peft_names import decoder_modules
from jaxrecipes.config.recipe_options import LoraSection
from jaxrecipes.config.train import RateRule
from jaxrecipes.errors import ConfigError
from jaxrecipes.params.layout import plan_layout, to_canonical, to_runtime
from jaxrecipes.params.lora import adapter_rules, build_adapters
from jaxrecipes.params.lora_targets import select_modules
from jaxrecipes.params.partition import combine, partition
from jaxrecipes.params.paths import flatten, unflatten
from jaxrecipes.params.rules import label
from jaxrecipes.recipes.lora import adapter_options, rate_rules
from jaxrecipes.train.optimizer import OptimizerSettings, make_optimizer
from tests.tiny import tiny_config, tiny_params

RATE, DECAY, STEPS = 1e-2, 0.1, 3


def peft_names(selection: Any) -> dict[str, str]:
    """Canonical path -> name of PEFT's parameter, for all that trains."""
    names = {}
    for adapter in selection.adapters:
        module, start = adapter.module, f"base_model.model.{adapter.module.name}"
        ends = {"lora_a": "lora_A.default.weight", "lora_b": "lora_B.default.weight"}
        if module.kind == "embedding":
            ends = {"lora_a": "lora_embedding_A.default", "lora_b": "lora_embedding_B.default"}
        if selection.use_dora:
            ends["lora_magnitude"] = "lora_magnitude_vector.default.weight"
        names |= {f"{module.path}/{ours}": f"{start}.{theirs}" for ours, theirs in ends.items()}
    for module in selection.saved:
        (path,) = module.leaves
        names[path] = f"base_model.model.{module.name}.modules_to_save.default.weight"
    return names


def peft_moves(
    section: LoraSection, leaves: dict[str, Any], gradients: list[dict[str, Any]], names: Any
) -> dict[str, np.ndarray]:
    """What PEFT's optimizer makes of the leaves."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    optimizers = pytest.importorskip("peft.optimizers")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    settings = peft.LoraConfig(
        r=section.rank,
        use_dora=section.use_dora,
        target_modules=[*section.targets, *(["embed_tokens"] if section.embeddings else [])],
        modules_to_save=section.modules_to_save or None,
    )
    model = peft.get_peft_model(transformers.LlamaForCausalLM(config), settings)
    rates = {"loraplus_lr_ratio": section.loraplus_lr_ratio}
    if section.loraplus_lr_embedding is not None:
        rates["loraplus_lr_embedding"] = section.loraplus_lr_embedding
    optimizer = optimizers.create_loraplus_optimizer(
        model,
        torch.optim.AdamW,
        lr=RATE,
        loraplus_weight_decay=DECAY,
        betas=(0.9, 0.95),
        eps=1e-8,
        **rates,
    )
    parameters = {name: leaf for name, leaf in model.named_parameters() if leaf.requires_grad}
    assert set(parameters) == set(names.values())
    for path, name in names.items():
        parameters[name].data = torch.tensor(np.asarray(leaves[path]).T)
    for gradient in gradients:
        for path, name in names.items():
            parameters[name].grad = torch.tensor(gradient[path].T)
        optimizer.step()
    return {path: parameters[name].detach().numpy().T for path, name in names.items()}


@pytest.mark.parametrize(
    "section",
    [
        LoraSection(rank=4, targets=["q_proj", "down_proj"], loraplus_lr_ratio=16.0),
        LoraSection(
            rank=4,
            targets=["q_proj", "up_proj"],
            use_dora=True,
            modules_to_save=["norm"],
            loraplus_lr_ratio=4.0,
        ),
        LoraSection(rank=4, targets=["v_proj"], embeddings=True, loraplus_lr_ratio=8.0),
        LoraSection(
            rank=4,
            targets=["v_proj"],
            embeddings=True,
            loraplus_lr_ratio=8.0,
            loraplus_lr_embedding=0.02,
        ),
    ],
    ids=["plain", "dora_and_norms", "embeddings", "embeddings_at_a_rate"],
)
def test_updates_are_those_of_pefts_optimizer(section: LoraSection) -> None:
    config = tiny_config("untied")
    options = adapter_options(section)
    selection = select_modules(options, decoder_modules(config))
    made = build_adapters(tiny_params(config), options, selection, jax.random.key(0))
    params = combine(made.adapters, made.base)
    trains = label(params, adapter_rules(selection))
    rules = [*rate_rules(section, RATE), (".*", 1.0)]
    rates = {path: rate for path, rate in label(params, rules).items() if trains[path]}
    trainable, _ = partition(params, lambda path: trains[path])
    generator = np.random.default_rng(0)
    leaves = {
        path: generator.standard_normal(leaf.shape).astype(np.float32)
        for path, leaf in flatten(trainable).items()
    }
    gradients = [
        {p: generator.standard_normal(x.shape).astype(np.float32) for p, x in leaves.items()}
        for _ in range(STEPS)
    ]
    layout = plan_layout(config, {path: (trains[path], rates.get(path)) for path in trains})
    settings = OptimizerSettings(
        total_steps=STEPS,
        learning_rate=RATE,
        schedule="constant",
        weight_decay=DECAY,
        clip_norm=None,
    )
    optimizer = make_optimizer(
        settings, layout=layout, decays=dict.fromkeys(leaves, True), rates=rates
    )
    current: Any = to_runtime(layout, unflatten(leaves))
    current = jax.tree.map(jnp.asarray, current)
    state = optimizer.init(current)
    for gradient in gradients:
        updates, state = optimizer.update(to_runtime(layout, unflatten(gradient)), state, current)
        current = optax.apply_updates(current, updates)
    found = flatten(to_canonical(layout, current))
    expected = peft_moves(section, leaves, gradients, peft_names(selection))
    assert set(found) == set(expected)
    for path, leaf in found.items():
        change, wanted = np.asarray(leaf) - leaves[path], expected[path] - leaves[path]
        # An update of 1e-6 is below what float32 resolves beside values near 1.
        np.testing.assert_allclose(change, wanted, rtol=1e-3, atol=1e-6, err_msg=path)
        assert np.abs(change).max() > 0


def test_a_rate_that_nothing_learns_with_is_refused() -> None:
    for section in (
        LoraSection(embeddings=True, loraplus_lr_embedding=1e-5),
        LoraSection(loraplus_lr_ratio=2.0, loraplus_lr_embedding=1e-5),
    ):
        with pytest.raises(ConfigError, match="loraplus_lr_embedding"):
            rate_rules(section, RATE)
    assert rate_rules(LoraSection(), RATE) == []
    with pytest.raises(ValidationError):
        RateRule(pattern=".*", factor=0.0)
