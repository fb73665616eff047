"""Perturbed training from a config: it is said, recorded, resumed, and another model comes out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxrecipes.cli import main
from jaxrecipes.train.metrics import read_records
from tests.experiment.small import small_config, write_config


def full_config(output: Path, **perturb: Any) -> dict[str, Any]:
    config = small_config(output)
    del config["block_expansion"]
    config["recipe"] = "full"
    if perturb:
        config["train"]["perturb"] = perturb
    return config


def run(path: Path, config: dict[str, Any]) -> int:
    return main(["run", str(write_config(path, config))])


def weights(output: Path, arm: str) -> dict[str, np.ndarray]:
    return load_file(output / "arms" / arm / "final" / "model" / "model.safetensors")


def losses(output: Path, arm: str) -> list[float]:
    return [one["loss"] for one in read_records(output / "arms" / arm / "metrics.jsonl")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean arm beside perturbed ones; the teacher of SMART is a part of what is saved."""
    output = tmp_path_factory.mktemp("perturb") / "run"
    smart = {"method": "smart", "epsilon": 0.01, "noise": 0.01, "step_size": 0.02}
    config = full_config(output, **smart)
    config["compare"] = [
        {"name": "clean", "recipe": "full", "train": {"perturb": {"method": "none"}}},
        {
            "name": "noise",
            "recipe": "lora",
            "lora": {"rank": 2},
            "train": {"perturb": {"method": "neftune", "warmup": 0.5}},
        },
    ]
    assert run(output.parent / "config.yaml", config) == 0
    return output


@pytest.mark.long
def test_every_arm_trains_as_its_own_section_says(finished: Path) -> None:
    summaries = {
        name: json.loads((finished / "arms" / name / "summary.json").read_text())
        for name in ("full", "clean", "noise")
    }
    assert summaries["clean"]["perturbation"] is None
    assert summaries["full"]["perturbation"]["teacher"] == "mean"
    assert summaries["full"]["perturbation"]["options"]["ascent"]["epsilon"] == 0.01
    # SMART passes forward and backward three times where a clean step does once.
    assert summaries["full"]["flops_per_step"] > 2.5 * summaries["clean"]["flops_per_step"]
    assert summaries["noise"]["perturbation"]["clean_steps"] == 3
    records = read_records(finished / "arms" / "noise" / "metrics.jsonl")
    assert [one["delta_norm"] > 0 for one in records] == [False] * 3 + [True] * 3
    assert "delta_norm" not in read_records(finished / "arms" / "clean" / "metrics.jsonl")[0]
    records = read_records(finished / "arms" / "full" / "metrics.jsonl")
    for one in records:
        value = one["clean_loss"] + one["divergence"] + one["teacher_divergence"]
        assert one["loss"] == pytest.approx(value, rel=1e-5)
    assert records[0]["clean_loss"] == pytest.approx(losses(finished, "clean")[0], rel=1e-6)
    different = weights(finished, "clean")
    assert any((leaf != different[name]).any() for name, leaf in weights(finished, "full").items())


@pytest.mark.long
def test_a_run_that_was_cut_off_goes_on_with_its_teacher(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    arm = output / "arms" / "full"
    shutil.rmtree(arm / "final")
    shutil.rmtree(arm / "checkpoints" / "6")
    config = full_config(output, method="smart", epsilon=0.01, noise=0.01, step_size=0.02)
    assert run(tmp_path / "config.yaml", config) == 0
    expected = weights(finished, "full")
    for name, leaf in weights(output, "full").items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
    assert losses(output, "full") == losses(finished, "full")


@pytest.mark.long
def test_a_fresh_model_is_trained_on_the_attack_of_a_finished_one(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = finished / "arms" / "clean" / "final" / "model"
    kim_kang = {"method": "kim_kang", "teacher": str(teacher), "steps": 2}
    output = tmp_path / "run"
    assert run(tmp_path / "config.yaml", full_config(output, **kim_kang)) == 0
    records = read_records(output / "arms" / "full" / "metrics.jsonl")
    assert all(one["adversarial_loss"] > one["clean_loss"] for one in records)
    assert records[0]["clean_loss"] == pytest.approx(losses(finished, "clean")[0], rel=1e-6)
    capsys.readouterr()
    # Where a leaf is frozen, the teacher must not have trained it.
    config = full_config(tmp_path / "frozen", **kim_kang)
    config["recipe"] = "freeze"
    rules = [{"pattern": "embedding/.*", "train": False}, {"pattern": ".*", "train": True}]
    config["freeze"] = {"rules": rules}
    assert run(tmp_path / "frozen.yaml", config) == 2
    assert "embedding/table, which is frozen in this arm" in capsys.readouterr().err
    # Another shape of model is found before anything is prepared.
    other = tmp_path / "other-model"
    shutil.copytree(teacher, other)
    described = json.loads((other / "config.json").read_text())
    described["num_hidden_layers"] -= 1
    (other / "config.json").write_text(json.dumps(described))
    config = full_config(tmp_path / "other", **{**kim_kang, "teacher": str(other)})
    assert run(tmp_path / "other.yaml", config) == 2
    message = capsys.readouterr().err
    assert f"train.perturb.teacher: {other} computes another function" in message
    assert not (tmp_path / "other" / "data").exists()
