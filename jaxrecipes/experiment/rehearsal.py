"""An experiment of recipe self_synthesized_rehearsal: tasks one after the other, arm by arm.

What arms have in common is made once: the base's instances, and every model whose history is the
same (the first task's is that of all arms). Each piece of work has a folder of its own that is
found again by the hash of what shaped it, and inside of it goes on at the same step or request.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from rich.console import Console

from jaxrecipes import __version__
from jaxrecipes.checkpoint.encoder import import_encoder
from jaxrecipes.checkpoint.huggingface import Imported, import_checkpoint
from jaxrecipes.config import config_hash
from jaxrecipes.config.penalty import PenaltySection
from jaxrecipes.config.rehearsal import (
    RehearsalArm,
    RehearsalConfig,
    RehearsalSection,
    rehearsal_arms,
)
from jaxrecipes.durable import hash_values, write_json, write_json_lines
from jaxrecipes.experiment.anchor import FISHER_FOLDER
from jaxrecipes.experiment.base_model import BaseModel, locate_base
from jaxrecipes.experiment.inspect import report
from jaxrecipes.experiment.run import claim_folder, enable_compilation_cache, locked_folder
from jaxrecipes.experiment.task_sequence import (
    TaskScores,
    draw_demonstrations,
    fingerprint_of,
    local_teacher,
    prepare_tests,
    read_tasks,
    rows_of,
)
from jaxrecipes.experiment.tuning import tune
from jaxrecipes.generate.ask import AskProgress, ask
from jaxrecipes.generate.instances import Instance
from jaxrecipes.generate.local_teacher import LocalTeacher
from jaxrecipes.generate.reply_store import ReplyStore
from jaxrecipes.generate.sampling import Sampling
from jaxrecipes.generate.teacher import Reply, Request
from jaxrecipes.neighbors.embed import embed_texts
from jaxrecipes.neighbors.own_states import mean_state_vectors
from jaxrecipes.neighbors.quotas import rank_at_random, rank_by_cluster
from jaxrecipes.recipes.self_synthesized_rehearsal import (
    Candidates,
    Synthesis,
    Task,
    choose_set,
    stage_rows,
    synthesise,
    wanted_count,
)
from jaxrecipes.report.rehearsal import REHEARSAL_FILE
from jaxrecipes.stages import run_stage
from jaxrecipes.train.signals import termination_as_error

_SAY_EVERY = 32


def run(config: RehearsalConfig, *, console: Console) -> None:
    """Runs an experiment, or goes on with it where it stopped.

    Args:
        config: The experiment.
        console: For everything that is said.

    Raises:
        JaxrecipesError: Of the many that its parts raise; each has its exit code.
    """
    output = Path(config.output)
    arms = rehearsal_arms(config)
    with termination_as_error(), locked_folder(output):
        hashes = {arm.name: hash_values(arm.rehearsal.model_dump()) for arm in arms}
        claim_folder(config, hashes, output)
        enable_compilation_cache(output)
        base = locate_base(
            config.model.checkpoint,
            config.model.revision,
            output,
            seed=config.seed,
            console=console,
        )
        tasks = read_tasks(config)
        rows = prepare_tests(config, tasks, base, output / "data", console)
        replies = ReplyStore(output / "replies.sqlite")
        scores = TaskScores(config, tasks, rows, base, replies, console)
        _Sequence(config, tasks, base, scores, replies, output, console).arms(arms)
        report(output, console=console)


@dataclass(frozen=True)
class _Model:
    """A model on the way: where it is, and the hash of its whole history."""

    folder: Path
    key: str
    stage: Path | None = None


class _Sequence:
    """What the arms of one run share."""

    def __init__(
        self,
        config: RehearsalConfig,
        tasks: Sequence[Task],
        base: BaseModel,
        scores: TaskScores,
        replies: ReplyStore,
        output: Path,
        console: Console,
    ) -> None:
        self.config, self.tasks, self.base, self.scores = config, tasks, base, scores
        self.replies, self.output, self.console = replies, output, console
        self.start = _Model(base.folder, base.fingerprint)
        self.records: list[dict[str, Any]] = []
        self._imported: Imported | None = None

    def arms(self, arms: Sequence[RehearsalArm]) -> None:
        untrained = self.scores(
            "base", self.start.folder, self.start.key, self.output / "base_scores"
        )
        for arm in arms:
            record: dict[str, Any] = {
                "name": arm.name,
                "rehearsal": arm.rehearsal.model_dump(exclude_none=True),
                "scores": [untrained],
                "sets": {},
                "stages": [],
                "model": None,
            }
            self.records.append(record)
            if arm.rehearsal.method == "multitask":
                self._multitask(arm, record)
            else:
                self._in_order(arm, record)
            self._write()

    def _multitask(self, arm: RehearsalArm, record: dict[str, Any]) -> None:
        rows = [row for task in self.tasks for row in rows_of(task, task.train)]
        model = self._tuned("all", self.start, rows, None, record)
        # The models in between do not exist.
        record["scores"] += [None] * (len(self.tasks) - 1)
        record["scores"].append(self._measured(arm, model))

    def _in_order(self, arm: RehearsalArm, record: dict[str, Any]) -> None:
        model, sets = self.start, []
        for number, task in enumerate(self.tasks):
            rows = stage_rows(rows_of(task, task.train), sets)
            penalty = self._penalty(arm.rehearsal, number, model)
            model = self._tuned(f"{number + 1}-{task.name}", model, rows, penalty, record)
            record["scores"].append(self._measured(arm, model))
            self._write()
            if number < len(self.tasks) - 1 and arm.rehearsal.method != "none":
                kept = self._set(arm, task, model, record)
                sets.append(rows_of(task, kept, "repeated"))

    def _measured(self, arm: RehearsalArm, model: _Model) -> dict[str, Any]:
        assert model.stage is not None
        return self.scores(arm.name, model.folder, model.key, model.stage / "scores")

    def _tuned(
        self,
        name: str,
        before: _Model,
        rows: Sequence[Mapping[str, str]],
        penalty: PenaltySection | None,
        record: dict[str, Any],
    ) -> _Model:
        """Trains a stage, in a folder that arms with the same history share."""
        options = self.config.tuning.model_dump()
        del options["train"]["trackers"], options["train"]["checkpoint"]
        held = penalty and penalty.model_dump(exclude={"sources", "earlier"})
        history = {
            "before": before.key,
            "rows": hash_values({"rows": list(rows)}),
            "options": options,
            "penalty": held,
            "seed": self.config.seed,
        }
        stage = self.output / "models" / f"{name}-{hash_values(history)[:12]}"
        section = self.config.tuning
        if penalty is not None:
            train = section.train.model_copy(update={"penalty": penalty})
            section = section.model_copy(update={"train": train})
        tuned = tune(
            name,
            base_folder=before.folder,
            rows=rows,
            section=section,
            model=self.config.model,
            folder=stage,
            seed=self.config.seed,
            console=self.console,
            mesh=self.config.mesh,
        )
        spent = {key: tuned.summary[key] for key in ("seconds", "steps")}
        record["stages"].append({"name": name, "rows": len(rows), **spent})
        record["model"] = str(tuned.folder.relative_to(self.output))
        return _Model(tuned.folder, tuned.key, stage)

    def _penalty(
        self, section: RehearsalSection, number: int, before: _Model
    ) -> PenaltySection | None:
        """Writes the penalty of a stage; the first task has nothing to hold on to."""
        penalty = section.penalty
        if penalty is None or penalty.kind == "none" or number == 0:
            return None
        if penalty.kind != "ewc":
            return penalty
        task = self.tasks[number - 1]
        path = self.output / "data" / f"{task.name}.train.jsonl"
        write_json_lines(path, rows_of(task, task.train))
        values = penalty.model_dump(exclude_none=True) | {"sources": [{"source": str(path)}]}
        if number > 1:
            assert before.stage is not None
            values["earlier"] = str(before.stage / FISHER_FOLDER)
        else:
            for name in ("accumulate", "decay"):
                values.pop(name, None)
        return PenaltySection.model_validate(values)

    def _set(
        self, arm: RehearsalArm, task: Task, latest: _Model, record: dict[str, Any]
    ) -> list[Instance]:
        """Makes the instances of a task that later ones are learned with, or reads them."""
        section = arm.rehearsal
        counts: dict[str, Any] = {}
        if section.method == "synthetic":
            candidates = self._candidates(task, section)
            instances, counts["synthesis"] = candidates.instances, dict(candidates.counts)
        else:
            instances = task.train
        wanted = wanted_count(section.share, len(task.train))
        shape = section.model_dump(include={"method", "share", "selection", "clusters", "refine"})
        inputs = {
            "code": __version__,
            "options": shape,
            "candidates": hash_values({"all": [[one.input, one.output] for one in instances]}),
            "task": fingerprint_of(task, self.config),
            "encoder": self.config.encoder,
            "base": self.base.fingerprint,
            "longest_output": self.config.synthesis.longest_output,
            "latest": None if section.refine == "never" else latest.key,
            "seed": self.config.seed,
        }
        folder = self.output / "sets" / f"{task.name}-{hash_values(inputs)[:12]}"

        def build(target: Path) -> None:
            made = choose_set(
                task,
                instances,
                wanted,
                lambda texts: self._ranked(section, texts),
                refine=section.refine,
                relabel=lambda requests: self._relabelled(task, latest, requests),
                longest_output=self.config.synthesis.longest_output,
            )
            rows = [{"input": one.input, "output": one.output} for one in made.instances]
            write_json(target / "set.json", {"instances": rows, "counts": dict(made.counts)})

        stage = run_stage(folder, inputs, build)
        found = json.loads((stage.folder / "set.json").read_text(encoding="utf-8"))
        counts |= found["counts"]
        record["sets"][task.name] = counts
        short = counts["chosen"] < counts["wanted"]
        self.console.print(
            f"{arm.name}: repeats {counts['chosen']} of {counts['candidates']} instances of "
            f"{task.name}"
            + (f"; {counts['wanted']} were wanted, the report says what was rejected" * short),
            style="yellow" if short else None,
            highlight=False,
        )
        return [Instance(row["input"], row["output"]) for row in found["instances"]]

    def _candidates(self, task: Task, section: RehearsalSection) -> Candidates:
        """Has the base write instances, or reads them: every arm that asks alike shares them."""
        options, seed = self.config.synthesis, self.config.seed
        needs_output = section.refine == "never"
        wanted = wanted_count(section.share, len(task.train))
        enough = None if options.enough is None else math.ceil(options.enough * wanted)
        inputs = {
            "code": __version__,
            "base": self.base.fingerprint,
            "task": fingerprint_of(task, self.config),
            "options": options.model_dump(),
            "compute_dtype": self.config.model.compute_dtype,
            "needs_output": needs_output,
            "enough": enough,
            "seed": seed,
        }
        folder = self.output / "synthetic" / f"{task.name}-{hash_values(inputs)[:12]}"

        def build(target: Path) -> None:
            teacher = self._teacher(self.start, self._base())
            made = synthesise(
                task,
                draw_demonstrations(task, options.demonstrations, seed=seed),
                Synthesis(
                    Sampling(
                        temperature=options.temperature,
                        top_p=options.top_p,
                        repetition_penalty=options.repetition_penalty,
                    ),
                    samples=options.samples,
                    max_new_tokens=options.max_new_tokens,
                    one_each=options.instances == "one",
                    longest_input=options.longest_input,
                    longest_output=options.longest_output,
                    copied_words=options.copied_words,
                    copied_share=options.copied_share,
                ),
                lambda requests: self._asked(f"base writes {task.name}", teacher, requests),
                seed=seed,
                needs_output=needs_output,
                count_tokens=lambda text: len(self.base.tokenizer(text)["input_ids"]),
                enough=enough,
            )
            rows = [{"input": one.input, "output": one.output} for one in made.instances]
            write_json(target / "candidates.json", {"instances": rows, "counts": dict(made.counts)})

        stage = run_stage(folder, inputs, build)
        found = json.loads((stage.folder / "candidates.json").read_text(encoding="utf-8"))
        instances = tuple(Instance(row["input"], row["output"]) for row in found["instances"])
        return Candidates(instances, found["counts"])

    def _relabelled(
        self, task: Task, latest: _Model, requests: Sequence[Request]
    ) -> Mapping[str, Reply]:
        teacher = self._teacher(latest, import_checkpoint(latest.folder))
        return self._asked(f"latest model answers {task.name}", teacher, requests)

    def _asked(
        self, what: str, teacher: LocalTeacher, requests: Sequence[Request]
    ) -> Mapping[str, Reply]:
        def say(state: AskProgress) -> None:
            if state.done == state.total or (state.done and state.done % _SAY_EVERY == 0):
                self.console.print(f"{what}: {state.done} of {state.total}", highlight=False)

        return ask(teacher, requests, store=self.replies, progress=say)

    def _teacher(self, model: _Model, imported: Imported) -> LocalTeacher:
        section = self.config
        return local_teacher(
            imported, self.base, model.key, section.evaluate.slots, section.model.compute_dtype
        )

    def _base(self) -> Imported:
        if self._imported is None:
            self._imported = import_checkpoint(self.base.folder)
        return self._imported

    def _ranked(self, section: RehearsalSection, texts: Sequence[str]) -> list[list[int]]:
        seed = self.config.seed
        if section.selection == "random":
            return rank_at_random(len(texts), seed=seed)
        if self.config.encoder != "own":
            vectors = embed_texts(texts, import_encoder(self.config.encoder))
        else:
            base = self._base()
            limit = base.config.max_position_embeddings
            vectors = mean_state_vectors(
                base.config,
                base.params,
                [self.base.tokenizer(text)["input_ids"][:limit] for text in texts],
                compute_dtype=jnp.dtype(self.config.model.compute_dtype),
            )
        return rank_by_cluster(vectors, section.clusters, seed=seed)

    def _write(self) -> None:
        """Writes what the report needs, as far as it is known."""
        write_json(
            self.output / REHEARSAL_FILE,
            {
                "schema": 1,
                "recipe": self.config.recipe,
                "config": config_hash(self.config),
                "model": self.config.model.checkpoint,
                "tasks": [
                    {"name": task.name, "train": len(task.train), "test": len(task.test)}
                    for task in self.tasks
                ],
                "arms": self.records,
            },
        )
