"""Whole runs of the adaptive recipes on a tiny model: files, arms, kills, errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxrecipes.checkpoint.encoder import import_encoder
from jaxrecipes.checkpoint.encoder_heads import read_labels
from jaxrecipes.cli import main
from jaxrecipes.config import AdaptiveConfig
from jaxrecipes.config.data import ColumnsSection
from jaxrecipes.config.perturb import PerturbSection
from jaxrecipes.config.section import Section
from jaxrecipes.train.metrics import MetricsFile
from tests.config.schema_keys import schema_keys
from tests.recipes.adaptive_tasks import config_of, write_config, write_task

POOL = {"sources": [{"source": "pool.jsonl"}]}
KNN = {"encoder": "random:tiny-bert", "neighbors": 1, "similarity": 2.0}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    write_task(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]


def without_times(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def arrays_of(phase: Path) -> dict[str, bytes]:
    """The saved state of a finished phase, file by file."""
    manifest = json.loads((phase / "stage.json").read_text())
    return {name: entry for name, entry in manifest["files"].items() if name.startswith("state/")}


def knn_config(folder: Path) -> Path:
    config = config_of(
        folder,
        "knn_tapt",
        domain=POOL,
        knn=KNN,
        compare=[{"control": name} for name in ("none", "random", "equal_compute", "tapt")],
    )
    config["phases"][0]["read"] = ["task", "selected"]
    return write_config(folder, config)


@pytest.mark.long
def test_a_run_leaves_results_report_and_model_and_does_nothing_twice(folder, capsys):
    path, run = knn_config(folder), folder / "run"
    assert main(["run", str(path)]) == 0
    said = capsys.readouterr().out
    assert "masked_head" in said and "drawn anew" in said and "kNN:" in said
    rows = rows_of(run)
    names = ["knn_tapt", "none", "random", "equal_compute", "tapt"]
    assert [(row["arm"], row["seed"]) for row in rows] == [(n, s) for n in names for s in (0, 1)]
    results = json.loads((run / "results.json").read_text())
    arms = {arm["name"]: arm for arm in results["arms"]}
    assert results["base"] == "none" and arms["none"]["differences"] is None
    # What is in results.json is what the rows say.
    labels = np.array(json.loads((run / "adaptive.json").read_text())["test_labels"])
    for name, arm in arms.items():
        shares = [
            np.mean(np.array(row["predictions"]) == labels) for row in rows if row["arm"] == name
        ]
        assert arm["scores"]["accuracy"]["values"] == pytest.approx(shares)
        assert 0 <= arm["scores"]["macro_f1"]["mean"] <= 1
    # Equal computing: no less than the main arm, and less than an epoch more.
    epoch = json.loads((run / "adaptive.json").read_text())["training_tokens"]
    main_arm = arms["knn_tapt"]["pretraining_tokens"] + arms["knn_tapt"]["finetuning_tokens"]
    assert main_arm <= arms["equal_compute"]["finetuning_tokens"] < main_arm + epoch
    read = {
        name: {one["from"]: one["texts"] for one in arms[name]["phases"][0]["read"]}
        for name in ("knn_tapt", "random", "tapt")
    }
    assert read["knn_tapt"] == {"task": 12, "selected": read["random"]["random"]}
    assert read["tapt"] == {"task": 12}
    page = (run / "report.html").read_text()
    assert results["headline"].split(":")[0] in page and "drawn anew" in page
    exported = import_encoder(run / "arms" / "knn_tapt" / "model")
    assert exported.config.family == "bert"
    assert read_labels(run / "arms" / "knn_tapt" / "model") == ("animal", "ship")
    capsys.readouterr()
    assert main(["run", str(path)]) == 0
    assert capsys.readouterr().out.count("done before") == 3 + 10
    assert rows_of(run) == rows
    assert main(["report", str(run)]) == 0
    assert "best model: arms/knn_tapt/model" in capsys.readouterr().out
    assert main(["export", str(run), "elsewhere"]) == 2
    assert "already: arms/knn_tapt/model" in capsys.readouterr().err
    # One more seed is added to what is there.
    assert main(["run", str(path), "seeds=3", "compare=[]"]) == 0
    assert rows_of(run)[:10] == rows and len(rows_of(run)) == 11


@pytest.mark.long
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(folder, monkeypatch):
    path = write_config(folder, config_of(folder))
    assert main(["run", str(path), "output=whole"]) == 0
    write = MetricsFile.write
    killed = []

    def write_and_ask(self, record):
        write(self, record)
        if record["step"] == 3 and not killed:
            killed.append(os.kill(os.getpid(), signal.SIGTERM))

    monkeypatch.setattr(MetricsFile, "write", write_and_ask)
    assert main(["run", str(path), "output=cut"]) == 75
    (work,) = (folder / "cut" / "phases").glob("*.work")
    assert [one.name for one in (work / "state").iterdir()] and not rows_exist(folder / "cut")
    assert main(["run", str(path), "output=cut"]) == 0
    (whole,), (cut,) = ((folder / name / "phases").glob("first-*") for name in ("whole", "cut"))
    assert whole.name == cut.name
    losses = [
        [json.loads(line)["loss"] for line in (one / "metrics.jsonl").read_text().splitlines()]
        for one in (whole, cut)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    records = [json.loads((one / "record.json").read_text()) for one in (whole, cut)]
    assert records[0]["loss"] == records[1]["loss"]
    assert without_times(rows_of(folder / "whole")) == without_times(rows_of(folder / "cut"))


def rows_exist(run: Path) -> bool:
    return (run / "results.jsonl").exists()


@pytest.mark.long
def test_a_run_that_lost_the_end_of_its_results_does_that_seed_again(folder):
    path, run = write_config(folder, config_of(folder)), folder / "run"
    assert main(["run", str(path)]) == 0
    rows = rows_of(run)
    text = (run / "results.jsonl").read_text()
    (run / "results.jsonl").write_text(text[:-40])
    assert main(["run", str(path)]) == 0
    lines = (run / "results.jsonl").read_text().splitlines()
    again = [json.loads(lines[0]), json.loads(lines[-1])]
    assert len(lines) == 3 and without_times(again) == without_times(rows)


@pytest.mark.long
def test_phases_follow_each_other_and_arms_share_them(folder):
    first, tuned = config_of(folder)["phases"]
    domain = first | {"name": "dapt", "read": ["domain"]}
    second = first | {"name": "tapt", "reset_optimizer": False}
    config = config_of(
        folder,
        "dapt",
        seeds=1,
        domain=POOL,
        phases=[domain, second, tuned],
        compare=[
            {"name": "dapt_only", "phases": [domain, tuned]},
            {"name": "reset", "phases": [domain, second | {"reset_optimizer": True}, tuned]},
        ],
    )
    assert main(["run", str(write_config(folder, config))]) == 0
    folders = sorted(one.name.split("-")[0] for one in (folder / "run" / "phases").iterdir())
    assert folders == ["dapt", "tapt", "tapt"]
    results = json.loads((folder / "run" / "results.json").read_text())
    arms = {arm["name"]: arm["phases"] for arm in results["arms"]}
    assert [len(one) for one in arms.values()] == [2, 1, 2]
    assert arms["dapt"][0] == arms["dapt_only"][0] == arms["reset"][0]
    # A phase begins where the one before ended, and kept moments make another model.
    assert arms["dapt"][1]["loss"]["dev"][0] == pytest.approx(arms["dapt"][0]["loss"]["dev"][1])
    assert arms["dapt"][1]["loss"]["dev"][1] != arms["reset"][1]["loss"]["dev"][1]
    assert arms["dapt"][1]["head"] == "" != arms["dapt"][0]["head"]


@pytest.mark.long
def test_a_decoder_guesses_next_tokens_with_replay_and_classifies_by_its_last(folder, capsys):
    replay = {"sources": [{"source": "general.jsonl"}], "share": 0.25}
    config = config_of(
        folder,
        "dapt",
        seeds=1,
        model={"checkpoint": "random:tiny-llama"},
        domain=POOL,
        replay=replay,
    )
    config["phases"][0] |= {"read": ["domain"], "steps": 12}
    assert main(["run", str(write_config(folder, config))]) == 0
    results = json.loads((folder / "run" / "results.json").read_text())
    (phase,) = results["arms"][0]["phases"]
    assert phase["objective"] == "causal" and phase["replay"] == 0.25
    assert {one["from"] for one in phase["read"]} == {"domain", "replay"}
    before, after = phase["loss"]["dev"]
    assert after < before
    assert results["exported"].startswith("none: a decoder")
    assert not (folder / "run" / "arms").exists()
    for override, words in (
        ("model.head=mean", "model.head: mean is for encoders"),
        ("phases.0.masking={rate: 0.2}", "phase first: a decoder does not read masking"),
        ("phases.1.dropout=0.2", "fine-tuning of dapt: a decoder does not read dropout"),
    ):
        capsys.readouterr()
        assert main(["run", str(folder / "config.yaml"), override, "output=other"]) == 2
        assert words in capsys.readouterr().err
        shutil.rmtree(folder / "other")


BAD = [
    (["phases.0.objective=causal"], 2, "objective is causal"),
    (["phases.0.max_tokens=4000"], 2, "the model reads 256 tokens at most"),
    (["task.max_tokens=4000"], 2, "the model reads 256 tokens at most"),
    (["task.dev.source=gone.jsonl"], 3, "gone.jsonl: no such file"),
    (["task.test.source=pool.jsonl"], 3, "label"),
    (["model.checkpoint=random:tiny-brt"], 2, "unknown random model"),
    (["model.checkpoint=random:tiny-bert"], 2, "has no mask token"),
    (["phases.0.optimizer.decay_rules=[{pattern: x, decay: true}]"], 2, "no rule matches"),
]


@pytest.mark.parametrize(("overrides", "code", "words"), BAD, ids=[" ".join(one[0]) for one in BAD])
def test_what_cannot_run_is_refused_in_words(folder, capsys, overrides, code, words):
    path = write_config(folder, config_of(folder))
    assert main(["run", str(path), *overrides]) == code
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and "This is an error in" not in error


def test_a_folder_of_another_experiment_is_refused_and_an_empty_one_has_no_report(folder, capsys):
    path, run = write_config(folder, config_of(folder)), folder / "run"
    run.mkdir()
    (run / "identity.json").write_text(json.dumps({"main": "other", "arms": {}}))
    (run / "run.yaml").write_text("")
    assert main(["run", str(path)]) == 2
    assert "holds another experiment" in capsys.readouterr().err
    assert main(["report", str(folder)]) == 2
    assert "is no run folder" in capsys.readouterr().err


@pytest.mark.long
def test_a_run_reads_every_key_of_the_schema(folder, monkeypatch):
    """Records which keys code outside of the config package reads while a run runs."""
    reads: set[tuple[str, str]] = set()
    plain = Section.__getattribute__

    def recording(self, name):
        known = type(self).model_fields
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith("jaxrecipes") and not caller.startswith("jaxrecipes.config"):
            read = known if name == "model_dump" and type(self) in WHOLE else {name} & known.keys()
            reads.update((type(self).__name__, key) for key in read)
        return plain(self, name)

    config = config_of(
        folder,
        "knn_tapt",
        seeds=1,
        domain=POOL,
        knn=KNN,
        replay={"sources": [{"source": "general.jsonl"}], "share": 0.25},
        compare=[{"control": "equal_compute"}],
    )
    config["phases"][0] |= {"read": ["task", "selected"], "steps": 1}
    config["phases"][1] |= {"epochs": 1, "perturb": {"method": "neftune", "alpha": 1.0}}
    second = config["phases"][0] | {"name": "second", "epochs": 0.2, "reset_optimizer": False}
    del second["steps"]
    config["phases"].insert(1, second)
    path = write_config(folder, config)
    monkeypatch.setattr(Section, "__getattribute__", recording)
    assert main(["run", str(path)]) == 0
    # Version and kinds are checked by the schema, which also writes arms out; shapes are compared
    # with what is read, there and for labelled rows here.
    by_schema = {("AdaptiveConfig", name) for name in ("version", "phases", "compare", "name")}
    keys = schema_keys(AdaptiveConfig)
    by_schema |= {key for key in keys if key[0] == "AdaptiveArmSection"}
    by_schema |= {("PretrainPhase", "kind"), ("FineTunePhase", "kind"), ("LearnSection", "shape")}
    # A teacher is for kim_kang, which the schema refuses here.
    by_schema |= {("PerturbSection", "teacher")}
    assert keys - by_schema - reads == set()


# Sections whose every key goes on as it is: the roles of columns, the options of a method.
WHOLE = (ColumnsSection, PerturbSection)
