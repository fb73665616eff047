"""The rounds of one run of recipe llm2llm: train, ask, write new items, again."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxrecipes import __version__
from jaxrecipes.config.llm2llm import Llm2llmConfig
from jaxrecipes.data.task_items import TaskItem
from jaxrecipes.durable import hash_values, write_json, write_json_lines
from jaxrecipes.evaluate.answer_tasks import AnswerTask
from jaxrecipes.experiment.augmenting import Augmenter, Manner, Written
from jaxrecipes.experiment.base_model import BaseModel
from jaxrecipes.experiment.student import answers_of, open_student
from jaxrecipes.experiment.tuning import tune, tuning_inputs
from jaxrecipes.generate.reply_store import ReplyStore
from jaxrecipes.recipes.llm2llm import (
    Record,
    Targets,
    choose_targets,
    chosen_round,
    draw_evenly,
    extend,
    why_stop,
)
from jaxrecipes.stages import run_stage

ROUND, DATA, NEW, REJECTS = "round.json", "data.jsonl", "new.jsonl", "rejects.jsonl"
Trace = list[dict[str, Any]]


@dataclass(frozen=True)
class TaskData:
    """What a task is made of.

    Attributes:
        task: How it is put and answered.
        seeds: Items to learn from.
        dev: Items by which a round is chosen; may be empty.
        test: Items that are reported.
    """

    task: AnswerTask
    seeds: list[TaskItem]
    dev: list[TaskItem]
    test: list[TaskItem]


@dataclass(frozen=True)
class Plan:
    """What an arm does in its rounds.

    Attributes:
        rounds: Rounds of new items.
        targets: After which items new ones are written.
        counts: New items of each round; None: one for each target, times `per_item`.
        steps: Optimizer steps of each training, the first one included; None: as train says.
        manner: How the teacher is asked.
        first: Items that are there from the start beside the seeds.
    """

    rounds: int
    targets: Targets = "wrong_seeds"
    counts: tuple[int, ...] | None = None
    steps: tuple[int, ...] | None = None
    manner: Manner = "similar"
    first: tuple[Record, ...] = field(default=())

    def key(self) -> dict[str, Any]:
        """Returns what shapes the rounds, for the identity of their stages."""
        values = {name: getattr(self, name) for name in ("targets", "counts", "steps", "manner")}
        return {**values, "rounds": self.rounds, "first": [one.id for one in self.first]}


@dataclass(frozen=True)
class Run:
    """One run of one arm, with what all of them share.

    Attributes:
        config: The experiment.
        base: The model that every round starts from.
        data: The task.
        augmenter: Asks the teacher.
        folder: The run's folder.
        name: The arm and the seed, for lines on the console.
        seed: The run's seed.
        keeps_student: The chosen student stays on disk.
        console: Where to say what is done.
    """

    config: Llm2llmConfig
    base: BaseModel
    data: TaskData
    augmenter: Augmenter
    folder: Path
    name: str
    seed: int
    keeps_student: bool
    console: Console

    def rounds(self, seeds: Sequence[Record], plan: Plan) -> Trace:
        """Runs all rounds, or finds them done.

        Args:
            seeds: The first training set, without `plan.first`.
            plan: What the arm does.

        Returns:
            What `round.json` of each round says, in order.
        """
        records = [*seeds, *plan.first]
        trace: Trace = []
        while not trace or not trace[-1]["stop"]:
            number = len(trace)
            folder = self.folder / f"round-{number}"
            inputs = self._inputs(records, plan, number, trace)
            build = partial(
                self._round, folder=folder, records=records, plan=plan, trace=list(trace)
            )
            found = run_stage(folder / "done", inputs, build)
            state = json.loads((found.folder / ROUND).read_text(encoding="utf-8"))
            if found.reused:
                self.console.print(f"{self.name} round {number}: done before", highlight=False)
            new = read_records(found.folder / NEW)
            matters = plan.targets != "uniform"
            wrong = {key for key, right in state["right"].items() if not right}
            records = extend(records, new, wrong if matters and new else None)
            trace.append(state)
            self._tidy(trace)
        return trace

    def student_folder(self, number: int) -> Path:
        """Returns where the student of a round is, while it is kept."""
        return self.folder / f"round-{number}" / "student" / "final" / "model"

    def _section(self, plan: Plan, number: int) -> Any:
        section = self.config.tuning
        if plan.steps is None:
            return section
        steps = plan.steps[min(number, len(plan.steps) - 1)]
        train = section.train.model_copy(update={"steps": steps, "epochs": None})
        return section.model_copy(update={"train": train})

    def _rows(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        task = self.data.task
        return [task.row(record.id, record.question, record.answer) for record in records]

    def _inputs(
        self, records: Sequence[Record], plan: Plan, number: int, trace: Trace
    ) -> dict[str, Any]:
        """Returns everything that determines what a round ends with."""
        section = self._section(plan, number)
        augment = self.config.augment
        items = {
            name: hash_values({"items": [[one.id, one.question, one.answer] for one in part]})
            for name, part in (("dev", self.data.dev), ("test", self.data.test))
        }
        training = tuning_inputs(
            self._rows(records), section, self.config.model, self.base, self.seed
        )
        return {
            "code": __version__,
            "training": hash_values(training),
            "records": hash_values({"records": [record.to_json() for record in records]}),
            "task": [self.data.task.name, self.data.task.prompt(""), self.data.task.form],
            "probe": self.config.probe.model_dump(exclude={"slots"}),
            "augment": augment.model_dump(),
            "plan": plan.key(),
            "teacher": self.augmenter.identity,
            "dev_before": [state["dev"] for state in trace],
            **items,
        }

    def _round(
        self, target: Path, *, folder: Path, records: Sequence[Record], plan: Plan, trace: Trace
    ) -> None:
        number, console = len(trace), self.console
        label = f"{self.name} round {number}"
        tuned = tune(
            label,
            base_folder=self.base.folder,
            rows=self._rows(records),
            section=self._section(plan, number),
            model=self.config.model,
            folder=folder / "student",
            seed=self.seed,
            console=console,
            mesh=self.config.mesh,
            describe=self.keeps_student and number == 0,
        )
        state: dict[str, Any] = {
            "round": number,
            "records": len(records),
            "synthetic": sum(record.depth > 0 for record in records),
            "steps": tuned.summary["steps"],
            "loss": tuned.summary["loss"],
            "seconds": tuned.summary["wall_seconds"],
            "student": tuned.key,
        }
        with ReplyStore(folder / "answers.sqlite") as store:
            self._ask(state, store, tuned.folder, tuned.key, records, plan, label)
        written, stop = self._write(state, records, plan, trace, label)
        del state["student_said"]
        reasons = Counter(reject.reason for reject in written.rejects)
        state |= {
            "wanted": written.wanted,
            "kept": len(written.records),
            "rejected": dict(sorted(reasons.items())),
            "stop": stop,
        }
        write_json_lines(target / DATA, (record.to_json() for record in records))
        write_json_lines(target / NEW, (record.to_json() for record in written.records))
        write_json_lines(target / REJECTS, (vars(reject) for reject in written.rejects))
        write_json(target / ROUND, state)
        dev = "" if state["dev"] is None else f", dev {100 * state['dev']:.1f} %"
        console.print(
            f"{label}: {len(records):,} items, {state['wrong_seeds']} of {len(self.data.seeds)} "
            f"seeds wrong{dev}, test {100 * state['test']:.1f} %, {state['kept']} of "
            f"{state['wanted']} new items kept{'; ends: ' + stop if stop else ''}",
            highlight=False,
        )

    def _ask(
        self,
        state: dict[str, Any],
        store: ReplyStore,
        model: Path,
        key: str,
        records: Sequence[Record],
        plan: Plan,
        label: str,
    ) -> None:
        """Asks the student all there is to ask, and writes down what was right."""
        probe, task = self.config.probe, self.data.task
        student = open_student(
            model, key, slots=probe.slots, compute_dtype=self.config.model.compute_dtype
        )

        def ask(name: str, items: Sequence[TaskItem], samples: int) -> dict[str, list[str]]:
            return answers_of(
                student,
                task,
                items,
                probe,
                store=store,
                console=self.console,
                title=f"{label}: {name}",
                samples=samples,
                seed=self.seed,
            )

        asked = [record for record in records if record.depth == 0 or plan.targets == "all_wrong"]
        probed = [TaskItem(one.id, one.question, one.answer) for one in asked]
        said = ask("seeds", probed, probe.samples)
        right = {one.id: task.majority_is_right(said[one.id], one.answer) for one in probed}
        state["right"] = right
        seeds = [record.id for record in records if record.depth == 0]
        state["wrong_seeds"] = sum(not right[key] for key in seeds)
        state["student_said"] = {key: texts[0] for key, texts in said.items()}
        for name, items in (("dev", self.data.dev), ("test", self.data.test)):
            answers = ask(name, items, 1) if items else {}
            hits = [task.is_right(task.read(answers[one.id][0]), one.answer) for one in items]
            state[name] = sum(hits) / len(hits) if hits else None
            state[f"{name}_right"] = [int(hit) for hit in hits]

    def _write(
        self,
        state: dict[str, Any],
        records: Sequence[Record],
        plan: Plan,
        trace: Trace,
        label: str,
    ) -> tuple[Written, str]:
        """Lets the teacher write, unless the run ends here; returns why it ends, too."""
        number = state["round"]
        count = None if plan.counts is None or number >= plan.rounds else plan.counts[number]
        draw = self.seed * 1000 + number
        targets = choose_targets(records, state["right"], plan.targets, count=count, seed=draw)
        if plan.targets != "uniform":
            per_item = self.config.augment.per_item
            many = len(targets) * per_item if count is None else count
            targets = draw_evenly(targets, many, draw) if targets else []
        dev = [one["dev"] for one in [*trace, state] if one["dev"] is not None]
        options = {
            "round_number": number,
            "rounds": plan.rounds,
            "targets": len(targets),
            "dev": dev,
            "patience": self.config.augment.patience,
        }
        stop = why_stop(kept=None, **options)
        if stop:
            return Written(), stop
        written = self.augmenter.write(
            records,
            targets,
            round_number=number + 1,
            seed=self.seed,
            title=f"{label}: new items",
            manner=plan.manner,
            wrong={
                key: text for key, text in state["student_said"].items() if not state["right"][key]
            },
        )
        return written, why_stop(kept=len(written.records), **options)

    def _tidy(self, trace: Trace) -> None:
        """Removes students that are of no use any more; each is as large as the base."""
        dev = [state["dev"] for state in trace if state["dev"] is not None]
        best = chosen_round(dev, len(trace))
        for number in range(len(trace)):
            if number != best or (trace[-1]["stop"] and not self.keeps_student):
                shutil.rmtree(self.folder / f"round-{number}" / "student", ignore_errors=True)


def read_records(path: Path) -> list[Record]:
    """Reads the records that a round wrote."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Record(**json.loads(line)) for line in lines]


def replaced(records: Sequence[Record], questions: Sequence[str], name: str) -> list[Record]:
    """Makes other wordings of items records, whose answers stay.

    Args:
        records: The items, one for each wording.
        questions: The wordings.
        name: Who made them.
    """
    found = []
    for number, (record, question) in enumerate(zip(records, questions, strict=True)):
        made = replace(
            record,
            id=f"{name}-{number}-{record.id}",
            question=question,
            parent_id=record.id,
            depth=1,
            round=1,
            teacher=name,
            attempt=number,
        )
        found.append(made)
    return found
