"""The section of a supervised fine-tuning inside of a recipe that does several of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jaxrecipes.config.data import SuperviseSection
from jaxrecipes.config.experiment import train_conflicts
from jaxrecipes.config.recipe_options import LoraSection
from jaxrecipes.config.section import Section
from jaxrecipes.config.train import TrainSection


class TuningSection(Section):
    """How a decoder is fine-tuned on supervised rows, each time that the recipe does it."""

    method: Literal["full", "lora"] = Field(
        default="full",
        description="full: everything trains. lora: adapters, merged when they are trained.",
    )
    lora: LoraSection | None = Field(default=None, description="Options of method lora.")
    length: int = Field(
        default=1024, ge=8, le=1_048_576, description="Tokens a row; examples are packed into rows."
    )
    supervise: SuperviseSection = Field(
        default_factory=SuperviseSection,
        description="How examples are rendered, masked and fitted into rows.",
    )
    train: TrainSection = Field(description="How long, how much at once, and how.")


def tuning_conflicts(section: TuningSection, compute_dtype: str, key: str) -> list[tuple[str, str]]:
    """Finds values that are right alone and wrong together.

    Args:
        section: The section.
        compute_dtype: Of the forward pass.
        key: Where the section is.

    Returns:
        Pairs (dotted key, what is wrong and what to do).
    """
    found = train_conflicts(section.train, section.method, compute_dtype, key=f"{key}.train")
    if section.method == "lora" and section.lora is None:
        found.append((f"{key}.lora", "method lora needs this section"))
    if section.method != "lora" and section.lora is not None:
        found.append((f"{key}.lora", f"method {section.method} does not read it; remove it"))
    return found
