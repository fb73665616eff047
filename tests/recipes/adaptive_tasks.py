"""A small task, a pool and a config for tests of the adaptive recipes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

from jaxrecipes.config.yaml_text import ConfigDumper

WORDS = {
    "animal": ("cat", "dog", "owl", "fur", "paw", "tail"),
    "ship": ("mast", "sail", "keel", "deck", "crew", "port"),
}
FILLER = ("the", "a", "of", "and", "on", "with")


def sentence(label: str, rng: np.random.Generator) -> str:
    """Words of a class among words of none."""
    words = [*rng.choice(WORDS[label], 3), *rng.choice(FILLER, 3)]
    return " ".join(rng.permutation(words))


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_task(folder: Path, *, seed: int = 0, pool: int = 60) -> None:
    """Writes train, dev and test rows, a pool, and general text; no text is there twice."""
    rng = np.random.default_rng(seed)
    seen: set[str] = set()

    def fresh(label: str) -> str:
        while True:
            text = sentence(label, rng)
            if text not in seen:
                seen.add(text)
                return text

    labels = list(WORDS)
    for name, size in (("train", 12), ("dev", 8), ("test", 10)):
        rows = [{"text": fresh(labels[n % 2]), "label": labels[n % 2]} for n in range(size)]
        write_rows(folder / f"{name}.jsonl", rows)
    write_rows(folder / "pool.jsonl", [{"text": fresh(labels[n % 2])} for n in range(pool)])
    general = [{"text": f"general text number {n} says nothing"} for n in range(20)]
    write_rows(folder / "general.jsonl", general)


def config_of(folder: Path, recipe: str = "tapt", **changes) -> dict:
    """A config on the task of a folder; `changes` replace its top level keys, None removes one."""
    first = {
        "kind": "pretrain",
        "name": "first",
        "read": ["task"],
        "steps": 4,
        "batch_size": 4,
        "optimizer": {"learning_rate": 1e-3},
    }
    tuned = {
        "kind": "finetune",
        "epochs": 2,
        "batch_size": 4,
        "optimizer": {"learning_rate": 1e-3},
    }
    config = {
        "version": 1,
        "recipe": recipe,
        "seeds": 2,
        "output": str(folder / "run"),
        "model": {"checkpoint": "random:tiny-masked-bert"},
        "task": {
            "train": {"source": str(folder / "train.jsonl")},
            "dev": {"source": str(folder / "dev.jsonl")},
            "test": {"source": str(folder / "test.jsonl")},
            "max_tokens": 32,
        },
        "phases": [first, tuned],
        "checkpoint": {"every_steps": 2},
    }
    return {key: value for key, value in (config | changes).items() if value is not None}


def write_config(folder: Path, config: dict, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.dump(config, Dumper=ConfigDumper, sort_keys=False))
    return path
