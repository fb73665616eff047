"""An experiment of recipe llm2llm: the method, its controls at equal data and steps, the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxrecipes.checkpoint.encoder import import_encoder
from jaxrecipes.checkpoint.random_model import random_encoder
from jaxrecipes.config import config_hash
from jaxrecipes.config.data import SourceSection
from jaxrecipes.config.llm2llm import Llm2llmArm, Llm2llmConfig, llm2llm_arms
from jaxrecipes.data.eda import EdaOptions, eda
from jaxrecipes.data.synonyms import read_synonyms
from jaxrecipes.data.task_items import TaskItem, read_task_items
from jaxrecipes.durable import hash_values, write_json
from jaxrecipes.errors import ConfigError, DataError
from jaxrecipes.evaluate.answer_tasks import TASKS, check_answers, task_of
from jaxrecipes.experiment.augmenting import Augmenter, Embed
from jaxrecipes.experiment.base_model import RANDOM_PREFIX, BaseModel, locate_base
from jaxrecipes.experiment.inspect import report
from jaxrecipes.experiment.rounds import Plan, Run, TaskData, Trace, replaced
from jaxrecipes.experiment.run import claim_folder, enable_compilation_cache, locked_folder
from jaxrecipes.experiment.sources import smaller, source_spec
from jaxrecipes.experiment.teachers import budget_of, make_teacher
from jaxrecipes.generate.fence import Fence, control_texts
from jaxrecipes.generate.new_items import ANSWER, QUESTION, ItemWriter
from jaxrecipes.generate.reply_store import ReplyStore
from jaxrecipes.generate.sampling import Sampling
from jaxrecipes.generate.teacher import Teacher
from jaxrecipes.neighbors.embed import embed_texts
from jaxrecipes.recipes.llm2llm import Record, chosen_round, draw_evenly, seed_records
from jaxrecipes.report.rounds import ROUNDS_FILE
from jaxrecipes.train.signals import termination_as_error


def run(config: Llm2llmConfig, *, console: Console, teacher: Teacher | None = None) -> None:
    """Runs an experiment, or goes on with it where it stopped.

    Args:
        config: The experiment.
        console: For everything that is said.
        teacher: In place of the config's; a Python program, for instance.

    Raises:
        JaxrecipesError: Of the many that its parts raise; each has its exit code.
    """
    output = Path(config.output)
    arms = llm2llm_arms(config)
    with termination_as_error(), locked_folder(output):
        claim_folder(config, {arm.name: hash_values(asdict_of(arm)) for arm in arms}, output)
        enable_compilation_cache(output)
        base = locate_base(
            config.model.checkpoint,
            config.model.revision,
            output,
            seed=config.seed,
            console=console,
            chat_template=config.tuning.supervise.chat_template,
        )
        data = read_task_data(config, console)
        with ReplyStore(output / "teacher.sqlite") as store:
            augmenter = _augmenter(config, base, data, store, output, console, teacher)
            _Experiment(config, base, data, augmenter, output, console).arms(arms)
        report(output, console=console)


def asdict_of(arm: Llm2llmArm) -> dict[str, Any]:
    """Returns JSON values of an arm, for its hash."""
    eda_options = None if arm.eda is None else arm.eda.model_dump()
    return {"control": arm.control, "eda": eda_options}


def read_task_data(config: Llm2llmConfig, console: Console) -> TaskData:
    """Reads seeds, dev and test items; those whose question is a seed's, too, are left out.

    Raises:
        DataError: A source cannot be used, an answer cannot be read, or no item is left.
    """
    section = config.task
    layout = TASKS[section.kind].layout

    def items(source: SourceSection | None, limit: int | None) -> list[TaskItem]:
        if source is None:
            return []
        most = smaller(limit, source.limit_documents)
        return read_task_items(source_spec(source), layout, limit=most, seed=config.seed)

    seeds = items(section.seeds, section.seed_items)
    dev, test = items(section.dev, section.dev_items), items(section.test, section.test_items)
    task = task_of(section.kind, seeds, form=section.form, instruction=section.instruction)
    known = {item.question for item in seeds}
    for name, part in (("dev", dev), ("test", test)):
        check_answers(task, part)
        kept = [item for item in part if item.question not in known]
        if part and not kept:
            raise DataError(f"task.{name}: every question of it is a seed, too")
        if len(kept) < len(part):
            line = f"task.{name}: {len(part) - len(kept)} items are left out, they are seeds, too"
            console.print(line, style="yellow", highlight=False)
        part[:] = kept
    return TaskData(task, seeds, dev, test)


def _augmenter(
    config: Llm2llmConfig,
    base: BaseModel,
    data: TaskData,
    store: ReplyStore,
    output: Path,
    console: Console,
    teacher: Teacher | None,
) -> Augmenter:
    section, budget = config.teacher, None
    if teacher is None and section is None:
        raise ConfigError(
            "teacher: is missing; the method needs somebody who writes new items (kind: local or "
            "openai)"
        )
    if teacher is None:
        assert section is not None
        budget = budget_of(section)
        teacher = make_teacher(
            section,
            base,
            output / "teacher",
            compute_dtype=config.model.compute_dtype,
            seed=config.seed,
            console=console,
        )
    augment = config.augment
    fence = Fence(controls=control_texts(base.tokenizer), headings=(QUESTION, ANSWER))
    writer = ItemWriter(
        fence,
        (*data.task.rules, *augment.rules),
        Sampling(augment.temperature),
        augment.max_new_tokens,
        augment.form,
    )
    embed = None if augment.encoder is None else _embedder(augment.encoder, config.seed)
    return Augmenter(teacher, store, budget, data.task, writer, augment, embed, console)


def _embedder(reference: str, seed: int) -> Embed:
    if reference.startswith(RANDOM_PREFIX):
        encoder = random_encoder(reference.removeprefix(RANDOM_PREFIX), seed=seed)
    else:
        encoder = import_encoder(reference)
    return lambda texts: embed_texts(texts, encoder)


class _Experiment:
    """What the arms of one experiment share."""

    def __init__(
        self,
        config: Llm2llmConfig,
        base: BaseModel,
        data: TaskData,
        augmenter: Augmenter,
        output: Path,
        console: Console,
    ) -> None:
        self.config, self.base, self.data = config, base, data
        self.augmenter, self.output, self.console = augmenter, output, console
        self.seeds = seed_records(data.seeds)
        self.main: dict[int, Trace] = {}
        self.done: list[dict[str, Any]] = []

    def arms(self, arms: Sequence[Llm2llmArm]) -> None:
        for number, arm in enumerate(arms):
            runs: list[dict[str, Any]] = []
            self.done.append({"name": arm.name, "control": arm.control, "runs": runs})
            for seed in range(self.config.seed, self.config.seed + self.config.seeds):
                run = Run(
                    self.config,
                    self.base,
                    self.data,
                    self.augmenter,
                    self.output / "arms" / arm.name / f"seed-{seed}",
                    f"{arm.name} seed {seed}",
                    seed,
                    number == 0,
                    self.console,
                )
                trace = run.rounds(self.seeds, self.plan(arm, seed))
                if number == 0:
                    self.main[seed] = trace
                runs.append(self._summary(run, trace))
                self._write()
                # The next run compiles other programs; the memory of this one's is given back.
                jax.clear_caches()

    def plan(self, arm: Llm2llmArm, seed: int) -> Plan:
        """Says what an arm does; controls do as much as the main arm did with the same seed."""
        if arm.control is None:
            return Plan(self.config.augment.rounds)
        if arm.control == "none":
            return Plan(0)
        main = self.main[seed]
        steps = tuple(state["steps"] for state in main)
        counts = tuple(state["kept"] for state in main if state["kept"])
        if arm.control == "step_matched":
            return Plan(0, steps=steps[-1:])
        if arm.control == "one_shot":
            return Plan(1, counts=(sum(counts),), steps=(steps[0], steps[-1]))
        if arm.control in ("uniform", "all_wrong"):
            targets = "uniform" if arm.control == "uniform" else "all_wrong"
            return Plan(len(counts), targets, counts, steps)
        first = self._eda(arm, seed, sum(counts))
        if arm.control == "rephrase":
            drawn = draw_evenly(self.seeds, sum(counts), seed)
            title = f"{arm.name} seed {seed}: new wordings"
            first = self.augmenter.write(
                self.seeds, drawn, round_number=1, seed=seed, title=title, manner="rephrased"
            ).records
        return Plan(0, steps=steps[-1:], first=tuple(first))

    def _eda(self, arm: Llm2llmArm, seed: int, count: int) -> list[Record]:
        if arm.eda is None:
            return []
        section = arm.eda
        synonyms = read_synonyms(section.synonyms)
        drawn = draw_evenly(self.seeds, count, seed)
        shares = (section.replaced, section.inserted, section.swapped, section.deleted)
        texts: dict[str, list[str]] = {}
        for record in drawn:
            if record.id not in texts:
                wanted = sum(one.id == record.id for one in drawn)
                options = EdaOptions(*shares, new_texts=wanted)
                texts[record.id] = eda(record.question, synonyms, options, seed=seed)
        return replaced(drawn, [texts[record.id].pop(0) for record in drawn], "eda")

    def _summary(self, run: Run, trace: Trace) -> dict[str, Any]:
        dev = [state["dev"] for state in trace if state["dev"] is not None]
        chosen = chosen_round(dev, len(trace))
        model = run.student_folder(chosen) if run.keeps_student else None
        return {
            "seed": run.seed,
            "chosen": chosen,
            "test_right": trace[chosen]["test_right"],
            "model": None if model is None else str(model.relative_to(self.output)),
            "rounds": [_shown(state) for state in trace],
        }

    def _write(self) -> None:
        data = self.data
        write_json(
            self.output / ROUNDS_FILE,
            {
                "schema": 1,
                "recipe": self.config.recipe,
                "config": config_hash(self.config),
                "model": self.config.model.checkpoint,
                "task": data.task.name,
                "teacher": _plain(self.augmenter.teacher.identity),
                "items": {
                    "seeds": len(data.seeds),
                    "dev": len(data.dev),
                    "test": len(data.test),
                },
                "arms": self.done,
            },
        )


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if isinstance(value, str | int | float)}


def _shown(state: Mapping[str, Any]) -> dict[str, Any]:
    hidden = ("right", "dev_right", "test_right", "student")
    return {key: value for key, value in state.items() if key not in hidden}
