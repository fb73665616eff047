"""The base model of an experiment: found, converted once if it has to be, and read when needed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxrecipes import __version__
from jaxrecipes.checkpoint.gguf import gguf_config, open_reader
from jaxrecipes.checkpoint.huggingface import (
    export_checkpoint,
    import_checkpoint,
    read_model_config,
)
from jaxrecipes.checkpoint.model_config import parse_model_config
from jaxrecipes.checkpoint.random_model import PRESETS, write_random_model
from jaxrecipes.checkpoint.reference import resolve_reference
from jaxrecipes.checkpoint.tokenizer import load_tokenizer, tokenizer_fingerprint
from jaxrecipes.data.chat_template import read_chat_template
from jaxrecipes.durable import hash_file
from jaxrecipes.errors import ConfigError
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.stages import run_stage

RANDOM_PREFIX = "random:"


@dataclass(frozen=True)
class BaseModel:
    """Where the base is, and what identifies it.

    Attributes:
        folder: A Hugging Face folder.
        fingerprint: SHA-256 over the names and bytes of its weights and configuration.
        tokenizer: Its tokenizer.
        tokenizer_fingerprint: SHA-256 of the tokenizer.
        chat_template: Template that replaced the tokenizer's; None where it has its own.
    """

    folder: Path
    fingerprint: str
    tokenizer: Any
    tokenizer_fingerprint: str
    chat_template: str | None = None


def locate_base(
    checkpoint: str,
    revision: str | None,
    output: Path,
    *,
    seed: int,
    console: Console,
    chat_template: str | None = None,
) -> BaseModel:
    """Finds the base; a GGUF file is converted, and a random model drawn, into `output/base`.

    Args:
        checkpoint: The config's `model.checkpoint`.
        revision: Commit, tag or branch of a hub id.
        output: The run folder.
        seed: Seed of a random model.
        console: Where to say what is done.
        chat_template: Path or text of a template that replaces the tokenizer's.

    Returns:
        The base, as a folder.

    Raises:
        CheckpointError: There is no usable checkpoint.
        ConfigError: An unknown random preset, or a template that cannot be read.
    """
    base = _opened(_folder_of(checkpoint, revision, output, seed=seed, console=console))
    if chat_template is None:
        return base
    # Everything that renders a prompt or an example in this run does it with this tokenizer.
    base.tokenizer.chat_template = read_chat_template(chat_template)
    return replace(base, chat_template=base.tokenizer.chat_template)


def _folder_of(
    checkpoint: str, revision: str | None, output: Path, *, seed: int, console: Console
) -> Path:
    if checkpoint.startswith(RANDOM_PREFIX):
        _preset(checkpoint)
        preset = checkpoint.removeprefix(RANDOM_PREFIX)
        folder = run_stage(
            output / "base",
            {"random": preset, "seed": seed, "code": __version__},
            lambda target: write_random_model(target / "model", preset, seed=seed),
        ).folder
        return folder / "model"
    source = resolve_reference(checkpoint, revision=revision)
    if source.is_dir():
        return source

    def convert(target: Path) -> None:
        console.print(f"converting {source.name} …", highlight=False)
        imported = import_checkpoint(source, dtype=np.float32)
        export_checkpoint(
            target / "model",
            imported.config,
            imported.params,
            tokenizer_source=source,
            hf_config=imported.hf_config,
            model_card=f"# Converted from {source.name}\n\nEvery tensor dequantised to float32.\n",
            verify=False,
        )

    inputs = {"gguf": hash_file(source), "code": __version__}
    return run_stage(output / "base", inputs, convert).folder / "model"


def _opened(folder: Path) -> BaseModel:
    # Before the tokenizer: its library reads config.json too, and what it says about a wrong value
    # there reads as if the tokenizer were damaged.
    read_model_config(folder)
    tokenizer = load_tokenizer(folder)
    names = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
    digests = [f"{path.name} {hash_file(path)}" for path in names]
    fingerprint = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return BaseModel(folder, fingerprint, tokenizer, tokenizer_fingerprint(tokenizer))


def peek_model_config(checkpoint: str, revision: str | None) -> ModelConfig:
    """Reads what a checkpoint computes, without its weights.

    Args:
        checkpoint: The config's `model.checkpoint`.
        revision: Commit, tag or branch of a hub id.

    Returns:
        The model's configuration.
    """
    if checkpoint.startswith(RANDOM_PREFIX):
        return _preset(checkpoint)
    source = resolve_reference(checkpoint, revision=revision)
    if source.is_dir():
        return read_model_config(source)
    return parse_model_config(gguf_config(open_reader(source), source), where=str(source))


def _preset(checkpoint: str) -> ModelConfig:
    preset = checkpoint.removeprefix(RANDOM_PREFIX)
    if preset not in PRESETS:
        raise ConfigError(
            f"model.checkpoint: unknown random model {preset!r}; expected one of "
            f"{', '.join(RANDOM_PREFIX + name for name in PRESETS)}"
        )
    return PRESETS[preset]
