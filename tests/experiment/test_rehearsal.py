"""A sequence of three tasks: order of stages, labels, sets that are made once, kill and rerun."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxrecipes.cli import main
from jaxrecipes.experiment import rehearsal as module
from jaxrecipes.generate.teacher import Reply
from tests.experiment.small import write_config

TASKS = ("colour", "sound", "taste")


def sequence_config(folder: Path, output: Path) -> dict[str, Any]:
    """Three tasks of short texts; a model of bytes."""
    tasks = []
    for place, name in enumerate(TASKS):
        for split, count in (("train", 8), ("test", 3)):
            rows = [
                {"prompt": f"{name} of thing {place}{n} {split}", "completion": f"{name} {n}"}
                for n in range(count)
            ]
            path = folder / f"{name}.{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {
            split: {"source": str(folder / f"{name}.{split}.jsonl")} for split in ("train", "test")
        }
        tasks.append({"name": name, "instruction": f"Say the {name}.", **source})
    train = {"steps": 3, "batch_size": 2, "optimizer": {"learning_rate": 1e-3}}
    return {
        "version": 1,
        "recipe": "self_synthesized_rehearsal",
        "name": "ssr",
        "output": str(output),
        "model": {"checkpoint": "random:tiny-llama", "compute_dtype": "float32"},
        "tasks": tasks,
        "tuning": {
            "length": 96,
            "train": {**train, "checkpoint": {"every_steps": 1}},
        },
        "synthesis": {"demonstrations": 3, "samples": 2, "longest_output": 8},
        "rehearsal": {"share": 0.5, "clusters": 2},
        "evaluate": {"rouge": False},
        "compare": [
            {"name": "none", "rehearsal": {"method": "none"}},
            {"name": "real", "rehearsal": {"method": "real", "share": 0.5, "selection": "random"}},
            {
                "name": "ewc",
                "rehearsal": {
                    "method": "none",
                    "penalty": {"kind": "ewc", "coefficient": 5.0, "examples": 3},
                },
            },
        ],
    }


class Writers:
    """In place of local teachers: who was asked what, and plausible texts."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        self.dies_at = dies_at

    def __call__(self, imported, base, key, slots, compute_dtype):
        writers = self

        class Writer:
            identity = {"model": key}

            def answer(self, requests, on_reply):
                for one in requests:
                    if len(writers.asked) == writers.dies_at:
                        writers.dies_at = None
                        raise KeyboardInterrupt
                    writers.asked.append((key, one.key))
                    if re.fullmatch(r".*/\d+-\d+/\d+", one.id):
                        text = f" thing {one.key[:6]} {one.id[:1]}\nOutput: base"
                    else:
                        text = f" by {key[:6]}"
                    on_reply(Reply(one.id, text, "stop"))

        return Writer()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Writers]:
    folder = tmp_path_factory.mktemp("sequence")
    with pytest.MonkeyPatch.context() as patch:
        writers = Writers()
        patch.setattr(module, "local_teacher", writers)
        config = sequence_config(folder, folder / "run")
        assert main(["run", str(write_config(folder / "config.yaml", config))]) == 0
    return folder / "run", writers


def read_sets(output: Path) -> dict[str, list[dict[str, str]]]:
    return {
        path.parent.name: json.loads(path.read_text())["instances"]
        for path in sorted(output.glob("sets/*/set.json"))
    }


@pytest.mark.long
def test_the_base_writes_inputs_the_latest_model_labels_and_each_set_is_made_once(finished):
    output, writers = finished
    found = json.loads((output / "rehearsal.json").read_text())
    arms = {arm["name"]: arm for arm in found["arms"]}
    # Two tasks come before another one; the last is repeated by nobody.
    assert set(arms["ssr"]["sets"]) == {"colour", "sound"}
    assert all(counts["chosen"] == 4 for counts in arms["ssr"]["sets"].values())
    assert [stage["rows"] for stage in arms["ssr"]["stages"]] == [8, 12, 16]
    assert [stage["rows"] for stage in arms["none"]["stages"]] == [8, 8, 8]
    assert len(writers.asked) == len(set(writers.asked))
    labels: dict[str, set[str]] = {}
    for name, rows in read_sets(output).items():
        labels.setdefault(name.split("-")[0], set()).update(row["output"] for row in rows)
        shown = {f"{task} of thing" for task in TASKS}
        synthetic = [row["input"] for row in rows if row["input"].startswith("thing")]
        assert len(synthetic) in (0, 4) and not shown & set(synthetic)
        assert all(row["output"].startswith("by ") for row in rows)
    # The first task's model is common to all arms; the second's depends on what was repeated.
    assert len(labels["colour"]) == 1 and len(labels["sound"]) == 2
    # The rows of the third stage hold both sets as they were made.
    assert len(list(output.glob("models/1-colour-*"))) == 1
    assert len(list(output.glob("models/3-taste-*"))) == 4


@pytest.mark.long
def test_the_report_has_every_matrix(finished, capsys):
    output, _ = finished
    results = json.loads((output / "results.json").read_text())
    assert results["metrics"] == ["nll"]
    for arm in results["arms"]:
        matrix = arm["metrics"]["nll"]["matrix"]
        assert np.array(matrix, float).shape == (4, 3)
        learned = np.mean([matrix[3][j] - matrix[j + 1][j] for j in range(2)])
        assert arm["metrics"]["nll"]["BWT"]["value"] == pytest.approx(-learned)
    page = (output / "report.html").read_text()
    assert all(name in page for name in (*TASKS, "FWT_SSR", "ewc"))
    capsys.readouterr()
    assert main(["report", str(output)]) == 0
    said = capsys.readouterr().out
    assert "BWT" in said and "after each task" in said
    assert main(["export", str(output), str(output / "x")]) == 2
    assert "models/3-taste-" in capsys.readouterr().err


@pytest.mark.long
def test_penalties_begin_with_the_second_task_and_add_up(finished):
    output, _ = finished
    arm = json.loads((output / "rehearsal.json").read_text())["arms"][3]
    stages = [path.parent for path in output.glob("models/*/fisher")]
    assert sorted(path.name.split("-")[0] for path in stages) == ["2", "3"]
    last = Path(output / arm["model"]).parents[1]
    records = [json.loads(line) for line in (last / "metrics.jsonl").read_text().splitlines()]
    # The first task's quadratic is around the end of the first task, which is left behind.
    assert records[0]["penalty"] > 0


@pytest.mark.long
@pytest.mark.parametrize("dies_at", [5, 14])
def test_a_killed_run_ends_as_one_that_was_not(finished, tmp_path, monkeypatch, dies_at):
    whole, _ = finished
    writers = Writers(dies_at)
    monkeypatch.setattr(module, "local_teacher", writers)
    config = sequence_config(tmp_path, tmp_path / "run")
    config["compare"] = []
    path = write_config(tmp_path / "config.yaml", config)
    assert main(["run", str(path)]) == 130
    assert main(["run", str(path)]) == 0
    assert len(writers.asked) == len(set(writers.asked))
    expected = json.loads((whole / "rehearsal.json").read_text())["arms"][0]
    found = json.loads((tmp_path / "run" / "rehearsal.json").read_text())["arms"][0]
    assert found["scores"] == expected["scores"] and found["sets"] == expected["sets"]
    ours = load_file(tmp_path / "run" / found["model"] / "model.safetensors")
    for name, leaf in load_file(whole / expected["model"] / "model.safetensors").items():
        np.testing.assert_array_equal(leaf, ours[name], err_msg=name)
