"""The modules of a Hugging Face decoder, as PEFT sees them, from the one table of tensor names."""

from __future__ import annotations

import math

from jaxrecipes.checkpoint.names import tensor_names
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.params.lora_targets import Module

# PEFT wraps the model: `PeftModel.base_model.model` is the one that was given.
PREFIX = "base_model.model."
HEAD = "lm_head"


def decoder_modules(config: ModelConfig) -> list[Module]:
    """Lists the modules of a causal language model, containers after what they contain.

    Args:
        config: The model.

    Returns:
        Every module with weights, the tied head and every module that contains such. Modules
        without weights (activations, rotary embeddings) are not listed.
    """
    leaves: dict[str, dict[str, int]] = {}
    paths: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path, row in tensor_names(config).items():
        name = row.huggingface.rpartition(".")[0]
        leaves.setdefault(name, {})[path] = math.prod(row.shape)
        paths[name] = path.rpartition("/")[0]
        if path.endswith(("/kernel", "/table")):
            shapes[name] = row.shape
    if config.tie_embeddings:
        table = leaves["model.embed_tokens"]
        leaves[HEAD], paths[HEAD] = table, "embedding"
        shapes[HEAD] = shapes["model.embed_tokens"][::-1]
    modules = []
    for name, path in paths.items():
        inputs, outputs = shapes.get(name, (0, 0))
        kind = "linear" if name in shapes else "other"
        if name == HEAD:
            kind = "head"
        elif path == "embedding":
            kind = "embedding"
        modules.append(Module(name, kind, path, inputs, outputs, leaves[name]))
    containers: dict[str, dict[str, int]] = {}
    for name in paths:
        parts = name.split(".")
        for length in range(len(parts) - 1, 0, -1):
            containers.setdefault(".".join(parts[:length]), {}).update(leaves[name])
    modules += [Module(name, "other", "", 0, 0, inside) for name, inside in containers.items()]
    return modules
