"""Whole runs of LLM2LLM: the method, its controls, kills, the report."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM

from jaxrecipes import cli
from jaxrecipes.checkpoint.random_model import write_random_model
from jaxrecipes.config import load_config, resolved_yaml
from jaxrecipes.config.llm2llm import (
    AnswerTaskSection,
    AugmentSection,
    EdaSection,
    Llm2llmConfig,
    ProbeSection,
)
from jaxrecipes.config.section import Section
from jaxrecipes.durable import folder_entries, hash_values, write_json_lines
from jaxrecipes.experiment import llm2llm, rounds
from jaxrecipes.experiment.tuning import Tuned
from jaxrecipes.generate.program_teacher import ProgramTeacher
from jaxrecipes.generate.teacher import Request
from jaxrecipes.recipes.llm2llm import NOTHING_WRONG, Record
from jaxrecipes.report.kinds import report_kind
from jaxrecipes.report.rounds import sign_test
from tests.config.schema_keys import schema_keys
from tests.experiment.small import write_config

CONTROLS = ("none", "step_matched", "eda", "rephrase", "uniform", "one_shot", "all_wrong")


def plain_config(folder: Path, controls: Any = (), **changes: Any) -> dict[str, Any]:
    def rows(name: str, numbers: range) -> dict[str, str]:
        items = [
            {"id": f"{name}{n}", "question": f"say {n} twice", "answer": f"{n}{n}"} for n in numbers
        ]
        write_json_lines(folder / f"{name}.jsonl", items)
        return {"source": str(folder / f"{name}.jsonl")}

    write_json_lines(folder / "synonyms.jsonl", [{"word": "twice", "synonyms": ["double"]}])
    eda = {"synonyms": str(folder / "synonyms.jsonl"), "swapped": 0.5}
    return {
        "version": 1,
        "recipe": "llm2llm",
        "seeds": 2,
        "output": str(folder / "out"),
        "model": {"checkpoint": "random:tiny-llama", "compute_dtype": "float32"},
        "task": {
            "kind": "plain",
            "seeds": rows("s", range(8)),
            "dev": rows("d", range(20, 23)),
            "test": rows("t", range(30, 35)),
        },
        "augment": {"rounds": 3, "attempts": 4, "rouge_l": 1.0},
        "probe": {"max_new_tokens": 4},
        "tuning": {
            "length": 64,
            "train": {"epochs": 2, "batch_size": 2, "optimizer": {"learning_rate": 1e-3}},
        },
        "compare": [
            {"control": name, **({"eda": eda} if name == "eda" else {})} for name in controls
        ],
        **changes,
    }


def new_item(request: Request) -> str:
    draw = np.random.default_rng(request.seed)
    n = int(draw.integers(100, 10**6))
    text = request.messages[0].content
    if "in other words" in text:
        answer = text.split("[its right answer ")[1].split("\n")[1]
        return f"Question: speak {n} {draw.integers(10**6)}\nAnswer: {answer}"
    if "Write one item" not in text:
        asked = text.split("[question ")[1].split("\n")[1].split()[1]
        return f"Answer: {asked}{asked}"
    return f"Question: say {n} twice\nAnswer: {n}{n}"


class Students:
    """In place of training: a student knows a question from the third time it is asked on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained: list[tuple[str, list[dict[str, Any]], Any]] = []
        monkeypatch.setattr(rounds, "tune", self.tune)
        monkeypatch.setattr(rounds, "open_student", self.open)
        monkeypatch.setattr(llm2llm.jax, "clear_caches", lambda: None)

    def tune(self, name: str, *, base_folder: Path, rows: Any, section: Any, **_: Any) -> Tuned:
        base = hash_values(folder_entries(base_folder))
        self.trained.append((base, list(rows), section.train))
        steps = section.train.steps or len(rows)
        summary = {"steps": steps, "loss": 1 / len(rows), "wall_seconds": 0.0}
        return Tuned(base_folder, None, summary, hash_values({"rows": list(rows)}), False)

    def open(self, folder: Path, key: str, **_: Any) -> ProgramTeacher:
        # Knows more after each training, and never all.
        known = len(self.trained[-1][1]) % 5

        def answer(request: Request) -> str:
            n = str(request.prompt).split()[1]
            return f"{n}{n}" if int(n) % 5 < known else "no"

        return ProgramTeacher(answer, {"student": key})


def records(output: Path, arm: str, seed: int) -> list[list[Record]]:
    folder = output / "arms" / arm / f"seed-{seed}"
    found = []
    for number in range(len(list(folder.glob("round-*")))):
        lines = (folder / f"round-{number}" / "done" / "data.jsonl").read_text().splitlines()
        found.append([Record(**json.loads(line)) for line in lines])
    return found


def run(config: dict[str, Any], teacher: Callable[[Request], str] = new_item) -> dict[str, Any]:
    console = Console(quiet=True)
    model = Llm2llmConfig.model_validate(config)
    llm2llm.run(model, console=console, teacher=ProgramTeacher(teacher, {"name": "doubles"}))
    return json.loads((Path(config["output"]) / "llm2llm.json").read_text())


def test_every_control_does_as_much_as_the_method(tmp_path, monkeypatch):
    students = Students(monkeypatch)
    config = plain_config(tmp_path, CONTROLS)
    found = run(config)
    output = Path(config["output"])
    assert [arm["name"] for arm in found["arms"]] == ["llm2llm", *CONTROLS]
    assert len({base for base, _, _ in students.trained}) == 1
    arms = {arm["name"]: arm["runs"] for arm in found["arms"]}
    for seed in (0, 1):
        main = arms["llm2llm"][seed]["rounds"]
        sets = records(output, "llm2llm", seed)
        assert len(main) > 2 and main[-1]["stop"]
        for number, (before, after) in enumerate(zip(sets, sets[1:], strict=False), start=1):
            done = output / "arms" / "llm2llm" / f"seed-{seed}" / f"round-{number - 1}" / "done"
            right = json.loads((done / "round.json").read_text())["right"]
            new = after[len(before) :]
            assert Counter(after) == Counter(before) + Counter(new) and new
            assert {one.parent_id for one in new} <= {
                key for key, good in right.items() if not good
            }
            assert all(one.depth == 1 and one.round == number for one in new)
        last = main[-1]
        for name in set(CONTROLS) - {"none", "step_matched"}:
            end = arms[name][seed]["rounds"][-1]
            assert (end["synthetic"], end["steps"]) == (last["synthetic"], last["steps"]), name
        step_matched, none = (arms[name][seed]["rounds"] for name in ("step_matched", "none"))
        assert len(step_matched) == len(none) == 1
        assert step_matched[0]["steps"] == last["steps"] and step_matched[0]["synthetic"] == 0
        assert none[0]["steps"] == 8
        assert any(one.depth == 2 for one in records(output, "all_wrong", seed)[-1])
        assert [state["kept"] for state in arms["uniform"][seed]["rounds"]][:2] == [
            state["kept"] for state in main
        ][:2]
        eda = [one for one in records(output, "eda", seed)[0] if one.depth]
        assert {one.teacher for one in eda} == {"eda"} and all(
            one.answer in {f"{n}{n}" for n in range(8)} for one in eda
        )
    kind = report_kind(output)
    text = io.StringIO()
    Console(file=text, width=120).print(kind.render(kind.write(output)))
    assert all(name in text.getvalue() for name in ("llm2llm", *CONTROLS, "wrong seeds"))
    page = (output / "report.html").read_text()
    assert "Rounds" in page and "uniform" in page and "http" not in page.split("<main>")[1][:2000]
    results = json.loads((output / "results.json").read_text())
    assert results["arms"][1]["against"]["better"] + results["arms"][1]["against"]["worse"] <= 2


def test_a_killed_run_goes_on_and_asks_nothing_twice(tmp_path, monkeypatch):
    Students(monkeypatch)
    (tmp_path / "whole").mkdir()
    whole = run(plain_config(tmp_path / "whole", ("uniform", "one_shot")))
    (tmp_path / "killed").mkdir()
    asked: list[str] = []
    places = iter((4, 9, 10, 30))
    stop = next(places)

    def teacher(request: Request) -> str:
        nonlocal stop
        if len(asked) == stop:
            stop = next(places, -1)
            raise KeyboardInterrupt
        asked.append(request.key)
        return new_item(request)

    config = plain_config(tmp_path / "killed", ("uniform", "one_shot"))
    kills = 0
    while True:
        try:
            found = run(config, teacher)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills == 4 and len(asked) == len(set(asked))
    for key in ("config", "items"):
        whole.pop(key), found.pop(key)
    assert found == whole
    before = folder_entries(Path(config["output"]) / "arms")
    run(config, teacher)
    assert folder_entries(Path(config["output"]) / "arms") == before


def test_a_run_reads_every_key(tmp_path, monkeypatch):
    Students(monkeypatch)
    monkeypatch.setattr(llm2llm, "_embedder", lambda *_: lambda texts: np.eye(999)[: len(texts)])
    reads: set[tuple[str, str]] = set()
    plain = Section.__getattribute__

    def recording(self, name):
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith("jaxrecipes") and not caller.startswith("jaxrecipes.config"):
            reads.update((kind.__name__, name) for kind in type(self).__mro__)
        return plain(self, name)

    config = plain_config(tmp_path, ("eda",), seeds=1)
    config["augment"] |= {"rounds": 1, "encoder": "x", "verify_samples": 2, "patience": 2}
    config["probe"] |= {"samples": 3, "temperature": 0.5}
    monkeypatch.setattr(Section, "__getattribute__", recording)
    run(config)
    own = (Llm2llmConfig, AnswerTaskSection, AugmentSection, ProbeSection, EdaSection)
    keys = {key for key in schema_keys(Llm2llmConfig) if key[0] in {one.__name__ for one in own}}
    # These are checked by the schema, which also writes arms out.
    by_schema = {("Llm2llmConfig", name) for name in ("version", "name", "compare")}
    assert len(keys) > 40 and keys - by_schema - reads == set()


def test_a_student_that_knows_everything_ends_the_run(tmp_path, monkeypatch):
    students = Students(monkeypatch)

    def open_all(folder: Path, key: str, **_: Any) -> ProgramTeacher:
        return ProgramTeacher(lambda r: str(r.prompt).split()[1] * 2, {"student": key})

    monkeypatch.setattr(rounds, "open_student", open_all)
    found = run(plain_config(tmp_path, seeds=1))
    assert len(students.trained) == 1
    assert found["arms"][0]["runs"][0]["rounds"][0]["stop"] == NOTHING_WRONG


def test_wrong_configs_say_what_to_do(tmp_path, capsys):
    config = plain_config(tmp_path, ("none", "none"))
    config["compare"][0]["eda"] = {}
    config["probe"] |= {"samples": 3}
    config["augment"] |= {"similarity": 0.5, "patience": 1}
    del config["task"]["dev"]
    assert cli.main(["validate", str(write_config(tmp_path / "c.yaml", config))]) == 2
    said = " ".join(capsys.readouterr().err.split())
    for words in (
        "control none does not read it",
        "the name 'none' is taken",
        "probe.temperature: is 0",
        "augment.similarity: is read with augment.encoder",
        "augment.patience: is counted in dev scores",
    ):
        assert words in said
    good = plain_config(tmp_path, CONTROLS)
    checked = Llm2llmConfig.model_validate(good)
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(checked))
    assert load_config(tmp_path / "resolved.yaml").model_dump() == checked.model_dump()
    assert cli.main(["run", str(write_config(tmp_path / "g.yaml", good))]) == 2
    assert "teacher: is missing" in capsys.readouterr().err


@pytest.mark.long
def test_a_real_run_trains_the_base_in_every_round(tmp_path):
    base = tmp_path / "base"
    write_random_model(base, "tiny-llama", seed=3)
    config = plain_config(tmp_path, ("step_matched",), seeds=1)
    config["model"]["checkpoint"] = str(base)
    before = folder_entries(base)
    found = run(config)
    assert folder_entries(base) == before
    trace = found["arms"][0]["runs"][0]["rounds"]
    assert [state["synthetic"] for state in trace] == [0, 8, 16, 24]
    assert trace[-1]["steps"] > trace[0]["steps"]
    assert found["arms"][1]["runs"][0]["rounds"][0]["steps"] == trace[-1]["steps"]
    output = Path(config["output"])
    model = output / found["arms"][0]["runs"][0]["model"]
    assert AutoModelForCausalLM.from_pretrained(model).config.num_hidden_layers == 6
    assert len(list(output.glob("arms/*/*/round-*/student"))) == 1
    assert load_config(output / "run.yaml").recipe == "llm2llm"


def test_the_sign_test_is_that_of_fair_coins():
    assert sign_test(5, 0) == pytest.approx(2 / 32)
    assert sign_test(3, 3) == sign_test(0, 0) == 1.0
    assert sign_test(1, 4) == sign_test(4, 1) == pytest.approx(2 * 6 / 32)
