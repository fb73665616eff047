"""An arm's penalty, out of its config."""

from __future__ import annotations

from typing import Any

from jaxrecipes.config import Config
from jaxrecipes.config.penalty import PenaltySection
from jaxrecipes.errors import ConfigError
from jaxrecipes.params.surgery import Surgery
from jaxrecipes.train.penalty import Penalty

# As the section's descriptions say.
EXAMPLES = 256


def make_penalty(section: PenaltySection | None) -> Penalty | None:
    """Translates a section `penalty`; None where the step adds nothing, also for coefficient 0."""
    if section is None or section.kind == "none" or not section.coefficient:
        return None
    return Penalty(section.kind, section.coefficient)


def check_penalty(penalty: Penalty | None, recipe: str, surgery: Surgery) -> None:
    """Refuses a penalty that has no meaning for a recipe.

    Args:
        penalty: From `make_penalty`.
        recipe: Name of the recipe.
        surgery: What it made of the base.

    Raises:
        ConfigError: KL to the base, and the model does not begin as the base.
    """
    if penalty is not None and penalty.kind == "kl" and not surgery.keeps_function:
        raise ConfigError(
            f"train.penalty.kind: kl measures the distance to the base, and recipe {recipe} with "
            "these options begins as another function than the base; use l2 or ewc, or options "
            "that begin as the base"
        )


def describe_penalty(config: Config) -> dict[str, Any] | None:
    """Describes an arm's penalty.

    Returns:
        JSON values for the summary; None where there is no penalty.
    """
    section = config.train.penalty
    if section is None or make_penalty(section) is None:
        return None
    described: dict[str, Any] = {"kind": section.kind, "coefficient": section.coefficient}
    if section.kind == "ewc":
        described |= {
            "examples": section.examples or EXAMPLES,
            "targets": section.targets or "model",
            "earlier": section.earlier,
            "accumulate": section.accumulate or "separate",
            "decay": section.decay or 1.0,
        }
    return described
