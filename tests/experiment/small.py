"""The smallest experiment that has every part: one arm, six steps of a random model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content }}"
    "{{ eos_token if m.role == 'assistant' }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


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


def chat_config(folder: Path, answers: Sequence[str], **supervise: Any) -> dict[str, Any]:
    """Returns the plain data of full fine-tuning on chats with these answers."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": answer},
            ]
        }
        for n, answer in enumerate(answers)
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "template.jinja").write_text(CHAT_TEMPLATE)
    config = small_config(folder / "out")
    del config["block_expansion"]
    config |= {"recipe": "full"}
    config["data"] |= {
        "learn": [{"source": str(folder / "chats.jsonl")}],
        "supervise": {"chat_template": str(folder / "template.jinja"), **supervise},
    }
    config["train"] |= {"steps": 2}
    return config


def write_config(path: Path, data: Any) -> Path:
    """Writes plain data as YAML."""
    # What occurs twice would become an alias, which configs must not have.
    plain = json.loads(json.dumps(data))
    path.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    return path
