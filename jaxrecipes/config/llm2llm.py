"""The experiment of recipe llm2llm: rounds of new items for what a student gets wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field, model_validator

from jaxrecipes.config.data import SourceSection
from jaxrecipes.config.experiment import ModelSection, source_conflicts
from jaxrecipes.config.mesh import MeshSection
from jaxrecipes.config.section import ArmName, ExperimentSection, Section, refuse_conflicts
from jaxrecipes.config.teacher import TeacherSection
from jaxrecipes.config.tuning import TuningSection, tuning_conflicts

Llm2llmRecipeName = Literal["llm2llm"]
LLM2LLM_RECIPES: tuple[str, ...] = get_args(Llm2llmRecipeName)
ControlName = Literal["none", "step_matched", "eda", "rephrase", "uniform", "one_shot", "all_wrong"]


class AnswerTaskSection(Section):
    """The task: a few seeds to learn from, and items to measure with."""

    kind: Literal["gsm8k", "casehold", "snips", "trec", "sst2", "plain"] = Field(
        description="How questions are put and answers compared. gsm8k: {question, answer}, the "
        "number after ####. casehold: {context, choices, answer}, a letter. snips, trec, sst2: "
        "{text, label}. plain: {question, answer}, compared as text, or as a number where it is "
        "one."
    )
    seeds: SourceSection = Field(description="Items to learn from; they are all probed each round.")
    seed_items: int | None = Field(
        default=None, ge=1, description="Use so many of them, drawn once by the seed. null: all."
    )
    dev: SourceSection | None = Field(
        default=None,
        description="Items by which the best round is chosen. null: the last round is taken.",
    )
    dev_items: int | None = Field(default=None, ge=1, description="Likewise. null: all.")
    test: SourceSection = Field(description="Items that are reported; nothing is chosen by them.")
    test_items: int | None = Field(default=None, ge=1, description="Likewise. null: all.")
    form: Literal["text", "chat"] = Field(
        default="text",
        description="text: prompt and answer are joined as they are. chat: rendered with the chat "
        "template.",
    )
    instruction: str | None = Field(
        default=None, description="Said before each question. null: the task's own."
    )


class ProbeSection(Section):
    """How a student is asked."""

    max_new_tokens: int = Field(
        default=256, ge=1, le=65536, description="Longest answer, in tokens; others are cut there."
    )
    samples: int = Field(
        default=1,
        ge=1,
        le=99,
        description="Answers to each seed; it is right if more than half of them are. Dev and test "
        "items are answered once, greedily.",
    )
    temperature: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="Sampling temperature of these answers. 0: the likeliest token. The authors "
        "sample once at 0.7, so that chance decides what counts as wrong.",
    )
    slots: int = Field(default=32, ge=1, le=4096, description="Answers decoded together.")


class AugmentSection(Section):
    """How the teacher is asked for new items, and which are kept."""

    rounds: int = Field(default=6, ge=1, le=1000, description="Rounds of new items.")
    per_item: int = Field(
        default=1, ge=1, le=100, description="New items for each wrong one, in a round."
    )
    attempts: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Most requests for one new item; after that fewer are kept than wanted.",
    )
    max_new_tokens: int = Field(
        default=512, ge=1, le=65536, description="Longest answer of the teacher, in its tokens."
    )
    temperature: float = Field(
        default=1.0, ge=0, le=10, description="Sampling temperature of the teacher."
    )
    form: Literal["chat", "text"] = Field(
        default="chat",
        description="How the teacher is asked. chat: one turn of the user. text: a prompt that it "
        "goes on with, for a base model without a chat template.",
    )
    show_wrong_answer: bool = Field(
        default=False,
        description="The teacher sees what the student answered. The authors' prompt has no place "
        "for it.",
    )
    rules: list[str] = Field(
        default_factory=list, description="More sentences on what a new item must be like."
    )
    rouge_l: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="Largest ROUGE-L F1 of a new question with any there is, of every round.",
    )
    encoder: str | None = Field(
        default=None,
        min_length=1,
        description="Sentence encoder that finds duplicates, too: a folder, a hub id, package:NAME "
        "or random:tiny-bert. null: none.",
    )
    similarity: float = Field(
        default=0.95, gt=0, le=1, description="With encoder: cosine from which one is a duplicate."
    )
    verify_samples: int = Field(
        default=0,
        ge=0,
        le=99,
        description="The teacher answers each new question so often without seeing its answer; "
        "more than half must agree with it (1: label agreement; more: self-consistency). 0: not.",
    )
    verify_temperature: float = Field(
        default=0.7, ge=0, le=10, description="Sampling temperature of these, if more than one."
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop after so many rounds in a row without a better dev score. null: never.",
    )


class EdaSection(Section):
    """Options of control eda."""

    synonyms: str = Field(
        default="wordnet",
        min_length=1,
        description="wordnet: an installed WordNet. Or its folder, or a JSONL file with rows such "
        "as {word: big, synonyms: [large]}.",
    )
    replaced: float = Field(default=0.1, ge=0, le=1, description="Share of words replaced.")
    inserted: float = Field(default=0.1, ge=0, le=1, description="Share of words inserted.")
    swapped: float = Field(default=0.1, ge=0, le=1, description="Share of words swapped.")
    deleted: float = Field(default=0.1, ge=0, le=1, description="Probability of a deletion.")


class Llm2llmArmSection(Section):
    """One more arm, with the same seeds, at as many new items and optimizer steps."""

    name: ArmName | None = Field(
        default=None, description="Its name in tables and charts. null: the control's name."
    )
    control: ControlName = Field(
        description="none: fine-tuning on the seeds as train says. step_matched: the same for as "
        "many steps as the main arm's last round. eda: new wordings by EDA. rephrase: all seeds in "
        "the teacher's words (AugGPT). uniform: rounds with seeds drawn at random in place of "
        "wrong ones. one_shot: all new items after the first round. all_wrong: also after new "
        "items that are wrong, which passes errors on."
    )
    eda: EdaSection | None = Field(default=None, description="Options of control eda.")


class Llm2llmConfig(ExperimentSection):
    """An experiment of recipe llm2llm."""

    recipe: Llm2llmRecipeName = Field(description="`jaxrecipes ls` explains.")
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="The first seed of training and of all draws."
    )
    seeds: int = Field(
        default=1, ge=1, le=1000, description="Runs of each arm, with seeds that follow."
    )
    output: str = Field(min_length=1, description="Run folder; made if it does not exist.")
    model: ModelSection = Field(description="The student before training.")
    task: AnswerTaskSection = Field(description="What is learned.")
    teacher: TeacherSection | None = Field(
        default=None,
        description="Who writes new items. null: only in Python, where `run` is given a teacher.",
    )
    augment: AugmentSection = Field(
        default_factory=AugmentSection, description="How new items are made."
    )
    probe: ProbeSection = Field(
        default_factory=ProbeSection, description="How the student is asked."
    )
    tuning: TuningSection = Field(description="How the student is trained in every round.")
    mesh: MeshSection = Field(default_factory=MeshSection, description="How devices are arranged.")
    compare: list[Llm2llmArmSection] = Field(default_factory=list, description="More arms.")

    @model_validator(mode="after")
    def _across_sections(self) -> Llm2llmConfig:
        refuse_conflicts(llm2llm_conflicts(self))
        return self


@dataclass(frozen=True)
class Llm2llmArm:
    """One arm.

    Attributes:
        name: Unique in the experiment; usable as a folder name.
        control: What it does in place of the method; None for the method.
        eda: Options of control eda.
    """

    name: str
    control: ControlName | None = None
    eda: EdaSection | None = None


def llm2llm_arms(config: Llm2llmConfig) -> Sequence[Llm2llmArm]:
    """Lists the arms, the main one first."""
    arms = [Llm2llmArm(config.arm_name)]
    for section in config.compare:
        eda = section.eda or EdaSection() if section.control == "eda" else None
        arms.append(Llm2llmArm(section.name or section.control, section.control, eda))
    return arms


def llm2llm_conflicts(config: Llm2llmConfig) -> list[tuple[str, str]]:
    """Finds values that are right alone and wrong together.

    Returns:
        Pairs (dotted key, what is wrong and what to do), empty if all is well.
    """
    found = tuning_conflicts(config.tuning, config.model.compute_dtype, "tuning")
    task, probe, augment = config.task, config.probe, config.augment
    for name in ("seeds", "dev", "test"):
        source = getattr(task, name)
        if source is None:
            if task.dev_items is not None:
                found.append(("task.dev_items", "there is no task.dev of which to take them"))
            continue
        found += source_conflicts(source, f"task.{name}")
        if source.shape != "auto":
            message = f"is not read here: task.kind ({task.kind}) says what rows hold"
            found.append((f"task.{name}.shape", message))
    if probe.samples > 1 and probe.temperature == 0:
        found.append(("probe.temperature", "is 0, so that all samples are alike; raise it"))
    if augment.patience is not None and task.dev is None:
        found.append(("augment.patience", "is counted in dev scores; give task.dev"))
    # A resolved config has every key: a default that nothing reads is no mistake.
    plain = AugmentSection()
    if augment.encoder is None and augment.similarity != plain.similarity:
        found.append(("augment.similarity", "is read with augment.encoder only; give both"))
    if augment.verify_samples < 2 and augment.verify_temperature != plain.verify_temperature:
        message = "is read where verify_samples is 2 or more; one answer is greedy"
        found.append(("augment.verify_temperature", message))
    names = {config.arm_name}
    for number, arm in enumerate(config.compare):
        if arm.eda is not None and arm.control != "eda":
            found.append((f"compare.{number}.eda", f"control {arm.control} does not read it"))
        name = arm.name or arm.control
        if name in names:
            message = f"the name {name!r} is taken by another arm; give this one its own"
            found.append((f"compare.{number}.name", message))
        names.add(name)
    return found
