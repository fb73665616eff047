"""What all sections of a config have in common."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
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
