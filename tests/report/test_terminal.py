from __future__ import annotations

from rich.console import Console

from jaxrecipes.report.results import collect_results
from jaxrecipes.report.terminal import render_evaluation, render_results

from .conftest import ARMS, write_run


def rendered(renderable, width=80) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def test_a_run_fits_eighty_columns(run_folder):
    results = collect_results(run_folder)
    text = rendered(render_results(results))
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.split() for line in text.splitlines()]
    assert ["block_expansion", "+0.411", "0.021", "+0.019", "−1.2"] in lines
    assert ["full", "0.050", "+0.029"] in lines
    assert any(line[:4] == ["block_expansion", "17.7", "M", "152"] for line in lines)
    assert "At equal learning" in text


def test_one_arm_is_compared_with_none(tmp_path):
    folder = write_run(tmp_path / "one", {"full": ARMS["full"]})
    (folder / "arms" / "full" / "summary.json").unlink()
    text = rendered(render_results(collect_results(folder)))
    assert "difference from" not in text and "not finished" in text


def test_an_evaluation_shows_each_set(run_folder):
    record = collect_results(run_folder)["arms"][0]["after"]
    text = rendered(render_evaluation(record, title="some[bold]/checkpoint"))
    assert "some[bold]/checkpoint" in text
    assert "KL(base || model)" in text and "perplexity" in text and "% of 164" in text
    assert "keep" not in rendered(render_evaluation({**record, "keep": None}, title="t"))
