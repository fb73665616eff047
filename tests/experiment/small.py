"""The smallest experiment that has every part: one arm, six steps of a random model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def small_config(output: Path) -> dict[str, Any]:
    """Returns the plain data of a config that runs in seconds."""
    return {
        "version": 1,
        "recipe": "block_expansion",
        "seed": 0,
        "output": str(output),
        "model": {"checkpoint": "random:tiny-llama", "compute_dtype": "float32"},
        "block_expansion": {"new_blocks": 2},
        "data": {
            "length": 128,
            "held_out": 0.2,
            "learn": [{"source": "topics", "limit_documents": 12}],
            "keep": {"limit_prompts": 2, "max_new_tokens": 4},
        },
        "train": {
            "steps": 6,
            "batch_size": 4,
            "optimizer": {"learning_rate": 1e-3},
            "checkpoint": {"every_steps": 2},
        },
        "evaluate": {"points": 1, "learn_documents": 2, "choices": None, "last_words": None},
    }


def write_config(path: Path, data: Any) -> Path:
    """Writes plain data as YAML."""
    # What occurs twice would become an alias, which configs must not have.
    plain = json.loads(json.dumps(data))
    path.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    return path
