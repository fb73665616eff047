"""The whole experiment: the model, the comparison, and what must hold across sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jaxrecipes.config.data import DataSection, KeepDocuments, SourceSection
from jaxrecipes.config.mesh import MeshSection
from jaxrecipes.config.perturb import PerturbSection, perturb_conflicts
from jaxrecipes.config.recipe_options import (
    ALSO_READS,
    RECIPE_SECTIONS,
    BlockExpansionSection,
    FreezeSection,
    InContextPretrainingSection,
    LoraSection,
    RecipeName,
    StridedFreezeSection,
)
from jaxrecipes.config.sdft_rewrite import SdftRewriteSection, sdft_conflicts
from jaxrecipes.config.section import ArmName, ExperimentSection, Section, refuse_conflicts
from jaxrecipes.config.train import EvaluateSection, SaveableName, TrainSection


class ModelSection(Section):
    """The pretrained model."""

    checkpoint: str = Field(
        min_length=1,
        description="A Hugging Face folder, a .gguf file, a hub id (owner/name), package:NAME (a "
        "weights file inside an installed Python package) or random:tiny-llama (a small model with "
        "random weights and a byte tokenizer, to try the plumbing; its results mean nothing).",
    )
    revision: str | None = Field(
        default=None, description="Commit hash, tag or branch of a hub id. null: the newest."
    )
    compute_dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16",
        description="Number type of the forward and backward pass and of frozen weights. Trained "
        "weights and the optimizer are float32 in any case. float32 is faster on most CPUs.",
    )
    attention: Literal["auto", "reference", "splash", "cudnn"] = Field(
        default="auto",
        description="Attention kernel. reference: plain XLA, runs everywhere; splash: TPU; cudnn: "
        "NVIDIA GPU. auto: the platform's, where it computes what the model asks for.",
    )


class ArmTrainSection(Section):
    """What an arm may train differently: the update and the memory, never the amount of data."""

    optimizer: dict[str, Any] = Field(
        default_factory=dict,
        description="Any keys of train.optimizer; the others are as in train.optimizer.",
    )
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="As train.micro_batch_size."
    )
    remat: Literal["none", "dots", "names", "full", "offload", "groups"] | None = Field(
        default=None, description="As train.remat."
    )
    remat_names: list[SaveableName] | None = Field(
        default=None, description="As train.remat_names."
    )
    loss_chunk: int | None = Field(default=None, ge=1, description="As train.loss_chunk.")
    perturb: PerturbSection | None = Field(
        default=None, description="In place of train.perturb, all of it; method none: clean."
    )


class ArmSection(Section):
    """One more arm of the comparison: another recipe, at equal steps, tokens and data."""

    name: ArmName | None = Field(
        default=None, description="Its name in tables, charts and folders. null: the recipe's name."
    )
    recipe: RecipeName = Field(description="The recipe of this arm.")
    block_expansion: BlockExpansionSection | None = Field(
        default=None, description="As at the top level."
    )
    freeze: FreezeSection | None = Field(default=None, description="As at the top level.")
    in_context_pretraining: InContextPretrainingSection | None = Field(
        default=None, description="As at the top level."
    )
    lora: LoraSection | None = Field(default=None, description="As at the top level.")
    sdft_rewrite: SdftRewriteSection | None = Field(
        default=None, description="As at the top level."
    )
    strided_freeze: StridedFreezeSection | None = Field(
        default=None, description="As at the top level."
    )
    train: ArmTrainSection = Field(
        default_factory=ArmTrainSection, description="What it trains differently."
    )
    learning_rates: list[Annotated[float, Field(gt=0, le=10)]] = Field(
        default_factory=list, description="Run the arm once with each of these rates (a sweep)."
    )


def arm_names(arm: ArmSection) -> list[str]:
    """Names the runs of one item of `compare`: one, or one for each rate of its sweep."""
    name = arm.name or arm.recipe
    return [f"{name}-lr{rate:g}" for rate in arm.learning_rates] or [name]


class Config(ExperimentSection):
    """A whole experiment."""

    recipe: RecipeName = Field(description="What changes in the model. `jaxrecipes ls` explains.")
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="Decides the split, the order of rows and every random draw.",
    )
    output: str = Field(min_length=1, description="Run folder; made if it does not exist.")
    model: ModelSection = Field(description="The pretrained model.")
    block_expansion: BlockExpansionSection | None = Field(
        default=None, description="Options of recipe block_expansion."
    )
    freeze: FreezeSection | None = Field(default=None, description="Options of recipe freeze.")
    in_context_pretraining: InContextPretrainingSection | None = Field(
        default=None, description="Options of recipe in_context_pretraining."
    )
    lora: LoraSection | None = Field(
        default=None,
        description="Options of recipe lora; with sdft_rewrite: train adapters, not everything.",
    )
    sdft_rewrite: SdftRewriteSection | None = Field(
        default=None, description="Options of recipe sdft_rewrite."
    )
    strided_freeze: StridedFreezeSection | None = Field(
        default=None, description="Options of recipe strided_freeze."
    )
    data: DataSection = Field(description="What to learn and what to keep.")
    train: TrainSection = Field(description="How long, how much at once, and how.")
    evaluate: EvaluateSection = Field(
        default_factory=EvaluateSection, description="What is measured, and when."
    )
    mesh: MeshSection = Field(default_factory=MeshSection, description="How devices are arranged.")
    compare: list[ArmSection] = Field(
        default_factory=list,
        description="More arms, run at equal steps, tokens and data, and reported together.",
    )

    @model_validator(mode="after")
    def _across_sections(self) -> Config:
        refuse_conflicts(conflicts(self))
        return self


def conflicts(config: Config) -> list[tuple[str, str]]:
    """Finds values that are right alone and wrong together.

    Returns:
        Pairs (dotted key, what is wrong and what to do), empty if all is well.
    """
    found = [*_recipe_conflicts(config), *_expansion_conflicts(config.block_expansion)]
    found += _arm_conflicts(config)
    if config.in_context_pretraining is not None and config.data.attend != "context":
        message = (
            "recipe in_context_pretraining needs attend: context; under attend: document no token "
            "sees another document, so that their order has no effect on training at all"
        )
        found.append(("data.attend", message))
    if config.sdft_rewrite is not None:
        found += sdft_conflicts(config.sdft_rewrite, "sdft_rewrite")
        found += [
            (
                f"data.learn.{number}.shape",
                "recipe sdft_rewrite rewrites answers, documents have none",
            )
            for number, source in enumerate(config.data.learn)
            if source.shape == "documents"
        ]
    found += train_conflicts(config.train, config.recipe, config.model.compute_dtype)
    for number, source in enumerate(config.data.learn):
        found += source_conflicts(source, f"data.learn.{number}")
    if isinstance(config.data.keep, KeepDocuments):
        for number, source in enumerate(config.data.keep.sources):
            found += source_conflicts(source, f"data.keep.sources.{number}")
    return found + _supervision_conflicts(config.data)


def train_conflicts(
    train: TrainSection, recipe: str, compute_dtype: str, *, key: str = "train"
) -> list[tuple[str, str]]:
    """Finds values of a section `train` that are wrong together; pairs as in `conflicts`.

    Args:
        train: The section.
        recipe: What it trains.
        compute_dtype: Of the forward pass.
        key: Where the section is.
    """
    found: list[tuple[str, str]] = []
    if (train.steps is None) == (train.epochs is None):
        given = "neither is" if train.steps is None else "both are"
        found.append((f"{key}.steps", f"give either steps or epochs; {given} given"))
    if train.micro_batch_size is not None and train.batch_size % train.micro_batch_size:
        message = f"{train.micro_batch_size} does not divide batch_size ({train.batch_size})"
        found.append((f"{key}.micro_batch_size", message))
    if (train.remat == "names") != bool(train.remat_names):
        message = "is read where remat is names, and needed there; give both or neither"
        found.append((f"{key}.remat_names", message))
    return found + perturb_conflicts(train.perturb, recipe, compute_dtype, key=f"{key}.perturb")


def _recipe_conflicts(config: Config) -> list[tuple[str, str]]:
    found = []
    for section in RECIPE_SECTIONS:
        given = getattr(config, section) is not None
        if section == config.recipe and not given:
            found.append((section, f"recipe {config.recipe} needs the section {section}"))
        reads = (config.recipe, *ALSO_READS.get(config.recipe, ()))
        if section not in reads and given:
            found.append((section, f"recipe {config.recipe} does not read it; remove the section"))
    return found


def _arm_conflicts(config: Config) -> list[tuple[str, str]]:
    found, names = [], {config.arm_name}
    for number, arm in enumerate(config.compare):
        for name in arm_names(arm):
            if name in names:
                message = f"the name {name!r} is taken by another arm; give this one its own"
                found.append((f"compare.{number}.name", message))
            names.add(name)
        if arm.learning_rates and "learning_rate" in arm.train.optimizer:
            message = "give either learning_rates or train.optimizer.learning_rate; both are given"
            found.append((f"compare.{number}.learning_rates", message))
    return found


def _expansion_conflicts(expansion: BlockExpansionSection | None) -> list[tuple[str, str]]:
    if expansion is None:
        return []
    placement, new_blocks, per_group = (
        expansion.placement,
        expansion.new_blocks,
        expansion.per_group,
    )
    if isinstance(placement, list) and len(placement) != new_blocks:
        message = f"lists {len(placement)} positions, but new_blocks is {new_blocks}"
        return [("block_expansion.placement", message)]
    if placement != "interleaved" and per_group != 1:
        return [("block_expansion.per_group", "is read only where placement is interleaved")]
    if new_blocks % per_group:
        message = f"{per_group} does not divide new_blocks ({new_blocks})"
        return [("block_expansion.per_group", message)]
    return []


def _supervision_conflicts(data: DataSection) -> list[tuple[str, str]]:
    found = []
    sources = list(data.learn)
    for number, source in enumerate(sources):
        if source.shape not in ("auto", "documents") and data.attend == "context":
            message = "supervised examples must not see each other; set data.attend: document"
            found.append((f"data.learn.{number}.shape", message))
    keep = data.keep.sources if isinstance(data.keep, KeepDocuments) else []
    plain = all(source.shape == "documents" for source in [*sources, *keep])
    for key in ("turns", "overlong") if plain else ():
        if key in data.supervise.model_fields_set:
            message = "is read for supervised examples only, and every source holds documents"
            found.append((f"data.supervise.{key}", message))
    return found


def source_conflicts(source: SourceSection, key: str) -> list[tuple[str, str]]:
    """Finds keys of a source that its kind does not read; pairs as in `conflicts`."""
    from_hub = source.format == "hub" or source.source.startswith("hub:")
    if source.subset is not None and not from_hub:
        return [(f"{key}.subset", "is read only for a hub dataset (hub:<dataset>)")]
    return []
