"""A fine-tuning as a stage: what is learned, how it goes on, what it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxrecipes.checkpoint.huggingface import import_checkpoint
from jaxrecipes.checkpoint.random_model import write_random_model
from jaxrecipes.config.experiment import ModelSection
from jaxrecipes.config.tuning import TuningSection, tuning_conflicts
from jaxrecipes.data.store import open_prepared
from jaxrecipes.durable import folder_entries
from jaxrecipes.errors import DataError
from jaxrecipes.experiment import arm as arm_module
from jaxrecipes.experiment import tuning
from jaxrecipes.experiment.tuning import Tuned, tune
from jaxrecipes.params.paths import flatten
from tests.experiment.small import CHAT_TEMPLATE

ROWS = [{"id": str(n), "prompt": f"Say {n}: ", "completion": f"{n} is said"} for n in range(12)]
MODEL = ModelSection(checkpoint="random:tiny-llama", compute_dtype="float32")


def section(**changes: Any) -> TuningSection:
    train = {
        "steps": 4,
        "batch_size": 2,
        "optimizer": {"learning_rate": 1e-2},
        "checkpoint": {"every_steps": 1},
    }
    return TuningSection.model_validate({"length": 64, "train": train, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    write_random_model(folder, "tiny-llama", seed=0)
    return folder


def tuned(base: Path, folder: Path, *, rows: Any = ROWS, seed: int = 0, **changes: Any) -> Tuned:
    return tune(
        "stage",
        base_folder=base,
        rows=rows,
        section=section(**changes),
        model=MODEL,
        folder=folder,
        seed=seed,
        console=Console(quiet=True),
    )


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {
        path: np.asarray(leaf) for path, leaf in flatten(import_checkpoint(folder).params).items()
    }


def test_a_killed_stage_goes_on_and_ends_as_one_that_was_not(base, tmp_path, monkeypatch):
    whole = tuned(base, tmp_path / "whole")
    assert whole.summary["steps"] == 4 and whole.summary["examples"] == len(ROWS)
    assert sorted(path.name for path in (tmp_path / "whole").iterdir() if path.is_dir()) == [
        "final"
    ]
    plain, started = arm_module.run_steps, []

    def stopping(step, state, frozen, batches, settings, *, record, **functions):
        def recording(number, values):
            started.append(number)
            record(number, values)
            if len(started) == 3:
                raise KeyboardInterrupt

        return plain(step, state, frozen, batches, settings, record=recording, **functions)

    monkeypatch.setattr(arm_module, "run_steps", stopping)
    with pytest.raises(KeyboardInterrupt):
        tuned(base, tmp_path / "killed")
    again = tuned(base, tmp_path / "killed")
    assert started == [1, 2, 3, 3, 4]  # the third step was not saved yet
    first, second = weights(whole.folder), weights(again.folder)
    assert all(np.array_equal(first[path], second[path]) for path in first)
    before = weights(base)
    assert all(not np.array_equal(first[path], before[path]) for path in first)
    assert again.key == whole.key and not again.reused
    # A third time nothing runs at all, and nothing is written.
    entries = folder_entries(tmp_path / "killed")
    assert tuned(base, tmp_path / "killed").reused and len(started) == 5
    assert folder_entries(tmp_path / "killed") == entries
    other = tuned(base, tmp_path / "killed", rows=ROWS[:-1])
    assert other.key != again.key and not other.reused


def test_the_loss_is_of_the_answer_and_its_end_only(base, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "_WORK", ())
    tuned(base, tmp_path / "one")
    prepared, tokenizer = (
        open_prepared(tmp_path / "one" / "data"),
        AutoTokenizer.from_pretrained(base),
    )
    learned = []
    for row in range(len(prepared)):
        arrays = prepared[row]
        targets = np.flatnonzero(arrays["loss_mask"])
        for run in np.split(targets, np.flatnonzero(np.diff(targets) > 1) + 1):
            learned.append(tokenizer.decode(arrays["token_ids"][run]))
    assert sorted(learned) == sorted(f"{row['completion']}{tokenizer.eos_token}" for row in ROWS)


def test_adapters_are_merged_and_chats_bring_their_template(base, tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": "A number."},
            ]
        }
        for n in range(4)
    ]
    lora = {"rank": 2, "targets": ["q_proj"]}
    supervise = {"chat_template": CHAT_TEMPLATE}
    found = tuned(base, tmp_path / "l", rows=rows, method="lora", lora=lora, supervise=supervise)
    assert found.adapter is not None and (found.adapter / "adapter_config.json").exists()
    before, after = weights(base), weights(found.folder)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed and all(path.endswith("query/kernel") for path in changed)
    assert AutoTokenizer.from_pretrained(found.folder).chat_template == CHAT_TEMPLATE
    assert AutoModelForCausalLM.from_pretrained(found.folder).config.num_hidden_layers > 0


def test_no_rows_are_an_error_and_so_are_options_that_do_not_fit(base, tmp_path):
    with pytest.raises(DataError, match="no row to learn from"):
        tuned(base, tmp_path / "none", rows=[])
    wrong = section(
        method="lora",
        train={"batch_size": 3, "micro_batch_size": 2, "optimizer": {"learning_rate": 1e-3}},
    )
    keys = [key for key, _ in tuning_conflicts(wrong, "float32", "tuning")]
    assert keys == ["tuning.train.steps", "tuning.train.micro_batch_size", "tuning.lora"]
