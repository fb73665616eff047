"""The sections of phases: pretraining on text, then fine-tuning on labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jaxrecipes.config.perturb import PerturbSection
from jaxrecipes.config.section import ArmName, Section
from jaxrecipes.config.train import OptimizerSection

AdaptiveRecipeName = Literal["dapt", "tapt", "curated_tapt", "knn_tapt"]
# What a pretraining phase can read.
ReadName = Literal["task", "domain", "selected", "random"]


class PhaseOptimizerSection(OptimizerSection):
    """How a gradient becomes an update; the defaults are those that RoBERTa is trained with."""

    schedule: Literal["constant", "linear", "cosine", "wsd"] = Field(
        default="linear", description="Course of the rate after warm-up, anew in every phase."
    )
    final_ratio: float = Field(
        default=0.0, ge=0, le=1, description="Rate at the last step, as a share of the peak."
    )
    weight_decay: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Decoupled weight decay, times the rate. The paper has 0.1 in fine-tuning.",
    )
    beta2: float = Field(default=0.98, ge=0, lt=1, description="Second-moment decay (AdamW, Lion).")
    epsilon: float = Field(
        default=1e-6, gt=0, le=1, description="Added to the root of the second moment."
    )


class MaskingSection(Section):
    """What is masked, and how: anew in every step."""

    rate: float = Field(default=0.15, gt=0, lt=1, description="Share of the tokens that is chosen.")
    mask_share: float = Field(
        default=0.8, ge=0, le=1, description="Share of the chosen that becomes the mask token."
    )
    random_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of the chosen that becomes a random token; the rest stays.",
    )
    whole_words: bool = Field(
        default=False, description="All pieces of a word are chosen together."
    )


class PretrainPhase(Section):
    """A phase that reads text without labels."""

    kind: Literal["pretrain"] = Field(description="Reads text.")
    name: ArmName = Field(description="Its name in the report and in folders.")
    read: list[ReadName] = Field(
        min_length=1,
        description="task: the training texts of the task, without their labels. domain: the "
        "sources of `domain`. selected: the neighbours of the task's texts in them. random: as "
        "many others, drawn at random.",
    )
    objective: Literal["auto", "masked", "causal"] = Field(
        default="auto",
        description="masked: masked tokens, for encoders. causal: the next token, for decoders. "
        "auto: what the model is made for.",
    )
    steps: int | None = Field(
        default=None, ge=1, description="Optimizer steps. Give steps or epochs."
    )
    epochs: float | None = Field(
        default=None, gt=0, description="Passes over what is read. Give steps or epochs."
    )
    batch_size: int = Field(default=256, ge=1, description="Texts a step.")
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Texts at a time: gradients of the parts are added up. Must divide batch_size. "
        "null: all at once.",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=8,
        le=131_072,
        description="Longest row; longer texts become several. null: task.max_tokens.",
    )
    replay: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Share of rows that are general texts, in place of replay.share.",
    )
    masking: MaskingSection = Field(
        default_factory=MaskingSection, description="For the masked objective."
    )
    dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Dropout of encoders; decoders have none."
    )
    optimizer: PhaseOptimizerSection = Field(
        default_factory=lambda: PhaseOptimizerSection(learning_rate=1e-4),
        description="How a gradient becomes an update.",
    )
    reset_optimizer: bool = Field(
        default=True,
        description="Begin with empty moments. false: go on with those that the pretraining phase "
        "before left. The course of the rate begins anew either way.",
    )


class FineTunePhase(Section):
    """The last phase: a head, and what is below it, learns the labels, once for each seed."""

    kind: Literal["finetune"] = Field(description="Learns labels.")
    epochs: int = Field(default=10, ge=1, description="Passes over the training rows.")
    patience: int | None = Field(
        default=3,
        ge=1,
        description="Epochs without a better dev score after which to stop. null: all epochs. The "
        "parameters of the best epoch are kept either way.",
    )
    batch_size: int = Field(default=16, ge=1, description="Rows a step.")
    dropout: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Dropout of encoders: embeddings, residual branches, head. Decoders have none.",
    )
    optimizer: PhaseOptimizerSection = Field(
        default_factory=lambda: PhaseOptimizerSection(learning_rate=2e-5, weight_decay=0.1),
        description="How a gradient becomes an update.",
    )
    perturb: PerturbSection | None = Field(
        default=None, description="Training on perturbed word embeddings. null: on clean ones."
    )


Phase = Annotated[PretrainPhase | FineTunePhase, Field(discriminator="kind")]


def default_phases(recipe: AdaptiveRecipeName) -> list[PretrainPhase | FineTunePhase]:
    """Returns a recipe's phases as in the paper (arXiv 2004.10964, appendix B).

    DAPT is one pass over the domain in large batches; the other three read for 100 epochs.
    """
    if recipe == "dapt":
        first = PretrainPhase(
            kind="pretrain",
            name="dapt",
            read=["domain"],
            epochs=1,
            batch_size=2048,
            optimizer=PhaseOptimizerSection(learning_rate=5e-4),
        )
    else:
        read: dict[str, list[ReadName]] = {
            "tapt": ["task"],
            "curated_tapt": ["task", "domain"],
            "knn_tapt": ["task", "selected"],
        }
        first = PretrainPhase(kind="pretrain", name=recipe, read=read[recipe], epochs=100)
    return [first, FineTunePhase(kind="finetune")]
