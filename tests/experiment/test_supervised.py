"""A whole run on chats: only what the assistant writes is learned."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from transformers import AutoTokenizer

from jaxrecipes import cli
from jaxrecipes.config import load_config
from jaxrecipes.data.store import open_prepared
from jaxrecipes.experiment.inspect import preview
from tests.experiment.small import CHAT_TEMPLATE, chat_config, write_config

END = "<|endoftext|>"
ANSWERS = [f"It is {'warm' if n % 3 else 'cold'}, number {n}." for n in range(24)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("supervised")
    assert (
        cli.main(["run", str(write_config(folder / "c.yaml", chat_config(folder, ANSWERS)))]) == 0
    )
    return folder / "out"


def supervised_texts(folder: Path, tokenizer: Any) -> list[str]:
    """What the loss of a set is taken of, one text a run of targets."""
    prepared = open_prepared(folder)
    texts = []
    for row in range(len(prepared)):
        arrays = prepared[row]
        targets = np.flatnonzero(arrays["loss_mask"])
        for run in np.split(targets, np.flatnonzero(np.diff(targets) > 1) + 1):
            texts.append(tokenizer.decode(arrays["token_ids"][run]))
    return texts


def test_training_and_measuring_see_the_answers_only(finished):
    tokenizer = AutoTokenizer.from_pretrained(finished / "arms" / "full" / "final" / "model")
    sets = {name: finished / "data" / name for name in ("learn_train", "learn_held_out")}
    found = {name: supervised_texts(folder, tokenizer) for name, folder in sets.items()}
    wanted = {f"{answer}{END}" for answer in ANSWERS}
    assert len(found["learn_train"]) > 10 and len(found["learn_held_out"]) == 2
    assert set(found["learn_train"]) < wanted and set(found["learn_held_out"]) < wanted
    assert not set(found["learn_train"]) & set(found["learn_held_out"])
    manifest = json.loads((sets["learn_train"] / "manifest.json").read_text())
    assert manifest["shape"] == "chat"
    steps = (finished / "arms" / "full" / "metrics.jsonl").read_text().splitlines()
    counted = [json.loads(line).get("supervised_tokens") for line in steps]
    assert any(counted) and max(filter(None, counted)) < manifest["tokens"] / 2


def test_the_exported_model_carries_the_template_it_was_trained_with(finished):
    model = finished / "arms" / "full" / "final" / "model"
    assert (model / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert AutoTokenizer.from_pretrained(model).chat_template == CHAT_TEMPLATE


def test_the_key_covers_template_and_turns(finished):
    parts = json.loads((finished / "data" / "learn_train" / "manifest.json").read_text())
    assert {"chat_template", "turns", "overlong", "shape"} <= set(parts["key_parts"]["supervision"])


def test_preview_names_the_shape_and_colours_the_answers(tmp_path):
    config = load_config(write_config(tmp_path / "c.yaml", chat_config(tmp_path, ANSWERS)))
    console = Console(file=io.StringIO(), width=100, record=True, force_terminal=True)
    assert preview(config, console=console) is None
    styled = console.export_text(styles=True, clear=False)
    plain = console.export_text()
    assert "chat" in plain and "messages: messages" in plain
    answer = next(answer for answer in ANSWERS if answer in plain)
    assert f"\x1b[32m{answer}{END}" in styled  # green
    assert "supervised, the model learns to write it" in plain


def test_without_a_template_the_way_out_is_named(tmp_path, capsys):
    config = chat_config(tmp_path, ANSWERS)
    del config["data"]["supervise"]
    assert cli.main(["run", str(write_config(tmp_path / "c.yaml", config))]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "no chat template" in said and "data.supervise.chat_template" in said


def test_supervised_examples_do_not_see_each_other(tmp_path, capsys):
    config = chat_config(tmp_path, ANSWERS)
    config["data"]["attend"] = "context"
    assert cli.main(["run", str(write_config(tmp_path / "c.yaml", config))]) == 2
    assert "must not see each other" in " ".join(capsys.readouterr().err.split())
