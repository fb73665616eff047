from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from jaxrecipes.report.page import write_report

from .conftest import ARMS, write_run

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    return checker


@pytest.fixture
def page(run_folder) -> str:
    write_report(run_folder)
    return (run_folder / "report.html").read_text()


def test_the_report_is_written_beside_the_run(run_folder):
    results = write_report(run_folder)
    assert json.loads((run_folder / "results.json").read_text()) == results
    plots = sorted(path.name for path in (run_folder / "plots").iterdir())
    assert plots == ["learned_forgotten.png", "losses.png", "training_loss.png"]
    assert not list(run_folder.glob("*.partial"))


def test_the_page_needs_nothing_from_elsewhere(page):
    tags = parse(page).tags
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        for name in ("src", "href", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "url(" not in page and "@import" not in page
    assert sum(tag == "img" for tag, _ in tags) == 3
    assert all(attributes["alt"] for tag, attributes in tags if tag == "img")


def test_text_of_the_run_cannot_become_markup(tmp_path):
    name = '<img src=x onerror="alert(1)">'
    arms = {"block_expansion": ARMS["block_expansion"], "full": ARMS["full"]}
    folder = write_run(tmp_path / "a & b", arms)
    summary = folder / "arms" / "full" / "summary.json"
    content = json.loads(summary.read_text())
    content["recipe"] = content["what_trains"][0]["leaves"] = name
    summary.write_text(json.dumps(content))
    environment = folder / "environment.json"
    environment.write_text(json.dumps({"platform": name, "packages": {name: name}}))
    write_report(folder)
    html = (folder / "report.html").read_text()
    checker = parse(html)
    assert "<script" not in html and name not in html
    assert not any("onerror" in attributes for _, attributes in checker.tags)
    text = "".join(checker.text)
    assert name in text and '<script>alert("config")</script>' in text and "a & b" in text


def test_the_page_shows_what_the_results_say(run_folder):
    results = write_report(run_folder)
    text = re.sub(r"\s+", " ", "".join(parse((run_folder / "report.html").read_text()).text))
    for sentence in [results["headline"], *results["findings"]]:
        assert re.sub(r"\s+", " ", sentence) in text
    ours = results["arms"][0]
    assert f"+{-ours['after']['learn']['change']['value']:.3f}" in text
    assert f"{ours['after']['keep']['kl']['value']:.3f}" in text
    for expected in (
        "17.7 M",
        "11.6% of all",
        "2.15 GiB",
        "28,311,552",
        "6, 13, 20, 27, 34",
        "jax 0.10.2",
    ):
        assert expected in text
    assert "libtpu" not in text


def test_reports_of_one_run_are_the_same_byte_for_byte(run_folder):
    write_report(run_folder)
    first = (run_folder / "report.html").read_bytes()
    write_report(run_folder)
    assert (run_folder / "report.html").read_bytes() == first


def test_one_arm_or_an_unfinished_one_makes_a_page_too(tmp_path):
    one = write_run(tmp_path / "one", {"full": ARMS["full"]})
    write_report(one)
    assert "equal learning</h2>" not in (one / "report.html").read_text()
    for name in ("summary.json", "metrics.jsonl"):
        (one / "arms" / "full" / name).unlink()
    records = (one / "arms" / "full" / "evaluations.jsonl").read_text().splitlines()
    first = json.loads(records[0])
    first["keep"] = first["choices"] = None
    (one / "arms" / "full" / "evaluations.jsonl").write_text(json.dumps(first) + "\n")
    write_report(one)
    html = (one / "report.html").read_text()
    assert "(not finished)" in html and parse(html).text
