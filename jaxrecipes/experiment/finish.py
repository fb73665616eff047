"""From trained leaves to files: the model of a finished arm, its adapter, its new blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console

from jaxrecipes.checkpoint.delta import DELTA_FILE, write_delta
from jaxrecipes.checkpoint.huggingface import Imported, export_checkpoint, import_checkpoint
from jaxrecipes.checkpoint.peft import write_adapter
from jaxrecipes.config import Arm, Config
from jaxrecipes.experiment.arm import TrainedArm
from jaxrecipes.experiment.base_model import BaseModel
from jaxrecipes.experiment.program import apply_recipe
from jaxrecipes.params.lora import describe_drift, merge_adapters
from jaxrecipes.params.paths import Tree, flatten, unflatten
from jaxrecipes.params.quantize import dequantize_tree, describe_rounding
from jaxrecipes.params.surgery import Surgery

MODEL, ADAPTER = "model", "adapter"


def write_model(
    target: Path, arm: Arm, trained: TrainedArm, base: BaseModel, card: str, console: Console
) -> None:
    """Writes what an arm ends with, read back and compared.

    Args:
        target: An empty folder; gets `model`, and where the recipe has them `adapter` and the new
            blocks.
        arm: The arm.
        trained: From `train_arm`.
        base: The model that it was trained from.
        card: README.md of the model.
        console: Where to say what merging and rounding changed.

    Raises:
        CheckpointError: The written model is not the trained one.
    """
    imported = import_checkpoint(base.folder)
    surgery = finished_model(arm.config, imported, trained.trained)
    model = surgery.config
    params, rounding = dequantize_tree(surgery.params, imported.params)
    if rounding is not None:
        console.print(f"{arm.name}: {describe_rounding(rounding)}", highlight=False)
    if surgery.adapters is not None:
        write_adapter(
            target / ADAPTER,
            model,
            params,
            surgery.adapters.options,
            initial=surgery.adapters.initial,
            base_model=arm.config.model.checkpoint,
        )
        merged = merge_adapters(model, params)
        model, params = merged.config, merged.params
        console.print(f"{arm.name}: {describe_drift(merged.drift)}", highlight=False)
    export_checkpoint(
        target / MODEL,
        model,
        params,
        tokenizer_source=base.folder,
        hf_config=imported.hf_config,
        model_card=card,
        chat_template=base.chat_template,
    )
    if model.new_blocks:
        write_delta(target / DELTA_FILE, model, params)


def finished_model(config: Config, base: Imported, trained: Tree) -> Surgery:
    """Puts trained leaves into the tree that the recipe makes of the base.

    Frozen leaves are the base's own, bit for bit, whatever type they had during training; trained
    ones are rounded to the type that the base stores them in.

    Args:
        config: The arm's config.
        base: The base model as it is stored.
        trained: The leaves that trained.

    Returns:
        The finished model, adapters apart.
    """
    surgery = apply_recipe(config, base, key=jax.random.key(config.seed))
    leaves = flatten(surgery.params)
    for path, leaf in flatten(trained).items():
        leaves[path] = jnp.asarray(leaf, leaves[path].dtype)
    return replace(surgery, params=unflatten(leaves))
