"""Fine-tuning a decoder on supervised rows as one stage of a recipe that needs several of them.

The rows become the learn set of an experiment's arm, which `train_arm` trains as any other one: it
goes on at the next step when it was killed, and its model is written, read back and compared. A
finished stage is found again by the hash of everything that shaped it, and costs nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxrecipes import __version__
from jaxrecipes.checkpoint.huggingface import read_model_config
from jaxrecipes.config import Arm, Config
from jaxrecipes.config.experiment import ModelSection
from jaxrecipes.config.mesh import MeshSection
from jaxrecipes.config.tuning import TuningSection
from jaxrecipes.data.prepare import prepare
from jaxrecipes.durable import hash_file, hash_values, write_json, write_json_lines
from jaxrecipes.errors import DataError
from jaxrecipes.experiment.anchor import earlier_fingerprint
from jaxrecipes.experiment.arm import TrainedArm, train_arm
from jaxrecipes.experiment.base_model import BaseModel, locate_base
from jaxrecipes.experiment.data_sets import TrainingSets, penalty_sets
from jaxrecipes.experiment.devices import choose_devices
from jaxrecipes.experiment.finish import ADAPTER, MODEL, write_model
from jaxrecipes.experiment.penalty import make_penalty
from jaxrecipes.experiment.sources import source_spec, supervision
from jaxrecipes.hosts import ONE_HOST, Hosts
from jaxrecipes.sharding.host import on_host
from jaxrecipes.stages import run_stage, why_stale

ROWS, SUMMARY = "rows.jsonl", "summary.json"
_WORK = ("checkpoints", "data", "penalty", ROWS, ".data.lock")


@dataclass(frozen=True)
class Tuned:
    """A model that was fine-tuned.

    Attributes:
        folder: A Hugging Face folder: the whole model, adapters merged.
        adapter: The PEFT adapter by itself; None after full fine-tuning.
        summary: JSON values: `steps`, `tokens`, `rows` (packed), `examples`, `trained_parameters`,
            `seconds`, `loss` (of the last step) and what `experiment.summary` says of an arm.
        key: Hash of everything that shaped the model.
        reused: It was there before.
    """

    folder: Path
    adapter: Path | None
    summary: Mapping[str, Any]
    key: str
    reused: bool


def tune(
    name: str,
    *,
    base_folder: Path,
    rows: Sequence[Mapping[str, Any]],
    section: TuningSection,
    model: ModelSection,
    folder: Path,
    seed: int,
    console: Console,
    mesh: MeshSection | None = None,
    hosts: Hosts = ONE_HOST,
    describe: bool = True,
) -> Tuned:
    """Fine-tunes a decoder, goes on with it where it stopped, or finds it done.

    Args:
        name: What is said on the progress line; unique in a run of several hosts.
        base_folder: The Hugging Face folder that is trained from.
        rows: Examples of one shape: `{prompt, completion}` with texts, or with lists of messages,
            or `{messages}`; `id` names one. Only what the assistant says is learned.
        section: How it is trained. Its chat template replaces the base's.
        model: Number type and attention kernel; the checkpoint is named in the model's card.
        folder: The stage's own folder.
        seed: Decides the order of rows and the adapters.
        console: For the header and the progress line.
        mesh: How devices are arranged; None: all hold a part of the weights.
        hosts: Who trains; the first writes.
        describe: Say before the first step what trains and what a step takes.

    Returns:
        The fine-tuned model.

    Raises:
        DataError: There are no rows, or one cannot be used; names it.
        DivergedError: Too many steps were skipped.
        PreemptedError: SIGTERM; the state was saved.
        InterruptedRunError: Ctrl-C; the state was saved.
    """
    if not rows:
        raise DataError(f"{name}: there is no row to learn from; expected at least one")
    base = locate_base(
        str(base_folder),
        None,
        folder,
        seed=seed,
        console=console,
        chat_template=section.supervise.chat_template,
    )
    arm = Arm(name, _config(section, model, mesh, folder, seed))
    inputs = {**tuning_inputs(rows, section, model, base, seed), **_penalty_inputs(arm.config)}
    final = folder / "final"
    key = hash_values(inputs)
    stale = hosts.say(f"{name}/stale", lambda: why_stale(final, inputs))
    if not stale:
        return _found(folder, key, reused=True)
    data = hosts.first(f"{name}/data", lambda: _prepare(arm, rows, base, folder, console))
    devices = choose_devices(arm.config, read_model_config(base.folder))
    trained = train_arm(
        name,
        arm.config,
        base.folder,
        data,
        folder,
        inputs,
        None,
        devices,
        hosts,
        console,
        describe=describe,
    )
    hosts.only_first(
        f"{name}/final", lambda: _finish(arm, trained, base, folder, inputs, len(rows), console)
    )
    return _found(folder, key, reused=False)


def tuning_inputs(
    rows: Sequence[Mapping[str, Any]],
    section: TuningSection,
    model: ModelSection,
    base: BaseModel,
    seed: int,
) -> dict[str, Any]:
    """Returns everything that determines what `tune` ends with; a `Tuned.key` is its hash.

    Args:
        rows: As for `tune`.
        section: Likewise.
        model: Likewise.
        base: The model that is trained from, with the section's chat template.
        seed: As for `tune`.
    """
    options = section.model_dump()
    # Where progress is saved and shown does not shape the model; the template's text does.
    del options["train"]["trackers"], options["train"]["checkpoint"]
    options["supervise"]["chat_template"] = base.chat_template
    for name in ("sources", "earlier") if options["train"]["penalty"] else ():
        del options["train"]["penalty"][name]  # what is in them counts, see `_penalty_inputs`
    return {
        "code": __version__,
        "base": base.fingerprint,
        "rows": hash_values({"rows": list(rows)}),
        "options": options,
        "compute_dtype": model.compute_dtype,
        "seed": seed,
    }


def _penalty_inputs(config: Config) -> dict[str, Any]:
    """Returns what determines a penalty besides its options, which name files."""
    section = config.train.penalty
    if section is None or make_penalty(section) is None:
        return {}
    files = [Path(source.source) for source in section.sources or ()]
    hashes = [hash_file(path) if path.is_file() else str(path) for path in files]
    return {"penalty": {"sources": hashes, "earlier": earlier_fingerprint(config)}}


def _config(
    section: TuningSection,
    model: ModelSection,
    mesh: MeshSection | None,
    folder: Path,
    seed: int,
) -> Config:
    """Writes the stage as the experiment that it would be by itself."""
    values = {
        "version": 1,
        "recipe": section.method,
        "seed": seed,
        "output": str(folder),
        "model": model.model_dump(),
        "lora": None if section.lora is None else section.lora.model_dump(exclude_unset=True),
        "data": {
            "length": section.length,
            "learn": [{"source": str(folder / ROWS)}],
            "supervise": section.supervise.model_dump(exclude_unset=True),
        },
        "train": section.train.model_dump(),
        "mesh": (mesh or MeshSection()).model_dump(),
    }
    return Config.model_validate(values)


def _prepare(
    arm: Arm, rows: Sequence[Mapping[str, Any]], base: BaseModel, folder: Path, console: Console
) -> TrainingSets:
    write_json_lines(folder / ROWS, rows)
    source = arm.config.data.learn[0]
    plain = partial(
        prepare,
        tokenizer=base.tokenizer,
        tokenizer_fingerprint=base.tokenizer_fingerprint,
        vocab_size=read_model_config(base.folder).vocab_size,
        length=arm.config.data.length,
        log=lambda line: console.print(line, style="dim", highlight=False),
    )
    prepared = plain(
        folder / "data",
        source_spec(source),
        supervision=supervision(source, arm.config.data.supervise),
    )
    penalty = penalty_sets(arm.config, folder / "penalty", plain)
    return TrainingSets({arm.name: [(prepared, 1.0)]}, {arm.name: penalty})


def _finish(
    arm: Arm,
    trained: TrainedArm,
    base: BaseModel,
    folder: Path,
    inputs: Mapping[str, Any],
    examples: int,
    console: Console,
) -> None:
    last = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    summary = {**trained.summary, "examples": examples, "loss": json.loads(last)["loss"]}

    def build(target: Path) -> None:
        write_model(target, arm, trained, base, _card(arm, summary), console)
        write_json(target / SUMMARY, summary)

    with on_host():
        run_stage(folder / "final", inputs, build)
    for name in _WORK:  # as large as the model, and of no use any more
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _found(folder: Path, key: str, *, reused: bool) -> Tuned:
    final = folder / "final"
    summary = json.loads((final / SUMMARY).read_text(encoding="utf-8"))
    adapter = final / ADAPTER
    return Tuned(final / MODEL, adapter if adapter.is_dir() else None, summary, key, reused)


def _card(arm: Arm, summary: Mapping[str, Any]) -> str:
    config = arm.config
    return f"""---
library_name: transformers
tags:
- jaxrecipes
---

# {arm.name}

`{config.model.checkpoint}` after a supervised fine-tuning ({config.recipe}) by jaxrecipes
{__version__}, a stage of a recipe: {summary["examples"]:,} examples, {summary["steps"]} steps of
{config.train.batch_size} x {config.data.length} tokens, {config.train.optimizer.name}, peak rate
{config.train.optimizer.learning_rate:g}, seed {config.seed}.
"""
