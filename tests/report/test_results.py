from __future__ import annotations

import json

import pytest

from jaxrecipes.errors import DataError, UsageError
from jaxrecipes.report.results import collect_results

from .conftest import ARMS, write_run


def test_a_run_is_gathered_in_its_own_order(run_folder):
    results = collect_results(run_folder)
    assert [arm["name"] for arm in results["arms"]] == ["block_expansion", "full"]
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    ours = results["arms"][0]
    assert ours["before"]["step"] == 0 and ours["after"]["step"] == 40
    assert ours["finished"] and ours["skipped"] == 1 and len(ours["training"]) == 39
    assert ours["training_seconds"] == pytest.approx(164)
    assert ours["tokens_per_second"] == pytest.approx(980 / 4.1)
    assert all("document_sums" not in record for record in ours["evaluations"])
    swapped = write_run(run_folder.parent / "swapped", dict(reversed(ARMS.items())))
    assert [arm["name"] for arm in collect_results(swapped)["arms"]] == ["full", "block_expansion"]


def test_forgetting_at_equal_learning_has_intervals(run_folder):
    compared = collect_results(run_folder)["equal_learning"]
    kl = compared["kl"]
    assert kl["gain"] == pytest.approx(0.411, abs=0.001)
    assert kl["forgetting"]["block_expansion"]["value"] == pytest.approx(0.021, abs=0.002)
    assert kl["differences"]["full"]["low"] > 0
    assert (
        compared["accuracy"]["gain"] is None and "two points" not in compared["accuracy"]["reason"]
    )
    assert "curve needs three" in compared["accuracy"]["reason"]


def test_the_last_record_of_a_step_counts(run_folder):
    path = run_folder / "arms" / "full" / "evaluations.jsonl"
    last = json.loads(path.read_text().splitlines()[-1])
    last["learn"]["loss"]["value"] = 1.5
    with path.open("a") as file:
        file.write(json.dumps(last) + "\n")
    full = collect_results(run_folder)["arms"][1]
    assert full["after"]["learn"]["loss"]["value"] == 1.5 and len(full["evaluations"]) == 5


def test_an_unfinished_run_can_be_reported(run_folder):
    folder = run_folder / "arms" / "full"
    for name in ("summary.json", "metrics.jsonl"):
        (folder / name).unlink()
    first = (folder / "evaluations.jsonl").read_text().splitlines()[0]
    (folder / "evaluations.jsonl").write_text(first + "\n")
    (run_folder / "environment.json").unlink()
    (run_folder / "run.yaml").unlink()
    (run_folder / "arms" / "waiting").mkdir()
    results = collect_results(run_folder)
    assert [arm["finished"] for arm in results["arms"]] == [True, False]
    assert "cannot be compared" in results["headline"]


def test_numbers_that_json_lacks_become_null(run_folder):
    path = run_folder / "arms" / "full" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 41, "tokens": 41984, "loss": NaN, "seconds": 1.0}\n')
    assert collect_results(run_folder)["arms"][1]["training"][-1]["loss"] is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("environment.json", "{", "environment.json: cannot be read"),
        ("identity.json", "[]", "identity.json: expected a JSON object"),
        ("arms/full/evaluations.jsonl", "{}\n", "evaluations.jsonl:1: step is None"),
        ("arms/full/summary.json", "", "summary.json: cannot be read"),
    ],
)
def test_damaged_files_are_named(run_folder, name, content, message):
    (run_folder / name).write_text(content)
    with pytest.raises(DataError, match=message):
        collect_results(run_folder)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no run folder"):
        collect_results(tmp_path)
    (tmp_path / "arms" / "full").mkdir(parents=True)
    with pytest.raises(UsageError, match="no arm was evaluated"):
        collect_results(tmp_path)
