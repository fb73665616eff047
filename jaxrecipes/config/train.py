"""The sections of training and evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jaxrecipes.config.penalty import PenaltySection
from jaxrecipes.config.perturb import PerturbSection
from jaxrecipes.config.section import Pattern, Section

# As `models.stacking.SAVEABLE_NAMES`, which a test compares; the schema does not import JAX.
SaveableName = Literal[
    "query", "key", "value", "attention", "after_attention", "gate", "up", "down"
]


class DecayRule(Section):
    """One rule: which leaves, and whether weight decay applies."""

    pattern: Pattern = Field(description="Regular expression that a whole leaf path must match.")
    decay: bool = Field(description="Whether weight decay applies to matching leaves.")


def default_decay_rules() -> list[DecayRule]:
    """Matrices decay; scales, biases and the magnitudes of DoRA do not."""
    return [
        DecayRule(pattern=r".*/(scale|bias|lora_magnitude)", decay=False),
        DecayRule(pattern=r".*", decay=True),
    ]


class RateRule(Section):
    """One rule: which leaves, and how fast they learn."""

    pattern: Pattern = Field(description="Regular expression that a whole leaf path must match.")
    factor: float = Field(
        gt=0, le=1e6, description="What learning_rate is multiplied by for matching leaves."
    )


class OptimizerSection(Section):
    """How a gradient becomes an update."""

    name: Literal["adamw", "lion", "adafactor", "muon"] = Field(
        default="adamw", description="Update rule. muon uses AdamW where a leaf is not a matrix."
    )
    learning_rate: float = Field(
        gt=0,
        le=10,
        description="Peak rate. New blocks that start as the identity want about ten times that of "
        "full fine-tuning.",
    )
    schedule: Literal["constant", "linear", "cosine", "wsd"] = Field(
        default="cosine",
        description="Course of the rate after warm-up. wsd: constant, then linear decay over the "
        "last fifth.",
    )
    warmup: float = Field(
        default=0.06,
        ge=0,
        lt=1,
        description="Share of all steps over which the rate rises from zero.",
    )
    final_ratio: float = Field(
        default=0.1, ge=0, le=1, description="Rate at the last step, as a share of the peak."
    )
    weight_decay: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Decoupled weight decay, times the rate; trained leaves only.",
    )
    decay_rules: list[DecayRule] = Field(
        default_factory=default_decay_rules,
        min_length=1,
        description="Ordered rules; the first that matches a leaf decides whether it decays.",
    )
    rate_rules: list[RateRule] = Field(
        default_factory=lambda: [RateRule(pattern=".*", factor=1.0)],
        min_length=1,
        description="Ordered rules; the first that matches a leaf decides its rate. Those of "
        "lora.loraplus_lr_ratio come before them.",
    )
    beta1: float = Field(
        default=0.9, ge=0, lt=1, description="First-moment decay (AdamW, Lion); momentum (Muon)."
    )
    beta2: float = Field(default=0.95, ge=0, lt=1, description="Second-moment decay (AdamW, Lion).")
    epsilon: float = Field(
        default=1e-8, gt=0, le=1, description="Added to the root of the second moment."
    )
    clip_norm: float | None = Field(
        default=1.0,
        gt=0,
        description="Largest global norm of the trained leaves' gradient. null: none.",
    )


class SpikesSection(Section):
    """When a step is skipped because its loss or gradient is out of the ordinary."""

    sigma: float = Field(
        default=6.0,
        gt=0,
        description="Skip a step this many standard deviations above the recent mean.",
    )
    window: int = Field(
        default=128, ge=8, le=65536, description="Accepted steps that count as recent."
    )
    limit: int = Field(
        default=10,
        ge=1,
        description="More skipped steps than this end the run with exit code 5.",
    )


class CheckpointSection(Section):
    """Saving the training state."""

    every_steps: int = Field(
        default=100, ge=1, description="Steps between saves; the end is saved too."
    )
    keep: int = Field(
        default=2, ge=1, le=1000, description="Complete checkpoints to keep: the newest."
    )


class TrackersSection(Section):
    """Where metrics go besides metrics.jsonl. Logins come from the tracker's own environment."""

    tensorboard: bool = Field(
        default=False, description="Write TensorBoard event files into the run folder."
    )
    wandb: bool = Field(default=False, description="Log to Weights & Biases (extra: wandb).")
    mlflow: bool = Field(default=False, description="Log to MLflow (extra: mlflow).")


class TrainSection(Section):
    """How long, how much at once, and how."""

    steps: int | None = Field(
        default=None, ge=1, description="Optimizer steps. Give steps or epochs."
    )
    epochs: float | None = Field(
        default=None, gt=0, description="Passes over the learn set. Give steps or epochs."
    )
    batch_size: int = Field(ge=1, description="Rows a step, over all devices.")
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Rows at a time: gradients of the parts are added up, which needs less memory "
        "and changes nothing else. Must divide batch_size. null: all at once.",
    )
    optimizer: OptimizerSection = Field(description="How a gradient becomes an update.")
    remat: Literal["none", "dots", "names", "full", "offload", "groups"] = Field(
        default="dots",
        description="What the backward pass computes again to save memory. none: nothing; dots: "
        "all but products with weights, half the memory at the same speed; names: all but "
        "remat_names; full: whole layers, from their inputs; offload: as full, with the inputs in "
        "the host's memory; groups: groups of layers, from their inputs.",
    )
    remat_names: list[SaveableName] = Field(
        default_factory=list, description="With remat: names, what a layer keeps."
    )
    loss_chunk: int = Field(
        default=1024,
        ge=1,
        description="Tokens whose logits exist at one time; less needs less memory.",
    )
    perturb: PerturbSection | None = Field(
        default=None, description="Training on perturbed word embeddings. null: on clean ones."
    )
    penalty: PenaltySection | None = Field(
        default=None, description="Holding the model near where it began. null: no penalty."
    )
    spikes: SpikesSection = Field(
        default_factory=SpikesSection, description="Skipping harmful steps."
    )
    checkpoint: CheckpointSection = Field(
        default_factory=CheckpointSection, description="Saving the training state."
    )
    trackers: TrackersSection = Field(
        default_factory=TrackersSection, description="Where metrics go."
    )


class EvaluateSection(Section):
    """What is measured, and when."""

    points: int = Field(
        default=4,
        ge=1,
        le=1000,
        description="Evaluations after the start, evenly spaced; the last one is at the end. The "
        "start is always evaluated.",
    )
    learn_documents: int | None = Field(
        default=None,
        ge=2,
        description="Use at most this many held-out learn documents, each to its first "
        "`data.length` tokens. null: all.",
    )
    keep_documents: int | None = Field(
        default=None, ge=2, description="Use at most this many keep documents. null: all."
    )
    choices: str | None = Field(
        default="builtin",
        min_length=1,
        description="Multiple-choice items that the model should still answer: builtin, a JSONL "
        "file (question, choices, answer), or null for none.",
    )
    last_words: str | None = Field(
        default="builtin",
        min_length=1,
        description="Last-word items: builtin, a JSONL file (context, target), or null for none.",
    )
    limit_items: int | None = Field(
        default=None,
        ge=2,
        description="Use at most this many choice items, and as many last-word items. null: all. "
        "Items are scored at the start and at the end only.",
    )
    batch_size: int = Field(default=8, ge=1, description="Rows at a time, over all devices.")
