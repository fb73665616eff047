"""Logits and token ids against transformers, for every family and for real weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrecipes.checkpoint.huggingface import export_checkpoint, import_checkpoint
from jaxrecipes.checkpoint.tokenizer import load_tokenizer
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import hidden_states, logits
from jaxrecipes.params.expansion import Expansion, expand_blocks
from jaxrecipes.params.paths import Tree, flatten, unflatten

FAMILIES = ("gemma2", "gemma3", "llama", "llama3", "mistral", "qwen2", "qwen3")


def test_every_tiny_checkpoint_is_compared(tiny_configs: dict[str, dict]) -> None:
    assert set(FAMILIES) == set(tiny_configs)


def our_logits(config: ModelConfig, params: Tree, token_ids: np.ndarray) -> np.ndarray:
    positions = np.broadcast_to(np.arange(token_ids.shape[1], dtype=np.int32), token_ids.shape)
    states = hidden_states(
        config,
        params,
        jnp.asarray(token_ids, jnp.int32),
        jnp.ones(token_ids.shape, jnp.int32),
        jnp.asarray(positions),
        compute_dtype=jnp.float32,
    )
    return np.asarray(logits(config, params, states))


def their_logits(folder: Path, token_ids: np.ndarray) -> np.ndarray:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.tensor(token_ids, dtype=torch.long)).logits.numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_match_transformers(family: str, tiny_checkpoint: Callable[[str], Path]) -> None:
    folder = tiny_checkpoint(family)
    token_ids = np.random.default_rng(0).integers(0, 256, (2, 40))
    theirs = their_logits(folder, token_ids)
    imported = import_checkpoint(folder)
    ours = our_logits(imported.config, imported.params, token_ids)
    assert np.max(np.abs(ours - theirs)) < 1e-4
    # The tiny weights are large enough for the comparison to mean something.
    assert np.std(theirs) > 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_export(
    family: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    imported = import_checkpoint(tiny_checkpoint(family))
    folder = export_checkpoint(
        tmp_path / "exported",
        imported.config,
        imported.params,
        tokenizer_source=imported.source,
        hf_config=None,
        model_card="# tiny\n",
        max_shard_bytes=40_000,
    )
    assert (folder / "model.safetensors.index.json").exists()
    token_ids = np.random.default_rng(1).integers(0, 256, (1, 33))
    expected = our_logits(imported.config, imported.params, token_ids)
    assert np.max(np.abs(their_logits(folder, token_ids) - expected)) < 1e-4


def expanded_and_exported(source: Path, folder: Path, *, trained: bool) -> tuple[Expansion, Path]:
    """Expands a checkpoint by two blocks or more, moves them as training would, and exports it."""
    imported = import_checkpoint(source, dtype=np.float32)
    count = max(2, imported.config.num_layers // 6)
    expansion = expand_blocks(imported.config, imported.params, new_blocks=count)
    if trained:
        generator = np.random.default_rng(2)
        new = tuple(f"layers/{index}/" for index in expansion.positions)
        leaves = {
            path: leaf + 0.02 * generator.standard_normal(leaf.shape, np.float32)
            if path.startswith(new)
            else leaf
            for path, leaf in flatten(expansion.params).items()
        }
        expansion = replace(expansion, params=unflatten(leaves))
    export_checkpoint(
        folder,
        expansion.config,
        expansion.params,
        tokenizer_source=imported.source,
        hf_config=imported.hf_config,
        model_card="# expanded\n",
    )
    return expansion, folder


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_an_expanded_model(
    family: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tiny_checkpoint(family)
    token_ids = np.random.default_rng(1).integers(0, 256, (1, 33))
    _, fresh = expanded_and_exported(source, tmp_path / "fresh", trained=False)
    base = their_logits(source, token_ids)
    assert np.max(np.abs(their_logits(fresh, token_ids) - base)) < 1e-5
    expansion, moved = expanded_and_exported(source, tmp_path / "moved", trained=True)
    theirs = their_logits(moved, token_ids)
    ours = our_logits(expansion.config, expansion.params, token_ids)
    assert np.max(np.abs(theirs - ours)) < 1e-4
    assert np.max(np.abs(theirs - base)) > 1e-2


@pytest.mark.long
def test_transformers_reads_an_expanded_smollm2(smollm2_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(smollm2_folder)
    token_ids = np.asarray(tokenizer("Water boils earlier on high mountains. " * 4)["input_ids"])
    expansion, folder = expanded_and_exported(smollm2_folder, tmp_path / "model", trained=True)
    assert expansion.config.num_layers == 35
    theirs = their_logits(folder, token_ids[None])
    ours = our_logits(expansion.config, expansion.params, token_ids[None])
    assert np.max(np.abs(ours - theirs)) < 1e-4 * max(1.0, np.max(np.abs(theirs)))


@pytest.mark.slow
def test_smollm2_on_real_text(smollm2_folder: Path, shared_data: Path) -> None:
    import json

    rows = [
        json.loads(line)["text"]
        for line in next(shared_data.glob("wikitext2/*.jsonl")).open(encoding="utf-8")
    ]
    text = max(rows[:50], key=len)
    tokenizer = load_tokenizer(smollm2_folder)
    token_ids = np.asarray(tokenizer(text)["input_ids"][:192])[None]
    theirs = their_logits(smollm2_folder, token_ids)
    imported = import_checkpoint(smollm2_folder)
    ours = our_logits(imported.config, imported.params, token_ids)
    assert np.max(np.abs(ours - theirs)) < 1e-4 * max(1.0, np.max(np.abs(theirs)))


@pytest.mark.slow
def test_gemma3_on_real_weights(gemma3_folder: Path) -> None:
    tokenizer = load_tokenizer(gemma3_folder)
    token_ids = np.asarray(tokenizer("The Eiffel Tower is in Paris, and " * 4)["input_ids"])[None]
    theirs = their_logits(gemma3_folder, token_ids)
    imported = import_checkpoint(gemma3_folder, dtype=np.float32)
    ours = our_logits(imported.config, imported.params, token_ids)
    assert np.max(np.abs(ours - theirs)) < 1e-4 * max(1.0, np.max(np.abs(theirs)))
