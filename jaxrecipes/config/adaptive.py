"""The experiment of the adaptive recipes: phases of pretraining, then a task with several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from pydantic import Field, model_validator

from jaxrecipes.config.data import LearnSection, SourceSection
from jaxrecipes.config.experiment import source_conflicts
from jaxrecipes.config.perturb import perturb_conflicts
from jaxrecipes.config.phases import (
    AdaptiveRecipeName,
    FineTunePhase,
    Phase,
    PretrainPhase,
    default_phases,
)
from jaxrecipes.config.section import ArmName, ExperimentSection, Section, refuse_conflicts
from jaxrecipes.config.train import CheckpointSection, SpikesSection

ADAPTIVE_RECIPES: tuple[str, ...] = get_args(AdaptiveRecipeName)
ControlName = Literal["none", "tapt", "random", "equal_compute"]


class AdaptiveModelSection(Section):
    """The pretrained model: an encoder or a decoder."""

    checkpoint: str = Field(
        min_length=1,
        description="A Hugging Face or sentence-transformers folder, a hub id (owner/name), "
        "package:NAME, a .gguf file (decoders), or random:tiny-masked-bert and random:tiny-llama "
        "(random weights, to try the plumbing; their results mean nothing).",
    )
    revision: str | None = Field(
        default=None, description="Commit hash, tag or branch of a hub id. null: the newest."
    )
    compute_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Number type of the forward and backward pass. Weights and optimizer are "
        "float32.",
    )
    head: Literal["family", "mean"] = Field(
        default="family",
        description="What classifies. family: as transformers has it, on the first token of "
        "encoders, on the last one of decoders. mean: one layer on the mean of all tokens "
        "(encoders); it has no form in transformers, so that no model is exported.",
    )


class TaskSection(Section):
    """The labelled task."""

    train: SourceSection = Field(description="Rows to learn from: {text, label} or pairs.")
    dev: SourceSection = Field(description="Rows that the best epoch is chosen by.")
    test: SourceSection = Field(description="Rows that are reported.")
    max_tokens: int = Field(
        default=128, ge=8, le=131_072, description="Longest row in tokens; the rest is cut."
    )
    train_rows: int | None = Field(
        default=None,
        ge=2,
        description="Learn the labels of so many rows, drawn once by the seed; pretraining on the "
        "task reads the texts of all. null: all.",
    )
    dev_rows: int | None = Field(
        default=None, ge=2, description="Use so many dev rows, drawn once by the seed. null: all."
    )
    transductive: bool = Field(
        default=False,
        description="Pretraining may read texts of dev and test rows. false: a text of theirs in "
        "what it reads is an error.",
    )
    score: Literal["macro_f1", "accuracy"] = Field(
        default="macro_f1", description="What the best epoch and the best seed are chosen by."
    )


class DomainSection(Section):
    """Unlabelled text: a domain's documents, or the pool that the task is a sample of."""

    sources: list[LearnSection] = Field(
        min_length=1,
        description="Where it is. Weight 2: every text twice an epoch; 0.5: half of them, the "
        "other half in the next.",
    )


class ReplaySection(Section):
    """General text that is mixed into pretraining, against forgetting (arXiv 2403.08763)."""

    sources: list[LearnSection] = Field(min_length=1, description="Where it is.")
    share: float = Field(
        default=0.05, ge=0, lt=1, description="Share of a pretraining epoch's rows that it is."
    )


class KnnSection(Section):
    """How texts of the domain are selected."""

    encoder: str = Field(
        min_length=1,
        description="Sentence encoder that says which texts are alike: a folder, a hub id, "
        "package:NAME, or random:tiny-bert, whose choice means nothing.",
    )
    encoder_tokens: int | None = Field(
        default=None, ge=1, description="First tokens of a text that it reads. null: all it can."
    )
    neighbors: int = Field(
        default=50, ge=1, description="Nearest texts for each text of the task; the paper's k."
    )
    index: Literal["auto", "exact", "scann"] = Field(
        default="auto", description="How they are searched; auto: ScaNN from 50,000 texts on."
    )
    recall_floor: float = Field(
        default=0.95, gt=0, le=1, description="Least share of true neighbours; less is an error."
    )
    similarity: float = Field(
        default=0.95,
        gt=0,
        le=2,
        description="Cosine from which selected texts are duplicates, of which one stays.",
    )


class AdaptiveArmSection(Section):
    """One more arm: a control by its name, or phases of its own; labels and seeds are the same."""

    name: ArmName | None = Field(
        default=None, description="Its name in tables and charts. null: the control's name."
    )
    control: ControlName | None = Field(
        default=None,
        description="none: fine-tuning only. tapt: the last pretraining phase reads the task's "
        "texts only. random: random texts in place of selected ones. equal_compute: fine-tuning "
        "only, without an early end, for as many tokens as the main arm reads.",
    )
    phases: list[Phase] | None = Field(default=None, min_length=1, description="As at the top.")


class AdaptiveConfig(ExperimentSection):
    """An experiment of recipe dapt, tapt, curated_tapt or knn_tapt."""

    recipe: AdaptiveRecipeName = Field(description="`jaxrecipes ls` explains.")
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**31,
        description="Decides subsets, orders and masks of pretraining; the first seed of "
        "fine-tuning.",
    )
    seeds: int = Field(
        default=5, ge=1, le=1000, description="Fine-tunings of each arm, with seeds that follow."
    )
    output: str = Field(min_length=1, description="Run folder; made if it does not exist.")
    model: AdaptiveModelSection = Field(description="The pretrained model.")
    task: TaskSection = Field(description="The labelled task.")
    domain: DomainSection | None = Field(
        default=None, description="Unlabelled text, for phases that read it or select from it."
    )
    replay: ReplaySection | None = Field(
        default=None, description="General text mixed into pretraining. null: none."
    )
    knn: KnnSection | None = Field(
        default=None, description="How texts of the domain are selected, where a phase reads them."
    )
    phases: list[Phase] | None = Field(
        default=None,
        min_length=1,
        description="Pretraining phases, and fine-tuning as the last one. null: the paper's, see "
        "the recipe's page.",
    )
    compare: list[AdaptiveArmSection] = Field(
        default_factory=list, description="More arms, with the same labels and seeds."
    )
    spikes: SpikesSection = Field(
        default_factory=SpikesSection, description="Skipping harmful steps of pretraining."
    )
    checkpoint: CheckpointSection = Field(
        default_factory=CheckpointSection, description="Saving the state of pretraining."
    )

    @model_validator(mode="after")
    def _across_sections(self) -> AdaptiveConfig:
        refuse_conflicts(adaptive_conflicts(self))
        return self


@dataclass(frozen=True)
class AdaptiveArm:
    """One arm, its phases written out.

    Attributes:
        name: Unique in the experiment; usable as a folder name.
        pretraining: Phases that read text, in order.
        finetune: The last phase.
        equal_compute: Fine-tuning is as long as the main arm is in tokens.
    """

    name: str
    pretraining: tuple[PretrainPhase, ...]
    finetune: FineTunePhase
    equal_compute: bool = False


def adaptive_arms(config: AdaptiveConfig) -> list[AdaptiveArm]:
    """Lists the arms, the main one first.

    Args:
        config: A valid config.

    Returns:
        At least one arm.
    """
    main = _arm(config.arm_name, config.phases or default_phases(config.recipe))
    arms = [main]
    for section in config.compare:
        name = section.name or str(section.control)
        if section.phases is not None:
            arms.append(_arm(name, section.phases))
        elif section.control in ("none", "equal_compute"):
            equal = section.control == "equal_compute"
            arms.append(AdaptiveArm(name, (), main.finetune, equal))
        elif section.control == "tapt":
            last = main.pretraining[-1].model_copy(update={"read": ["task"], "name": "tapt"})
            arms.append(replace(main, name=name, pretraining=(last,)))
        else:
            arms.append(replace(main, name=name, pretraining=_randomised(main.pretraining)))
    return arms


def _arm(name: str, phases: Sequence[PretrainPhase | FineTunePhase]) -> AdaptiveArm:
    *first, last = phases
    assert isinstance(last, FineTunePhase)  # adaptive_conflicts refuses anything else
    pretraining = tuple(phase for phase in first if isinstance(phase, PretrainPhase))
    return AdaptiveArm(name, pretraining, last)


def _randomised(phases: Sequence[PretrainPhase]) -> tuple[PretrainPhase, ...]:
    def replaced(phase: PretrainPhase) -> PretrainPhase:
        if "selected" not in phase.read:
            return phase
        read = ["random" if name == "selected" else name for name in phase.read]
        return phase.model_copy(update={"read": read, "name": f"{phase.name}-random"})

    return tuple(map(replaced, phases))


def adaptive_conflicts(config: AdaptiveConfig) -> list[tuple[str, str]]:
    """Finds values that are right alone and wrong together.

    Returns:
        Pairs (dotted key, what is wrong and what to do), empty if all is well.
    """
    main = config.phases or default_phases(config.recipe)
    found: list[tuple[str, str]] = []
    found += _list_conflicts(config, main, "phases")
    names = {config.arm_name}
    for number, arm in enumerate(config.compare):
        key = f"compare.{number}"
        if (arm.control is None) == (arm.phases is None):
            given = "neither is" if arm.control is None else "both are"
            found.append((key, f"give either control or phases; {given} given"))
            continue
        if arm.phases is not None:
            found += _list_conflicts(config, arm.phases, f"{key}.phases")
            if arm.name is None:
                found.append((f"{key}.name", "an arm with phases of its own needs a name"))
        found += _control_conflicts(arm, main, key)
        name = arm.name or arm.control
        if name in names:
            message = f"the name {name!r} is taken by another arm; give this one its own"
            found.append((f"{key}.name", message))
        names.add(str(name))
    found += _all_source_conflicts(config)
    lists = [main, *(arm.phases for arm in config.compare if arm.phases)]
    read = {
        name
        for phases in lists
        for phase in phases
        if isinstance(phase, PretrainPhase)
        for name in phase.read
    }
    if config.domain is not None and not read & {"domain", "selected", "random"}:
        found.append(("domain", "no phase reads it; remove the section"))
    if config.knn is not None and not read & {"selected", "random"}:
        found.append(("knn", "no phase reads selected texts; remove the section"))
    pretrains = any(isinstance(phase, PretrainPhase) for phases in lists for phase in phases)
    if config.replay is not None and not pretrains:
        found.append(("replay", "no phase pretrains; remove the section"))
    return found


def _all_source_conflicts(config: AdaptiveConfig) -> list[tuple[str, str]]:
    task = config.task
    labelled = {"train": task.train, "dev": task.dev, "test": task.test}
    sources: list[tuple[str, SourceSection, tuple[str, ...]]] = [
        (f"task.{name}", source, ("classification", "sentence_pair"))
        for name, source in labelled.items()
    ]
    for name, section in (("domain", config.domain), ("replay", config.replay)):
        for number, source in enumerate([] if section is None else section.sources):
            sources.append((f"{name}.sources.{number}", source, ("documents",)))
    found: list[tuple[str, str]] = []
    for key, source, shapes in sources:
        found += source_conflicts(source, key)
        if source.shape not in ("auto", *shapes):
            message = f"is {source.shape}; what is read here is {' or '.join(shapes)}"
            found.append((f"{key}.shape", message))
    return found


def _control_conflicts(
    arm: AdaptiveArmSection, main: Sequence[PretrainPhase | FineTunePhase], key: str
) -> list[tuple[str, str]]:
    pretraining = [phase for phase in main if isinstance(phase, PretrainPhase)]
    if arm.control in ("tapt", "equal_compute") and not pretraining:
        return [(f"{key}.control", f"{arm.control} needs a pretraining phase in the main arm")]
    if arm.control == "random" and not any("selected" in phase.read for phase in pretraining):
        return [(f"{key}.control", "random needs a phase of the main arm that reads: [selected]")]
    return []


def _list_conflicts(
    config: AdaptiveConfig, phases: Sequence[PretrainPhase | FineTunePhase], key: str
) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    *first, last = phases
    if not isinstance(last, FineTunePhase) or any(isinstance(one, FineTunePhase) for one in first):
        return [(key, "the last phase, and no other, must be of kind finetune")]
    names: set[str] = set()
    for number, phase in enumerate(first):
        assert isinstance(phase, PretrainPhase)
        at = f"{key}.{number}"
        if phase.name in names:
            found.append((f"{at}.name", f"the name {phase.name!r} is taken by another phase"))
        names.add(phase.name)
        found += _phase_conflicts(config, phase, at, first=number == 0)
    problems = perturb_conflicts(
        last.perturb,
        config.recipe,
        config.model.compute_dtype,
        key=f"{key}.{len(first)}.perturb",
    )
    return found + problems


def _phase_conflicts(
    config: AdaptiveConfig, phase: PretrainPhase, key: str, *, first: bool
) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if (phase.steps is None) == (phase.epochs is None):
        given = "neither is" if phase.steps is None else "both are"
        found.append((f"{key}.steps", f"give either steps or epochs; {given} given"))
    if phase.micro_batch_size is not None and phase.batch_size % phase.micro_batch_size:
        message = f"{phase.micro_batch_size} does not divide batch_size ({phase.batch_size})"
        found.append((f"{key}.micro_batch_size", message))
    if len(set(phase.read)) < len(phase.read):
        found.append((f"{key}.read", "names the same texts twice"))
    if set(phase.read) - {"task"} and config.domain is None:
        message = f"reads {', '.join(phase.read)}, which needs the section domain"
        found.append((f"{key}.read", message))
    if set(phase.read) & {"selected", "random"} and config.knn is None:
        found.append((f"{key}.read", "selected and random texts need the section knn"))
    if phase.replay and config.replay is None:
        found.append((f"{key}.replay", "needs the section replay, which says what is replayed"))
    if phase.masking.mask_share + phase.masking.random_share > 1 + 1e-9:
        message = "mask_share and random_share add up to more than 1"
        found.append((f"{key}.masking.mask_share", message))
    if phase.objective == "causal" and "masking" in phase.model_fields_set:
        found.append((f"{key}.masking", "is read for the masked objective only; remove it"))
    if first and not phase.reset_optimizer:
        message = "there is no phase before this one whose moments could be kept; set it to true"
        found.append((f"{key}.reset_optimizer", message))
    return found
