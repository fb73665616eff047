"""The section that arranges devices; what is learned does not depend on it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from jaxrecipes.config.section import Section

AxisSize = Annotated[int, Field(ge=-1)]


class MeshSection(Section):
    """How the devices of all hosts are arranged. The product of the axes is their number."""

    data: AxisSize = Field(
        default=1,
        description="Replicas of the whole state, each with its rows; the only axis between TPU "
        "slices. -1: what the other axes leave.",
    )
    fsdp: AxisSize = Field(
        default=-1,
        description="Parts that weights and optimizer state are cut into, each with its rows; a "
        "layer is gathered when it is computed. -1: what the other axes leave.",
    )
    context: AxisSize = Field(
        default=1,
        description="Parts that the tokens of a row are cut into, for long rows; keys and values "
        "are gathered. -1: what the other axes leave.",
    )
    tensor: AxisSize = Field(
        default=1,
        description="Parts that attention heads and feed-forward units are cut into. -1: what the "
        "other axes leave.",
    )
    slices: int = Field(
        default=1, ge=1, description="TPU slices that the data axis spans; divides data."
    )

    @model_validator(mode="after")
    def _sizes(self) -> MeshSection:
        sizes = {"data": self.data, "fsdp": self.fsdp}
        sizes |= {"context": self.context, "tensor": self.tensor}
        zero = [name for name, size in sizes.items() if size == 0]
        rest = [name for name, size in sizes.items() if size == -1]
        if zero:
            raise PydanticCustomError(
                "mesh", "{names} is 0; expected a number of devices, or -1", {"names": zero[0]}
            )
        if len(rest) > 1:
            raise PydanticCustomError(
                "mesh",
                "{names} are -1; only one axis can take what the others leave",
                {"names": " and ".join(rest)},
            )
        return self
