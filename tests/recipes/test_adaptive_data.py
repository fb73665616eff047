"""What phases read: every text of theirs and no other, and no text of dev and test rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from jaxrecipes.config import AdaptiveConfig, adaptive_arms, load_config
from jaxrecipes.errors import DataError
from jaxrecipes.experiment.adaptive_data import AdaptiveData, read_adaptive_data
from jaxrecipes.experiment.task_model import TaskModel, of_encoder
from tests.encoders import tiny_encoder
from tests.recipes.adaptive_tasks import config_of, write_config, write_rows, write_task

POOL = {"sources": [{"source": "pool.jsonl"}]}
KNN = {"encoder": "random:tiny-bert", "neighbors": 1, "similarity": 2.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> TaskModel:
    return of_encoder(tiny_encoder(tmp_path_factory.mktemp("model")))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    write_task(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(folder: Path, model: TaskModel, console: Console | None = None, **changes) -> AdaptiveData:
    config = load_config(write_config(folder, config_of(folder, **changes)))
    assert isinstance(config, AdaptiveConfig)
    return read_adaptive_data(config, model, folder, console or Console(quiet=True))


def phases_reading(*names: str, **options: Any) -> list[dict]:
    phase = {"kind": "pretrain", "name": "p", "read": list(names), "steps": 1, **options}
    return [phase, {"kind": "finetune"}]


def texts_of(folder: Path, name: str) -> list[str]:
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def learned(data: AdaptiveData) -> list[str]:
    """The texts of the main arm's pretraining phase."""
    (phase,) = adaptive_arms(data.config)[0].pretraining
    return [one.texts[0] for texts, _ in data.phase_texts(phase).learned for one in texts]


def test_tapt_reads_all_training_texts_also_where_few_labels_are_learned(folder, model):
    task = config_of(folder)["task"] | {"train_rows": 6, "dev_rows": 4}
    data = read(folder, model, task=task)
    assert learned(data) == texts_of(folder, "train")
    assert (len(data.task.train), len(data.task.dev), len(data.task.test)) == (6, 4, 10)
    assert data.fingerprint != read(folder, model).fingerprint


def test_dapt_reads_its_sources_at_their_weights_and_replay_at_its_share(folder, model):
    write_rows(folder / "more.jsonl", [{"text": f"more {n}"} for n in range(10)])
    sources = [{"source": "pool.jsonl"}, {"source": "more.jsonl", "weight": 0.5}]
    replay = {"sources": [{"source": "general.jsonl"}], "share": 0.2}
    phases = phases_reading("domain", batch_size=8)
    data = read(
        folder, model, recipe="dapt", domain={"sources": sources}, replay=replay, phases=phases
    )
    (phase,) = adaptive_arms(data.config)[0].pretraining
    texts = data.phase_texts(phase)
    assert [(len(found), weight) for found, weight in texts.learned] == [(60, 1.0), (10, 0.5)]
    mixed = texts.mixture(model, phase, 32, 0)
    counts = Counter()
    for step in range(mixed.per_epoch):
        counts.update(np.searchsorted([60, 70, 90], mixed.members(step), side="right").tolist())
    assert counts == {0: 60, 1: 5, 2: 16}  # 16 of 81 are general
    none = phase.model_copy(update={"replay": 0.0})
    assert data.phase_texts(none).general == []
    assert data.phase_texts(none).fingerprint() != texts.fingerprint()


def test_curated_tapt_reads_task_and_pool_each_text_once(folder, model):
    train = texts_of(folder, "train")
    write_rows(
        folder / "pool.jsonl",
        [{"text": text} for text in (train[0].upper(), "new one", "new  ONE", "other")],
    )
    data = read(
        folder, model, recipe="curated_tapt", domain=POOL, phases=phases_reading("task", "domain")
    )
    assert learned(data) == [*train, "new one", "other"]


def test_knn_selects_from_the_pool_and_its_control_has_the_same_size(folder, model):
    compare = [{"control": "random"}]
    data = read(
        folder,
        model,
        recipe="knn_tapt",
        domain=POOL,
        knn=KNN,
        compare=compare,
        phases=phases_reading("task", "selected"),
    )
    main, random = (arm.pretraining[0] for arm in adaptive_arms(data.config))
    read_by = [
        [one.texts[0] for texts, _ in data.phase_texts(phase).learned for one in texts]
        for phase in (main, random)
    ]
    train, pool = texts_of(folder, "train"), set(texts_of(folder, "pool"))
    assert all(found[: len(train)] == train for found in read_by)
    selected, drawn = (set(found[len(train) :]) for found in read_by)
    assert selected <= pool and drawn <= pool and not selected & drawn
    assert 0 < len(selected) == len(drawn) <= len(train)
    facts = data.selection.statistics
    assert facts["selected"] == len(selected) and facts["recall"] == 1.0
    again = read(
        folder,
        model,
        recipe="knn_tapt",
        domain=POOL,
        knn=KNN,
        compare=compare,
        phases=phases_reading("task", "selected"),
    )
    assert again.selection.statistics == facts
    assert len(list(folder.glob("selection-*"))) == 1


@pytest.mark.parametrize("name", ["dev", "test"])
@pytest.mark.parametrize("source", ["pool", "general"])
def test_a_dev_or_test_text_in_what_a_phase_reads_is_an_error(folder, model, name, source):
    leaked = texts_of(folder, name)[3]
    with (folder / f"{source}.jsonl").open("a") as file:
        file.write(json.dumps({"text": f" {leaked.upper()}\n"}) + "\n")
    replay = {"sources": [{"source": "general.jsonl"}], "share": 0.2}
    changes = {
        "recipe": "dapt",
        "domain": POOL,
        "replay": replay,
        "phases": phases_reading("domain"),
    }
    lines = {"pool": 61, "general": 21}[source]
    with pytest.raises(DataError) as caught:
        learned(read(folder, model, **changes))
    message = str(caught.value)
    assert "phase p would read 1 texts" in message and f"{source}.jsonl:{lines}" in message
    assert f"{name}.jsonl:4" in message and "task.transductive: true" in message
    task = config_of(folder)["task"] | {"transductive": True}
    assert learned(read(folder, model, task=task, **changes))


def test_training_rows_that_are_test_rows_are_said_and_not_pretrained_on(folder, model, capsys):
    leaked = texts_of(folder, "test")[0]
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps({"text": leaked.upper(), "label": "ship"}) + "\n")
    console = Console(width=300)
    data = read(folder, model, console)
    said = capsys.readouterr().out
    assert "1 of 13 training rows" in said and "train.jsonl:13" in said and "test.jsonl:1" in said
    assert leaked.upper() not in learned(data) and len(data.task.train) == 13
    task = config_of(folder)["task"] | {"transductive": True}
    assert leaked.upper() in learned(read(folder, model, task=task))
