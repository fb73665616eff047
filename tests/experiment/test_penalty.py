"""Penalties from a config: said, recorded, saved once, resumed, added to an earlier run's."""

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

EWC = {
    "kind": "ewc",
    "coefficient": 1.0,
    "sources": [{"source": "topics", "limit_documents": 3}],
    "examples": 4,
}


def full_config(output: Path, **penalty: Any) -> dict[str, Any]:
    config = small_config(output)
    del config["block_expansion"]
    config["recipe"] = "full"
    if penalty:
        config["train"]["penalty"] = penalty
    return config


def run(path: Path, config: dict[str, Any]) -> int:
    return main(["run", str(write_config(path, config))])


def weights(output: Path, arm: str) -> dict[str, np.ndarray]:
    return load_file(output / "arms" / arm / "final" / "model" / "model.safetensors")


def records(output: Path, arm: str) -> list[dict[str, Any]]:
    return read_records(output / "arms" / arm / "metrics.jsonl")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A penalised arm beside others of every recipe and kind, one of them with coefficient 0."""
    output = tmp_path_factory.mktemp("penalty") / "run"
    config = full_config(output, **EWC)
    rules = [{"pattern": "layers/1/.*", "train": True}, {"pattern": ".*", "train": False}]

    def arm(name: str, recipe: str, penalty: dict[str, Any], **options: Any) -> dict[str, Any]:
        return {"name": name, "recipe": recipe, "train": {"penalty": penalty}, **options}

    config["compare"] = [
        arm("plain", "full", {"kind": "none"}),
        arm("zero", "full", {"kind": "l2", "coefficient": 0.0}),
        arm("freeze", "freeze", {"kind": "l2", "coefficient": 1.0}, freeze={"rules": rules}),
        arm("lora", "lora", {"kind": "kl", "coefficient": 1.0}, lora={"rank": 2, "dropout": 0.2}),
        arm("expanded", "block_expansion", EWC, block_expansion={"new_blocks": 2}),
    ]
    assert run(output.parent / "config.yaml", config) == 0
    return output


@pytest.mark.long
def test_every_arm_is_held_as_its_own_section_says(finished: Path) -> None:
    for name in ("full", "freeze", "lora", "expanded"):
        found = records(finished, name)
        assert found[0]["penalty"] == pytest.approx(0.0, abs=1e-6), name
        assert all(one["penalty"] > 0 for one in found[1:]), name
        for one in found:
            assert one["loss"] == pytest.approx(one["task_loss"] + one["penalty"], rel=1e-5)
    for name, kind in (("full", "ewc"), ("freeze", "l2"), ("lora", "kl"), ("expanded", "ewc")):
        summary = json.loads((finished / "arms" / name / "summary.json").read_text())
        assert summary["penalty"]["kind"] == kind
        assert (finished / "arms" / name / "fisher").exists() == (kind == "ewc")
    assert json.loads((finished / "arms" / "plain" / "summary.json").read_text())["penalty"] is None
    # Coefficient 0 is the run without a penalty, bit for bit.
    assert "penalty" not in records(finished, "zero")[0]
    plain = weights(finished, "plain")
    for name, leaf in weights(finished, "zero").items():
        np.testing.assert_array_equal(leaf, plain[name], err_msg=name)
    assert any((leaf != plain[name]).any() for name, leaf in weights(finished, "full").items())


@pytest.mark.long
def test_a_run_that_was_cut_off_goes_on_around_the_same_anchor(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    arm = output / "arms" / "full"
    shutil.rmtree(arm / "final")
    shutil.rmtree(arm / "checkpoints" / "6")
    capsys.readouterr()
    assert run(tmp_path / "config.yaml", full_config(output, **EWC)) == 0
    # It was read, not computed again.
    assert "Fisher information" not in capsys.readouterr().out
    expected = weights(finished, "full")
    for name, leaf in weights(output, "full").items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
    assert [one["loss"] for one in records(output, "full")] == [
        one["loss"] for one in records(finished, "full")
    ]


@pytest.mark.long
def test_the_next_task_adds_to_the_information_of_an_earlier_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = finished / "arms" / "full" / "fisher"
    output = tmp_path / "run"
    config = full_config(output, **EWC, earlier=str(earlier), accumulate="online", decay=0.5)
    config["model"]["checkpoint"] = str(finished / "arms" / "full" / "final" / "model")
    assert run(tmp_path / "config.yaml", config) == 0
    assert records(output, "full")[0]["penalty"] == pytest.approx(0.0, abs=1e-9)
    separate = tmp_path / "separate"
    config = {**config, "output": str(separate)}
    config["train"]["penalty"] = {**EWC, "earlier": str(earlier)}
    assert run(tmp_path / "separate.yaml", config) == 0
    # The first task's quadratic stays around the first start, from which the model has moved.
    assert records(separate, "full")[0]["penalty"] > 0
    config["train"]["penalty"]["earlier"] = str(tmp_path)
    config["output"] = str(tmp_path / "nothing")
    capsys.readouterr()
    assert run(tmp_path / "nothing.yaml", config) == 2
    assert "arm full: train.penalty.earlier" in capsys.readouterr().err
