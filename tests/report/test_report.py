"""The report of an invented run: its numbers, its words and the page that shows them."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from jaxrecipes.errors import DataError, UsageError
from jaxrecipes.report.page import write_report
from jaxrecipes.report.results import collect_results
from jaxrecipes.report.terminal import render_evaluation, render_results
from tests.report.conftest import ARMS, write_run


def edit_records(run_folder, edit) -> None:
    for path in run_folder.glob("arms/*/evaluations.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for one in records:
            edit(one)
        path.write_text("".join(json.dumps(one) + "\n" for one in records))


def printed(renderable) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(renderable)
    return console.file.getvalue()


def interval(value):
    return {"value": value, "low": None, "high": None}


def two_arms_by_hand(run_folder) -> None:
    """Leaves two evaluations after the base, with gains and KL that are easy to interpolate."""
    numbers = {
        "block_expansion": {0: (0, 0), 10: (0.1, 0.01), 20: (0.2, 0.02)},
        "full": {0: (0, 0), 10: (0.15, 0.06), 20: (0.25, 0.16)},
    }
    for name, points in numbers.items():
        lines = []
        for step, (gain, kl) in points.items():
            learn = {"loss": interval(3 - gain), "perplexity": interval(9), "kl": None}
            keep = {"loss": interval(2.0), "perplexity": interval(7), "kl": interval(kl)}
            learn |= {"change": interval(-gain), "documents": 1, "scored_tokens": 5}
            keep |= {"change": interval(0), "documents": 1, "scored_tokens": 5}
            one = {"step": step, "tokens": step, "learn": learn, "keep": keep}
            lines.append(json.dumps(one | {"choices": None, "last_words": None}))
        (run_folder / "arms" / name / "evaluations.jsonl").write_text("\n".join(lines) + "\n")


def test_forgetting_is_interpolated_at_the_gain_all_arms_reached(run_folder):
    two_arms_by_hand(run_folder)
    equal = collect_results(run_folder)["equal_learning"]["kl"]
    assert equal["gain"] == pytest.approx(0.2)
    assert equal["forgetting"]["block_expansion"]["value"] == pytest.approx(0.02)
    # full has 0.06 at 0.15 and 0.16 at 0.25: half-way between them at 0.2.
    assert equal["forgetting"]["full"]["value"] == pytest.approx(0.11)
    assert equal["differences"]["full"]["value"] == pytest.approx(0.09)


def test_arms_come_in_the_order_of_the_run_with_cost_and_speed(run_folder):
    first, second = collect_results(run_folder)["arms"]
    assert [first["name"], second["name"]] == list(ARMS)
    assert first["before"]["step"] == 0 and first["after"]["step"] == 40
    assert first["training_seconds"] == pytest.approx(40 * 4.1)
    assert first["tokens_per_second"] == pytest.approx(980 / 4.1)
    assert first["skipped"] == 1
    assert first["summary"]["trained_parameters"] == 17_700_480


def test_of_a_step_evaluated_twice_the_last_counts(run_folder):
    path = run_folder / "arms" / "full" / "evaluations.jsonl"
    again = json.loads(path.read_text().splitlines()[-1])
    again["learn"]["loss"]["value"] = 1.25
    with path.open("a") as file:
        file.write(json.dumps(again) + "\n")
    full = collect_results(run_folder)["arms"][1]
    assert len(full["evaluations"]) == 5
    assert full["after"]["learn"]["loss"]["value"] == 1.25


def test_results_file_holds_what_is_returned_without_sums_by_document(run_folder):
    results = write_report(run_folder)
    text = (run_folder / "results.json").read_text()
    assert json.loads(text) == results
    assert "document_sums" not in text
    assert not [path for path in run_folder.rglob("*") if "partial" in path.name]


def test_page_needs_nothing_else(run_folder):
    write_report(run_folder)
    page = (run_folder / "report.html").read_text()
    sources = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    assert any(source.startswith("data:image/png;base64,") for source in sources)
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "@import" not in page and "url(http" not in page and "<script" not in page
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    assert 'name="viewport"' in page
    for image in (run_folder / "plots").glob("*.png"):
        assert image.read_bytes().startswith(b"\x89PNG")


def test_text_of_the_run_is_escaped(tmp_path):
    name = "<b>arm & co"
    folder = write_run(tmp_path / "run", {name: ARMS["block_expansion"], "full": ARMS["full"]})
    write_report(folder)
    page = (folder / "report.html").read_text()
    assert name not in page and "&lt;b&gt;arm &amp; co" in page
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_a_run_without_keep_set_and_questions(run_folder):
    def strip(one):
        one["keep"] = one["choices"] = None
        one["document_sums"].pop("keep")

    edit_records(run_folder, strip)
    results = write_report(run_folder)
    assert results["equal_learning"]["kl"]["gain"] is None
    assert "cannot be compared" in results["headline"]
    assert "block_expansion learned" in " ".join(results["findings"])
    assert "block_expansion" in printed(render_results(results))
    assert results["headline"] in (run_folder / "report.html").read_text()


def test_headline_of_a_first_arm_that_forgot_less(run_folder):
    headline = collect_results(run_folder)["headline"]
    assert "block_expansion forgot less than full" in headline
    assert "not the better choice" not in headline


def test_headline_says_it_when_the_first_arm_is_not_better(tmp_path):
    swapped = {"full": ARMS["full"], "block_expansion": ARMS["block_expansion"]}
    results = write_report(write_run(tmp_path / "run", swapped))
    assert "full forgot more than block_expansion" in results["headline"]
    assert "not the better choice" in results["headline"]
    assert results["headline"] in (tmp_path / "run" / "report.html").read_text()


def test_a_gain_whose_interval_includes_zero_is_not_called_learning(run_folder):
    def doubtful(one):
        if one["step"]:
            one["learn"]["change"] = {"value": -0.01, "low": -0.03, "high": 0.01}

    edit_records(run_folder, doubtful)
    findings = " ".join(collect_results(run_folder)["findings"])
    assert "block_expansion did not measurably learn" in findings
    assert "block_expansion learned" not in findings


def test_terminal_shows_every_arm_and_one_evaluation(run_folder):
    results = collect_results(run_folder)
    text = printed(render_results(results))
    assert "block_expansion" in text and "full" in text and results["headline"] in text
    gain = -results["arms"][0]["after"]["learn"]["change"]["value"]
    assert f"{gain:+.3f}" in text
    after = results["arms"][0]["after"]
    shown = printed(render_evaluation(after, title="[red]title"))
    assert "[red]title" in shown and f"{after['learn']['loss']['value']:.3f}" in shown


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no run folder"):
        write_report(tmp_path)


def test_a_damaged_file_is_named(run_folder):
    (run_folder / "arms" / "full" / "summary.json").write_text("{")
    with pytest.raises(DataError, match=r"full/summary\.json"):
        write_report(run_folder)
