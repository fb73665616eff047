"""The sections that belong to one recipe each; each has its recipe's name."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from jaxrecipes.config.section import Pattern, Section

RecipeName = Literal["block_expansion", "full", "freeze", "strided_freeze"]
# A recipe without options (full) has no section.
RECIPE_SECTIONS = ("block_expansion", "freeze", "strided_freeze")


class BlockExpansionSection(Section):
    """Options of recipe block_expansion: insert blocks, train them, freeze the rest."""

    new_blocks: int = Field(ge=1, le=1024, description="Blocks to insert.")
    placement: Literal["interleaved", "prefix", "suffix"] | list[int] = Field(
        default="interleaved",
        description="interleaved: one group of new blocks above each group of old ones (the "
        "paper's). prefix, suffix: all below or above the old blocks (the paper's controls). Or a "
        "list of indices in the expanded model, increasing.",
    )
    per_group: int = Field(
        default=1,
        ge=1,
        description="New blocks above each group (the paper's P); interleaved only.",
    )
    init: Literal["identity", "copy", "random"] = Field(
        default="identity",
        description="identity: copies whose two output projections are zero, so that the model "
        "computes the base function at the start. copy (plain copies) and random are controls.",
    )

    @field_validator("placement")
    @classmethod
    def _increasing(cls, value: str | list[int]) -> str | list[int]:
        if isinstance(value, list) and (value != sorted(set(value)) or any(at < 0 for at in value)):
            raise PydanticCustomError(
                "placement", "positions must be increasing indices, 0 or more, each once"
            )
        return value


class FreezeRule(Section):
    """One rule: which leaves, and whether they train."""

    pattern: Pattern = Field(
        description="Regular expression that a whole leaf path, such as "
        "layers/7/attention/query/kernel, must match."
    )
    train: bool = Field(description="true: matching leaves train. false: they are frozen.")


class FreezeSection(Section):
    """Options of recipe freeze: train chosen leaves in place."""

    rules: list[FreezeRule] = Field(
        min_length=1,
        description="Ordered rules; the first that matches a leaf decides. A leaf that no rule "
        "matches is an error, so the last pattern is usually '.*'.",
    )


class StridedFreezeSection(Section):
    """Options of recipe strided_freeze: train old blocks where expansion would insert new ones."""

    blocks: int = Field(
        ge=1,
        le=1024,
        description="Existing blocks to train: those that an interleaved expansion by as many "
        "blocks would copy. All others are frozen. The control that tells depth from freezing.",
    )
