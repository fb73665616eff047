"""The section of penalties that hold a model near where it began."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jaxrecipes.config.data import SourceSection
from jaxrecipes.config.section import Section

# Keys that only Fisher information reads, and of these the ones that need an earlier one.
_EWC_KEYS = ("sources", "examples", "targets", "earlier", "accumulate", "decay")
_EARLIER_KEYS = ("accumulate", "decay")
# Recipes whose trained leaves are not the base's.
_NEW_LEAVES = ("block_expansion", "lora")


class PenaltySection(Section):
    """A penalty beside the loss that holds the trained leaves, or the predictions, near the start.

    Its value is the metric `penalty`, the loss without it `task_loss`.
    """

    kind: Literal["none", "l2", "ewc", "kl"] = Field(
        description="l2: squared distance of the trained leaves to the start. ewc: the same, each "
        "leaf's entries weighed by their Fisher information on `sources`. kl: KL(base || model) at "
        "the supervised tokens of each batch. none: no penalty, for an arm beside one that has it."
    )
    coefficient: float | None = Field(
        default=None,
        ge=0,
        le=1e12,
        description="Weight of the penalty; 0 trains without it, bit for bit. l2, ewc: half of it "
        "multiplies the sum of squares. kl: nats a token.",
    )
    sources: list[SourceSection] | None = Field(
        default=None,
        min_length=1,
        description="ewc: rows on which the Fisher information is computed before the first step: "
        "of the task, or the texts, that must not be forgotten. Not the keep set, on which "
        "forgetting is measured.",
    )
    examples: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="ewc: use at most this many examples (documents, or prompts with answers); "
        "each costs a backward pass. null: 256.",
    )
    targets: Literal["model", "data"] | None = Field(
        default=None,
        description="ewc: whose answers are differentiated. model: drawn from the model's own "
        "distribution, which is the Fisher information. data: those of the rows (the empirical "
        "Fisher). null: model.",
    )
    earlier: str | None = Field(
        default=None,
        min_length=1,
        description="ewc: folder of the Fisher information that an earlier run saved "
        "(`arms/<name>/fisher`), of the same recipe: this run's is added to it.",
    )
    accumulate: Literal["separate", "online"] | None = Field(
        default=None,
        description="ewc with earlier. separate: a quadratic a task, each around its own end "
        "(Kirkpatrick et al. 2016). online: one around this run's start (Schwarz et al. 2018). "
        "null: separate.",
    )
    decay: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="ewc, online: factor on the earlier information. null: 1.",
    )


def penalty_conflicts(
    section: PenaltySection | None, recipe: str, *, key: str = "train.penalty"
) -> list[tuple[str, str]]:
    """Finds options that a penalty does not read or lacks.

    Args:
        section: The section, or None.
        recipe: What it trains.
        key: Where the section is.

    Returns:
        Pairs (dotted key, what is wrong and what to do).
    """
    if section is None:
        return []
    kind, found = section.kind, []
    if kind == "none" and section.coefficient is not None:
        found.append((f"{key}.coefficient", "kind none has nothing to weigh; remove it"))
    if kind != "none" and section.coefficient is None:
        message = f"kind {kind} needs one; it has no default, since it depends on model and rate"
        found.append((f"{key}.coefficient", message))
    for name in _EWC_KEYS if kind != "ewc" else ():
        if getattr(section, name) is not None:
            found.append((f"{key}.{name}", f"is read by kind ewc only, not by {kind}; remove it"))
    if kind != "ewc":
        return found
    if section.sources is None:
        message = "kind ewc needs rows to compute the Fisher information on; give sources"
        found.append((f"{key}.sources", message))
    if section.earlier is not None and recipe in _NEW_LEAVES:
        message = (
            f"recipe {recipe} trains leaves that begin anew in each run, so that the information "
            "of an earlier run is about others; use a recipe that trains the base's own"
        )
        found.append((f"{key}.earlier", message))
    for name in _EARLIER_KEYS if section.earlier is None else ():
        if getattr(section, name) is not None:
            found.append((f"{key}.{name}", "is read beside `earlier` only; give both or neither"))
    if section.decay is not None and section.accumulate != "online":
        found.append((f"{key}.decay", "is read where accumulate is online; remove it"))
    return found
