"""The recipe: what a run leaves behind is one adapter, in PEFT and inside of the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxrecipes.checkpoint.huggingface import import_checkpoint
from jaxrecipes.checkpoint.peft import read_adapter
from jaxrecipes.cli import main
from jaxrecipes.config.recipe_options import LoraSection
from jaxrecipes.params.lora_options import AdapterOptions
from jaxrecipes.params.paths import flatten
from jaxrecipes.recipes.lora import adapter_options
from tests.checkpoint.test_parity import our_logits
from tests.experiment.small import small_config, write_config

TOKENS = np.random.default_rng(0).integers(0, 200, (2, 20))


def test_the_section_has_the_options_of_adapters_and_their_defaults() -> None:
    assert adapter_options(LoraSection()) == AdapterOptions()
    no_adapters = {
        *("loraplus_lr_ratio", "loraplus_lr_embedding"),
        *("base_quantization", "double_quantization"),
    }
    options = set(AdapterOptions.__dataclass_fields__)
    assert set(LoraSection.model_fields) - no_adapters == options
    assert adapter_options(LoraSection(rank=5)).alpha == 10


@pytest.mark.slow
@pytest.mark.parametrize("init", ["kaiming", pytest.param("pissa", marks=pytest.mark.long)])
def test_a_run_gives_an_adapter_and_the_merged_model(
    tmp_path: Path,
    init: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    config = small_config(tmp_path / "run")
    del config["block_expansion"]
    lora = {
        "rank": 2,
        "init": init,
        "targets": "all-linear",
        "exclude": ["k_proj"],
        "rank_pattern": {"down_proj": 4},
        "trainable_tokens": [7, 3],
    }
    config.update(recipe="lora", lora=lora)
    path = write_config(tmp_path / "lora.yaml", config)
    assert main(["run", str(path)]) == 0
    final = tmp_path / "run" / "arms" / "lora" / "final"
    summary = json.loads((final.parent / "summary.json").read_text())
    base = import_checkpoint(tmp_path / "run" / "base" / "model")
    loaded = read_adapter(final / "adapter", base.config, base.params)
    # What took a part of the base is written with twice the rank.
    tokens = 2 * base.config.hidden_size
    factor = 1 if init == "kaiming" else 2
    # What is said before training is what trains, to the last value, and names what does not.
    said = {row["modules"]: row for row in summary["adapters"]}
    assert sum(row["parameters"] for row in said.values()) == summary["trained_parameters"]
    assert {name for name, row in said.items() if row["what"] == "unmatched"} == {
        "model.layers.*.self_attn.k_proj"
    }
    assert summary["frozen_parameters"] == sum(leaf.size for leaf in flatten(base.params).values())
    assert "nothing: no target names it" in capsys.readouterr().out
    trained = summary["trained_parameters"] - tokens
    assert loaded.selection.parameters - tokens == factor * trained
    merged = import_checkpoint(final / "model")
    expected = our_logits(merged.config, merged.params, TOKENS)
    before = our_logits(base.config, base.params, TOKENS)
    assert np.max(np.abs(expected - before)) > 1e-3
    found = our_logits(base.config, loaded.params, TOKENS)
    assert np.max(np.abs(found - expected)) < 1e-5


@pytest.mark.long
def test_a_run_beside_a_quantised_base_with_two_rates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    config = small_config(tmp_path / "run")
    del config["block_expansion"]
    lora = {"rank": 2, "base_quantization": "nf4", "loraplus_lr_ratio": 4.0}
    config.update(recipe="lora", lora=lora)
    assert main(["run", str(write_config(tmp_path / "lora.yaml", config))]) == 0
    said = " ".join(capsys.readouterr().out.split())
    final = tmp_path / "run" / "arms" / "lora" / "final"
    summary = json.loads((final.parent / "summary.json").read_text())
    base = import_checkpoint(tmp_path / "run" / "base" / "model")
    leaves = flatten(base.params)
    # Four bits and scales in place of float32, and they still count as the parameters they are.
    assert summary["frozen_parameters"] == sum(leaf.size for leaf in leaves.values())
    kernels = sum(leaf.size for path, leaf in leaves.items() if "layers" in path and "kern" in path)
    whole = 4 * summary["frozen_parameters"]
    assert whole - 3.5 * kernels <= summary["frozen_bytes"] <= whole - 3 * kernels
    assert "quantised kernels that were trained beside" in said and "peak rate" in said
    rate = config["train"]["optimizer"]["learning_rate"]
    rates = {row["leaves"].rpartition("/")[2]: row["rates"] for row in summary["what_trains"]}
    assert rates["lora_a"] == [rate] and rates["lora_b"] == [4 * rate]
    # The merged model is that of the written-out kernels; the adapter is as ever.
    merged = import_checkpoint(final / "model")
    loaded = read_adapter(final / "adapter", base.config, base.params)
    difference = our_logits(merged.config, merged.params, TOKENS) - our_logits(
        base.config, loaded.params, TOKENS
    )
    assert np.max(np.abs(difference)) > 1e-4
