"""Whole runs of sdft_rewrite: what is learned, what is reported, and going on after a kill."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from jaxrecipes.config import Config, expand_arms, load_config
from jaxrecipes.data.prepare import prepare
from jaxrecipes.data.split import Split
from jaxrecipes.data.store import PreparedSet, open_prepared
from jaxrecipes.errors import ConfigError, DataError, JaxrecipesError
from jaxrecipes.experiment import rewritten_data
from jaxrecipes.experiment.base_model import BaseModel, locate_base
from jaxrecipes.experiment.data_sets import prepare_data
from jaxrecipes.experiment.rewritten_data import PROVENANCE, REJECTS, ROWS, Rewriting
from jaxrecipes.generate.program_teacher import ProgramTeacher
from jaxrecipes.generate.teacher import Reply, Request
from tests.experiment.small import chat_config, write_config

ANSWERS = [f"It is {'warm' if n % 3 else 'cold'}, and the number is {n}." for n in range(24)]
QUIET = Console(file=io.StringIO())


class Rewriter:
    """Writes what is told, and counts what it was asked; may die or fail."""

    def __init__(self, write: Any = None, dies_at: int | None = None):
        self.asked: list[Request] = []
        self._write = write or (lambda request: f"Well: {reference_of(request)}")
        self._dies_at = dies_at

    def __call__(self, request: Request) -> str | Reply:
        if len(self.asked) == self._dies_at:
            raise KeyboardInterrupt
        self.asked.append(request)
        return self._write(request)


def reference_of(request: Request) -> str:
    return request.messages[0].content.split("### Reference answer:\n")[1].split("\n\n###")[0]


def config_of(folder: Path, compare: Any = (), **section: Any) -> Config:
    config = chat_config(folder, ANSWERS)
    config["recipe"] = "sdft_rewrite"
    config["sdft_rewrite"] = {"samples": 2, "sampling": {"max_new_tokens": 8}, **section}
    config["compare"] = list(compare)
    return load_config(write_config(folder / "c.yaml", config))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = tmp_path_factory.mktemp("base")
    config = config_of(folder)
    return locate_base(
        config.model.checkpoint,
        None,
        folder,
        seed=0,
        console=QUIET,
        chat_template=config.data.supervise.chat_template,
    )


def rewritten(
    config: Config, base: BaseModel, folder: Path, monkeypatch: pytest.MonkeyPatch, writer: Rewriter
) -> tuple[list[PreparedSet], list[dict[str, Any]]]:
    """The training sets of the main arm, with a function in the teacher's place."""
    teacher = ProgramTeacher(writer, {})
    monkeypatch.setattr(rewritten_data, "make_teacher", lambda *_, **__: teacher)
    assert config.sdft_rewrite is not None
    rewriting = Rewriting(config, config.sdft_rewrite, base, folder / "rewritten", QUIET)
    sets, statistics = rewriting.training_sets(split_of(config), partial_prepare(config, base))
    return [prepared for prepared, _ in sets], statistics


def split_of(config: Config) -> Split:
    return Split("train", config.data.held_out, config.seed)


def partial_prepare(config: Config, base: BaseModel):
    def call(folder: Path, source: Any, **options: Any) -> PreparedSet:
        return prepare(
            folder,
            source,
            base.tokenizer,
            tokenizer_fingerprint=base.tokenizer_fingerprint,
            vocab_size=258,
            length=config.data.length,
            **options,
        )

    return call


def arrays_of(prepared: PreparedSet) -> list[dict[str, np.ndarray]]:
    return [prepared[row] for row in range(len(prepared))]


def original_set(config: Config, base: BaseModel, folder: Path) -> PreparedSet:
    data = prepare_data(
        config.model_copy(update={"recipe": "full", "sdft_rewrite": None}),
        [arm for arm in expand_arms(config) if arm.config.recipe == "full"],
        base,
        folder / "originals",
        QUIET,
    )
    return data.train["full"][0][0]


def lines_of(folder: Path, name: str) -> list[dict[str, Any]]:
    (path,) = (folder / "rewritten").glob(f"*/{name}")
    return list(map(json.loads, path.read_text().splitlines()))


def test_fallbacks_train_on_the_tokens_and_masks_of_the_originals(tmp_path, base, monkeypatch):
    config = config_of(tmp_path, [{"recipe": "full"}], most_fallback=1.0, task="numeric")
    writer = Rewriter(lambda request: "The number is 10000.")
    (prepared,), (statistics,) = rewritten(config, base, tmp_path, monkeypatch, writer)
    expected = original_set(config, base, tmp_path)
    for found, wanted in zip(arrays_of(prepared), arrays_of(expected), strict=True):
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)
    assert statistics["fallback"] == statistics["examples"] == len(expected.documents)
    assert statistics["reasons"] == {"another number": 2 * statistics["examples"]}
    assert statistics["chosen_nll"] is None


def test_rewritings_are_learned_behind_the_ordinary_prompt(tmp_path, base, monkeypatch):
    config = config_of(tmp_path, task="numeric", ratio=0.5)
    (prepared,), (statistics,) = rewritten(config, base, tmp_path, monkeypatch, Rewriter())
    text = "".join(
        base.tokenizer.decode(arrays["token_ids"][arrays["segment_ids"] > 0])
        for arrays in arrays_of(prepared)
    )
    learned = "".join(
        base.tokenizer.decode(arrays["token_ids"][arrays["loss_mask"]])
        for arrays in arrays_of(prepared)
    )
    assert "###" not in text and "eference" not in text
    assert "What is" in text and "What is" not in learned
    rows = lines_of(tmp_path, ROWS)
    provenance = lines_of(tmp_path, PROVENANCE)
    assert [row["id"] for row in rows] == [one["id"] for one in provenance]
    for row, one in zip(rows, provenance, strict=True):
        answer = row["messages"][-1]["content"]
        assert answer.startswith("Well: It is") == (one["status"] == "rewritten")
        assert answer.removeprefix("Well: ") in ANSWERS
        assert one["status"] in ("rewritten", "original")
    counts = {name: statistics[name] for name in ("rewritten", "copied", "fallback", "original")}
    assert sum(counts.values()) == statistics["examples"] == len(rows)
    assert counts["rewritten"] and counts["original"]
    assert learned.count("Well:") == counts["rewritten"]


def test_killed_anywhere_it_goes_on_at_the_same_request(tmp_path, base, monkeypatch):
    config = config_of(tmp_path)
    history: list[str] = []
    for dies_at in (5, 11, None):
        writer = Rewriter(dies_at=dies_at)
        try:
            sets, _ = rewritten(config, base, tmp_path, monkeypatch, writer)
        except KeyboardInterrupt:
            assert dies_at is not None
        history += [request.key for request in writer.asked]
    assert len(history) == len(set(history)) == 2 * len(sets[0].documents)
    # Another mixing ratio writes nothing anew.
    writer = Rewriter()
    rewritten(config_of(tmp_path, ratio=0.25), base, tmp_path, monkeypatch, writer)
    assert writer.asked == []


def test_rejects_are_kept_with_their_reason_and_too_many_stop_the_run(tmp_path, base, monkeypatch):
    def write(request: Request) -> str | Reply:
        if request.seed % 2:
            return "As the reference answer says, it is so."
        return Reply("", "It is cut", "length")

    config = config_of(tmp_path)
    with pytest.raises(DataError, match="for 100% of the answers.*at most 80%.*gives the request"):
        rewritten(config, base, tmp_path, monkeypatch, Rewriter(write))
    rejects = lines_of(tmp_path, REJECTS)
    assert {one["reason"] for one in rejects} == {"gives the request away", "cut off"}
    assert len({one["id"] for one in rejects}) == len(rejects)


def test_a_teacher_that_does_not_answer_stops_the_run_and_is_asked_again(
    tmp_path, base, monkeypatch
):
    config = config_of(tmp_path)
    gone = Rewriter(lambda request: Reply("", "", "failed", "the server is gone"))
    with pytest.raises(JaxrecipesError, match="unanswered; the first reason: the server is gone"):
        rewritten(config, base, tmp_path, monkeypatch, gone)
    back = Rewriter()
    rewritten(config, base, tmp_path, monkeypatch, back)
    assert len(back.asked) == len(gone.asked) > 0


def test_the_likeliest_sample_is_learned(tmp_path, base, monkeypatch):
    # A random model likes some bytes better than others, and says so alike for every example.
    config = config_of(tmp_path)
    texts = ["It is so and so.", "zzzzzzzzzzzzzzzz"]
    writer = Rewriter(lambda request: texts[request.seed % 2])
    rewritten(config, base, tmp_path, monkeypatch, writer)
    candidates = lines_of(tmp_path, "candidates.jsonl")
    chosen = {one["id"]: one for one in lines_of(tmp_path, PROVENANCE)}
    both = 0
    for row in candidates:
        nll = {sample: value for sample, value in row["nll"] if sample is not None}
        both += len({text for _, text in row["accepted"]}) == 2
        assert chosen[row["id"]]["chosen_nll"] == min(nll.values())
        assert nll[chosen[row["id"]]["sample"]] == min(nll.values())
    assert both


@pytest.mark.slow
def test_a_guard_of_meaning_rejects_what_is_far_from_the_answer(tmp_path, base, monkeypatch):
    config = config_of(
        tmp_path, semantic={"encoder": "random:tiny-bert", "least": 1.0}, most_fallback=1.0
    )
    _, (statistics,) = rewritten(config, base, tmp_path, monkeypatch, Rewriter())
    assert set(statistics["reasons"]) == {"another meaning"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "label"}, "sdft_rewrite.labels: is read where task is label, and needed there"),
        ({"sampling": {"temperature": 0.0}}, "sdft_rewrite.samples: temperature 0 writes the same"),
        ({"reference": "hidden", "wording": "math"}, "sdft_rewrite.wording: is read where the ref"),
        (
            {"teacher": {"kind": "openai", "base_url": "http://a:b@c/v1", "model": "m"}},
            "would be written into files",
        ),
    ],
)
def test_values_that_are_wrong_together_are_refused(tmp_path, change, said):
    with pytest.raises(ConfigError, match=said):
        config_of(tmp_path, **change)


def test_documents_have_no_answers_to_rewrite(tmp_path, base, monkeypatch):
    config = config_of(tmp_path)
    source = config.data.learn[0].model_copy(update={"source": "topics"})
    data = config.data.model_copy(update={"learn": [source]})
    config = config.model_copy(update={"data": data})
    with pytest.raises(DataError, match="these are documents without any"):
        rewritten(config, base, tmp_path, monkeypatch, Rewriter())


@pytest.mark.long
def test_a_whole_run_beside_its_baselines_reports_the_shares(tmp_path):
    from jaxrecipes.cli import main

    arms = [
        {"recipe": "full"},
        {
            "recipe": "sdft_rewrite",
            "name": "adapters",
            "lora": {"rank": 2},
            "sdft_rewrite": {"samples": 1, "most_fallback": 1.0, "reference": "hidden"},
        },
    ]
    config_of(tmp_path, arms, most_fallback=1.0)
    assert main(["run", str(tmp_path / "c.yaml")]) == 0
    output = tmp_path / "out"
    page = (output / "report.html").read_text()
    assert "Rewritten answers" in page and "no rewriting was accepted" in page
    card = (output / "arms" / "sdft_rewrite" / "final" / "model" / "README.md").read_text()
    assert "Answers that were rewritten before they were learned" in card
    assert (output / "arms" / "adapters" / "final" / "adapter").is_dir()
    assert not (output / "arms" / "full" / "rewrites.json").exists()
    prepared = [open_prepared(path) for path in output.glob("data/rewritten/*-packed")]
    assert len(prepared) == 2
    # The same command again finds everything done.
    before = (output / "data" / "rewritten" / "replies.sqlite").read_bytes()
    assert main(["run", str(tmp_path / "c.yaml")]) == 0
    assert (output / "data" / "rewritten" / "replies.sqlite").read_bytes() == before
