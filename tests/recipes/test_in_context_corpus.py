"""Which executor does the work of in-context pretraining, and that it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxrecipes.checkpoint.random_model import random_encoder
from jaxrecipes.config.recipe_options import InContextPretrainingSection
from jaxrecipes.neighbors.executor import LocalExecutor, Work
from jaxrecipes.recipes import in_context_pretraining as recipe
from jaxrecipes.recipes.in_context_pretraining import OrderedDocuments, order_source
from tests.neighbors.pipeline import make_documents


def ordered(folder: Path, **options: Any) -> OrderedDocuments:
    documents = make_documents(120)
    section = {
        "encoder": "random:tiny-bert",
        "neighbors": 4,
        "partition_documents": 40,
        "duplicates": {"similarity": 0.9999999},
        **options,
    }
    return order_source(
        lambda: documents,
        {"source": "made"},
        InContextPretrainingSection.model_validate(section),
        folder,
        encoder=random_encoder("tiny-bert", seed=0),
        count_tokens=lambda some: (len(one.text) for one in some),
        tokenizer="letters",
        context_length=64,
        compute_dtype="float32",
        seed=0,
        log=lambda _: None,
    )


class Recording(LocalExecutor):
    """Stands for Ray: works here, and keeps what it was asked for."""

    asked: dict[str, Any] = {}
    stages: list[str] = []

    def __init__(self, *, log: Any, **asked: Any) -> None:
        super().__init__(log)
        Recording.asked = asked
        Recording.stages = []

    def run(self, work: Work) -> list[dict[str, Any]]:
        Recording.stages.append(work.name)
        return super().run(work)


def test_ray_does_every_stage_and_the_order_is_the_same(tmp_path, monkeypatch):
    here = ordered(tmp_path / "here")
    monkeypatch.setattr(recipe, "RayExecutor", Recording)
    there = ordered(tmp_path / "there", executor="ray", ray={"cpus": 2, "tpus": 4})
    assert Recording.asked == {"cpus": 2, "tpus": 4, "gpus": 0}
    stages = ["embed", "search", "merge", "pairs of copies", "copies", "divide", "paths"]
    assert set(Recording.stages) == {"devices", *stages}
    np.testing.assert_array_equal(there.order.documents, here.order.documents)
    assert [one.id for one in there.documents] == [one.id for one in here.documents]
    assert there.statistics == here.statistics
    assert here.statistics["duplicates"]["removed"] > 0
    # Names of folders come from what shaped them, which the executor does not.
    folders = [
        sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("here", "there")
    ]
    assert folders[0] == folders[1]


@pytest.mark.parametrize(
    "changed",
    [{"shard_documents": 32}, {"index_documents": 40}, {"partition_documents": None}],
)
def test_sizes_of_pieces_are_read(tmp_path, changed):
    before = {path.name for path in _folders(tmp_path, {})}
    assert {path.name for path in _folders(tmp_path, changed)} > before


def _folders(folder: Path, options: dict[str, Any]) -> list[Path]:
    order = ordered(folder, **options).order
    assert sorted(order.documents.tolist()) == list(range(len(order)))
    return list(folder.iterdir())
