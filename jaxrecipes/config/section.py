"""What all sections of a config have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A part of the config: unknown keys are errors, and no value is converted silently.

    "8" is not 8 and true is not 1; an integer is accepted where a float is meant.
    """

    # Validators are built on first use: building one for each section at import costs 0.1 s.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True
    )


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise PydanticCustomError(
            "regular_expression", "not a regular expression: {reason}", {"reason": str(error)}
        ) from None
    return pattern


Pattern = Annotated[str, Field(min_length=1), AfterValidator(_regular_expression)]
# Becomes a folder name and a label in charts.
ArmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=64)]


class ExperimentSection(Section):
    """What the config of every experiment begins with, and where its values come from."""

    version: Literal[1] = Field(description="Version of this schema.")
    name: ArmName | None = Field(
        default=None,
        description="Name of the main arm in tables and folders. null: the recipe's name.",
    )
    recipe: str = Field(description="What is done to the model. `jaxrecipes ls` explains.")

    # Dotted key -> where its value came from; filled in by file.load_config, empty elsewhere.
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def origins(self) -> dict[str, str]:
        """Dotted key -> "file:line" or "command line", for given keys; empty if made in Python."""
        return dict(self._origins)

    @property
    def arm_name(self) -> str:
        """The name of the main arm."""
        return self.name or self.recipe


def refuse_conflicts(problems: Sequence[tuple[str, str]]) -> None:
    """Ends a validation where values that are right alone are wrong together.

    Args:
        problems: Pairs (dotted key, what is wrong and what to do).

    Raises:
        PydanticCustomError: There are some; `config.problems` takes it apart again.
    """
    if problems:
        summary = "; ".join(f"{key}: {message}" for key, message in problems)
        raise PydanticCustomError(
            "conflicts", "{summary}", {"summary": summary, "problems": list(problems)}
        )
