"""The tasks of a sequence: their rows read and drawn, and every model measured on all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxrecipes import __version__
from jaxrecipes.checkpoint.huggingface import import_checkpoint, read_model_config
from jaxrecipes.config.data import SourceSection
from jaxrecipes.config.rehearsal import RehearsalConfig
from jaxrecipes.data.classification_rows import read_labelled
from jaxrecipes.data.example_sources import read_examples
from jaxrecipes.data.examples import Completion, Labelled
from jaxrecipes.data.prepare import prepare
from jaxrecipes.data.sources import SourceSpec
from jaxrecipes.data.tokenize_examples import Supervision
from jaxrecipes.durable import hash_values, write_json, write_json_lines
from jaxrecipes.errors import DataError
from jaxrecipes.evaluate.likelihood import evaluate_set
from jaxrecipes.evaluate.rouge import rouge_l, rouge_l_jieba
from jaxrecipes.evaluate.rows import EvaluationRows, rows_from_prepared
from jaxrecipes.experiment.base_model import BaseModel
from jaxrecipes.experiment.devices import local_execution, model_shardings
from jaxrecipes.experiment.sources import source_spec
from jaxrecipes.generate.ask import ask
from jaxrecipes.generate.instances import Instance, choose_cues
from jaxrecipes.generate.local_teacher import LocalTeacher
from jaxrecipes.generate.reply_store import ReplyStore
from jaxrecipes.generate.teacher import Request
from jaxrecipes.params.layout import plan_layout, to_runtime
from jaxrecipes.params.rules import label
from jaxrecipes.recipes.self_synthesized_rehearsal import Task
from jaxrecipes.stages import run_stage

SCORES = "scores.json"


def read_tasks(config: RehearsalConfig) -> list[Task]:
    """Reads the rows of all tasks and draws those that are used.

    Args:
        config: The experiment.

    Returns:
        The tasks, in the order in which they are learned.

    Raises:
        DataError: A source cannot be used, or has too few rows.
    """
    tasks = []
    for number, section in enumerate(config.tasks):
        train = _drawn(section.train, section.train_rows, config.seed + 2 * number)
        test = _drawn(section.test, section.test_rows, config.seed + 2 * number + 1)
        if len(train) < config.synthesis.demonstrations:
            raise DataError(
                f"tasks.{number}.train: {section.train.source} has {len(train)} rows; "
                f"synthesis.demonstrations needs {config.synthesis.demonstrations}"
            )
        texts = [text for one in (*train, *test) for text in (one.input, one.output)]
        cues = choose_cues([section.instruction, *texts])
        tasks.append(Task(section.name, section.instruction, train, test, cues))
    return tasks


def _drawn(section: SourceSection, limit: int | None, seed: int) -> tuple[Instance, ...]:
    spec = source_spec(section)
    found = []
    if section.format == "docstrings" or section.source.startswith("docstrings:"):
        examples = iter(read_labelled(spec))
    else:
        examples = read_examples(spec, shape=None if section.shape == "auto" else section.shape)
    for example in examples:
        if isinstance(example, Completion):
            found.append(Instance(example.prompt.strip(), example.completion.strip()))
        elif isinstance(example, Labelled):
            found.append(Instance("\n\n".join(example.texts).strip(), str(example.label)))
        else:
            raise DataError(
                f"{example.where}: the row holds a chat; expected a prompt and a completion as "
                "texts, or a text with a label, which are what a base model is shown"
            )
        if section.limit_documents is not None and len(found) == section.limit_documents:
            break
    order = np.random.default_rng(seed).permutation(len(found))
    return tuple(found[number] for number in order[:limit])


def draw_demonstrations(task: Task, count: int, *, seed: int) -> list[Instance]:
    """Draws the training rows that the base model is shown."""
    order = np.random.default_rng([seed, 1]).permutation(len(task.train))
    return [task.train[number] for number in order[:count]]


@dataclass(frozen=True)
class TaskScores:
    """Measures models on the test rows of all tasks.

    Attributes:
        config: The experiment.
        tasks: Its tasks.
        rows: Their test rows, rendered and masked as in training.
        base: For its tokenizer.
        replies: Where answers are kept.
        console: Says what is done.
    """

    config: RehearsalConfig
    tasks: Sequence[Task]
    rows: Sequence[EvaluationRows]
    base: BaseModel
    replies: ReplyStore
    console: Console

    def __call__(self, name: str, folder: Path, key: str, place: Path) -> dict[str, Any]:
        """Measures a model, or reads what was measured before.

        Args:
            name: What is said.
            folder: Its Hugging Face folder.
            key: Hash of everything that shaped it.
            place: Where the result is kept.

        Returns:
            Task -> `nll` and `tokens` of each test row, and lists `rouge_l` and `rouge_l_jieba`,
            None where they were not measured.
        """
        section = self.config.evaluate
        inputs = {
            "code": __version__,
            "model": key,
            "rows": [rows.fingerprint() for rows in self.rows],
            "rouge": section.rouge,
            "jieba": _has_jieba(),
            "longest_output": self.config.synthesis.longest_output,
            "compute_dtype": self.config.model.compute_dtype,
        }
        stage = run_stage(place, inputs, partial(self._measure, name, folder, key))
        return json.loads((stage.folder / SCORES).read_text(encoding="utf-8"))

    def _measure(self, name: str, folder: Path, key: str, target: Path) -> None:
        self.console.print(f"{name}: measuring on {len(self.tasks)} tasks …", highlight=False)
        execution = local_execution()
        imported = import_checkpoint(
            folder, shardings=model_shardings(read_model_config(folder), execution.mesh)
        )
        dtype = jnp.dtype(self.config.model.compute_dtype)
        layout = plan_layout(imported.config, label(imported.params, [(".*", True)]))
        params = to_runtime(layout, imported.params)
        found: dict[str, Any] = {}
        for task, rows in zip(self.tasks, self.rows, strict=True):
            sums = evaluate_set(
                imported.config,
                params,
                rows,
                batch_size=self.config.evaluate.batch_size,
                compute_dtype=dtype,
                layout=layout,
                execution=execution,
            )
            found[task.name] = {
                "nll": sums.nll.tolist(),
                "tokens": sums.tokens.tolist(),
                "rouge_l": None,
                "rouge_l_jieba": None,
            }
        del params
        if self.config.evaluate.rouge:
            teacher = local_teacher(
                imported,
                self.base,
                key,
                self.config.evaluate.slots,
                self.config.model.compute_dtype,
            )
            for task in self.tasks:
                found[task.name] |= self._rouge(task, teacher)
        write_json(target / SCORES, found)

    def _rouge(self, task: Task, teacher: LocalTeacher) -> dict[str, Any]:
        requests = [
            Request(
                id=str(number),
                prompt=task.prompt(one.input),
                max_new_tokens=self.config.synthesis.longest_output,
            )
            for number, one in enumerate(task.test)
        ]
        replies = ask(teacher, requests, store=self.replies)
        pairs = [(replies[str(n)].text.strip(), one.output) for n, one in enumerate(task.test)]
        found: dict[str, Any] = {"rouge_l": [100 * rouge_l(*pair).f1 for pair in pairs]}
        if _has_jieba():
            found["rouge_l_jieba"] = [100 * rouge_l_jieba(*pair).f1 for pair in pairs]
        return found


def _has_jieba() -> bool:
    return find_spec("jieba") is not None


def local_teacher(
    imported: Any, base: BaseModel, key: str, slots: int, compute_dtype: str
) -> LocalTeacher:
    """Makes a teacher of a model of this run; its identity is the hash of what shaped it."""
    return LocalTeacher(
        imported.config,
        imported.params,
        base.tokenizer,
        identity={"model": key},
        slots=slots,
        compute_dtype=jnp.dtype(compute_dtype),
    )


def prepare_tests(
    config: RehearsalConfig, tasks: Sequence[Task], base: BaseModel, folder: Path, console: Console
) -> list[EvaluationRows]:
    """Renders and masks the test rows of all tasks as training rows are."""
    found = []
    for task in tasks:
        path = folder / f"{task.name}.test.jsonl"
        write_json_lines(path, rows_of(task, task.test))
        prepared = prepare(
            folder / f"{task.name}.test",
            SourceSpec(reference=str(path)),
            base.tokenizer,
            tokenizer_fingerprint=base.tokenizer_fingerprint,
            vocab_size=read_model_config(base.folder).vocab_size,
            length=config.tuning.length,
            supervision=Supervision(
                turns=config.tuning.supervise.turns, overlong=config.tuning.supervise.overlong
            ),
            log=lambda line: console.print(line, style="dim", highlight=False),
        )
        found.append(rows_from_prepared(prepared))
    return found


def rows_of(task: Task, instances: Sequence[Instance], kind: str = "row") -> list[dict[str, str]]:
    """Returns instances of a task as rows to learn from, with ids of their own."""
    return [task.row(f"{task.name}/{kind}/{number}", one) for number, one in enumerate(instances)]


def fingerprint_of(task: Task, config: RehearsalConfig) -> str:
    """Hashes what a task shows and learns."""
    values: Mapping[str, Any] = {
        "instruction": task.instruction,
        "cues": [task.cues.input, task.cues.output],
        "train": [[one.input, one.output] for one in task.train],
        "seed": config.seed,
    }
    return hash_values(values)
