"""The config of recipe self_synthesized_rehearsal: tasks that come one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field, model_validator

from jaxrecipes.config.data import SourceSection
from jaxrecipes.config.experiment import ModelSection, source_conflicts
from jaxrecipes.config.mesh import MeshSection
from jaxrecipes.config.penalty import PenaltySection
from jaxrecipes.config.section import ArmName, ExperimentSection, Section, refuse_conflicts
from jaxrecipes.config.tuning import TuningSection, tuning_conflicts

RehearsalRecipeName = Literal["self_synthesized_rehearsal"]
REHEARSAL_RECIPES: tuple[str, ...] = get_args(RehearsalRecipeName)
_SHAPES = ("auto", "prompt_completion", "classification", "sentence_pair")


class RehearsalTaskSection(Section):
    """One task: rows of an input and an output (prompt and completion, or text and label)."""

    name: ArmName = Field(description="Its name in tables and folders.")
    instruction: str = Field(
        default="", description="Says what the task is, before every input; may be empty."
    )
    train: SourceSection = Field(description="Rows to learn from.")
    test: SourceSection = Field(description="Rows that every model is measured on.")
    train_rows: int | None = Field(
        default=None, ge=2, description="Learn so many rows, drawn by the seed. null: all."
    )
    test_rows: int | None = Field(
        default=None, ge=1, description="Measure so many rows, drawn by the seed. null: all."
    )


class SynthesisSection(Section):
    """How the base model writes instances of a task; the defaults are the paper's."""

    demonstrations: int = Field(
        default=20,
        ge=2,
        le=1000,
        description="Training rows that the base is shown, two at a time, in all ordered pairs; "
        "drawn by the seed.",
    )
    samples: int = Field(default=3, ge=1, le=100, description="Continuations of each pair.")
    temperature: float = Field(default=0.9, gt=0, le=10, description="Of the sampling.")
    top_p: float = Field(default=0.6, gt=0, le=1, description="Of the sampling.")
    repetition_penalty: float = Field(
        default=1.2, gt=0, le=10, description="Of the sampling; 1: none."
    )
    max_new_tokens: int = Field(default=256, ge=1, description="Longest continuation, in tokens.")
    instances: Literal["one", "all"] = Field(
        default="one",
        description="one: the base stops where it would begin a second instance. all: it goes on "
        "to max_new_tokens, and every whole instance counts, as in the paper's code.",
    )
    longest_input: int = Field(
        default=500, ge=1, description="Longest input that is kept, in tokens, with instruction."
    )
    longest_output: int = Field(
        default=128, ge=1, description="Longest output that is kept, and longest answer, in tokens."
    )
    copied_words: int = Field(
        default=5,
        ge=1,
        le=100,
        description="Runs of so many words are compared with what is shown.",
    )
    copied_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="An input of which at least this share of runs is in a demonstration is "
        "memorised, and rejected; one that equals a demonstration always is.",
    )
    enough: float | None = Field(
        default=None,
        ge=1,
        description="Stop asking when so many times the wanted instances are usable. null: ask "
        "for all pairs.",
    )


class RehearsalSection(Section):
    """What is repeated of earlier tasks while a later one is learned."""

    method: Literal["synthetic", "real", "none", "multitask"] = Field(
        default="synthetic",
        description="synthetic: instances that the base model writes. real: training rows of the "
        "task. none: nothing is repeated. multitask: no sequence at all, all tasks are learned at "
        "once, which is the upper bound.",
    )
    share: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Repeated instances of a task, as a share of its training rows.",
    )
    selection: Literal["kmeans", "random"] = Field(
        default="kmeans",
        description="Which of the candidates. kmeans: by clusters of inputs, an exact quota each, "
        "those nearest to the centre. random: drawn by the seed.",
    )
    clusters: int = Field(default=20, ge=1, le=10_000, description="Of kmeans.")
    refine: Literal["after_selection", "before_selection", "never"] = Field(
        default="after_selection",
        description="When outputs are written anew by the model that has just learned the task. "
        "after_selection: of the chosen, as in the paper's code. before_selection: of all "
        "candidates, as in its text. never: outputs stay the base's, or the real ones.",
    )
    penalty: PenaltySection | None = Field(
        default=None,
        description="Holding the model near where a stage began, from the second task on. ewc "
        "computes its Fisher information on the rows of the task before, so it takes no sources.",
    )


class RehearsalArmSection(Section):
    """One more arm: another way to repeat, with the same tasks and the same fine-tuning."""

    name: ArmName = Field(description="Its name in tables and charts.")
    rehearsal: RehearsalSection = Field(
        description="In place of the section at the top, all of it."
    )


class RehearsalEvaluateSection(Section):
    """What is measured of every model on every task."""

    rouge: bool = Field(
        default=True,
        description="Greedy answers to the test rows, and ROUGE-L of them; takes most of the time. "
        "false: only the loss of the right answers.",
    )
    batch_size: int = Field(default=8, ge=1, description="Rows at a time.")
    slots: int = Field(
        default=32, ge=1, le=4096, description="Texts that are generated at the same time."
    )


class RehearsalConfig(ExperimentSection):
    """An experiment of recipe self_synthesized_rehearsal."""

    recipe: RehearsalRecipeName = Field(description="`jaxrecipes ls` explains.")
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="Decides rows, demonstrations, samples and orders."
    )
    output: str = Field(min_length=1, description="Run folder; made if it does not exist.")
    model: ModelSection = Field(description="The pretrained model.")
    tasks: list[RehearsalTaskSection] = Field(
        min_length=2, description="The tasks, in the order in which they are learned."
    )
    tuning: TuningSection = Field(description="How each task is learned.")
    synthesis: SynthesisSection = Field(
        default_factory=SynthesisSection, description="How the base model writes instances."
    )
    encoder: str = Field(
        default="own",
        min_length=1,
        description="Whose vectors kmeans clusters. own: mean hidden states of the base model. "
        "Else a sentence encoder: a folder, a hub id or package:NAME.",
    )
    rehearsal: RehearsalSection = Field(
        default_factory=RehearsalSection, description="What is repeated, in the main arm."
    )
    evaluate: RehearsalEvaluateSection = Field(
        default_factory=RehearsalEvaluateSection, description="What is measured."
    )
    mesh: MeshSection = Field(default_factory=MeshSection, description="How devices are arranged.")
    compare: list[RehearsalArmSection] = Field(
        default_factory=list, description="More arms, reported together."
    )

    @model_validator(mode="after")
    def _across_sections(self) -> RehearsalConfig:
        refuse_conflicts(rehearsal_conflicts(self))
        return self


@dataclass(frozen=True)
class RehearsalArm:
    """One arm.

    Attributes:
        name: Unique in the experiment; usable as a folder name.
        rehearsal: What it repeats.
    """

    name: str
    rehearsal: RehearsalSection


def rehearsal_arms(config: RehearsalConfig) -> list[RehearsalArm]:
    """Lists the arms, the main one first."""
    others = [RehearsalArm(arm.name, arm.rehearsal) for arm in config.compare]
    return [RehearsalArm(config.arm_name, config.rehearsal), *others]


def rehearsal_conflicts(config: RehearsalConfig) -> list[tuple[str, str]]:
    """Finds values that are right alone and wrong together.

    Returns:
        Pairs (dotted key, what is wrong and what to do), empty if all is well.
    """
    found = tuning_conflicts(config.tuning, config.model.compute_dtype, "tuning")
    if config.tuning.train.penalty is not None:
        message = (
            "belongs to an arm here: give rehearsal.penalty, which begins with the second task"
        )
        found.append(("tuning.train.penalty", message))
    names: set[str] = set()
    for number, task in enumerate(config.tasks):
        if task.name in names:
            found.append((f"tasks.{number}.name", f"the name {task.name!r} is taken by another"))
        names.add(task.name)
        for part, source in (("train", task.train), ("test", task.test)):
            key = f"tasks.{number}.{part}"
            found += source_conflicts(source, key)
            if source.shape not in _SHAPES:
                message = f"is {source.shape}; tasks are read as one of {', '.join(_SHAPES)}"
                found.append((f"{key}.shape", message))
    names = {config.arm_name}
    found += _section_conflicts(config, config.rehearsal, "rehearsal")
    for number, arm in enumerate(config.compare):
        if arm.name in names:
            message = f"the name {arm.name!r} is taken by another arm; give this one its own"
            found.append((f"compare.{number}.name", message))
        names.add(arm.name)
        found += _section_conflicts(config, arm.rehearsal, f"compare.{number}.rehearsal")
    return found


def _section_conflicts(
    config: RehearsalConfig, section: RehearsalSection, key: str
) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    given = section.model_fields_set
    if section.method in ("none", "multitask"):
        for name in sorted(given & {"share", "selection", "clusters", "refine"}):
            message = f"method {section.method} repeats nothing and does not read it; remove it"
            found.append((f"{key}.{name}", message))
    elif section.selection == "random" and "clusters" in given:
        found.append((f"{key}.clusters", "is read by selection kmeans only; remove it"))
    penalty = section.penalty
    if penalty is None:
        return found
    if section.method == "multitask":
        found.append((f"{key}.penalty", "multitask has no second task; remove it"))
    for name in ("sources", "earlier"):
        if getattr(penalty, name) is not None:
            message = "is the rows, or the information, of the tasks before; remove it"
            found.append((f"{key}.penalty.{name}", message))
    if penalty.kind != "none" and penalty.coefficient is None:
        found.append((f"{key}.penalty.coefficient", f"kind {penalty.kind} needs one"))
    if penalty.kind == "ewc" and config.tuning.method == "lora" and len(config.tasks) > 2:
        message = (
            "ewc over more than two tasks needs tuning.method: full; adapters begin anew with "
            "every task, so that the information of an earlier one is about others"
        )
        found.append((f"{key}.penalty.kind", message))
    return found
