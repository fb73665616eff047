"""The JSON schema of config files, for editors."""

from __future__ import annotations

from typing import Any, Union

from pydantic import TypeAdapter

from jaxrecipes.config.kinds import KINDS


def json_schema() -> dict[str, Any]:
    """Returns the schema of a config of any recipe."""
    schemas: Any = Union[tuple(kind.schema for kind in KINDS)]  # noqa: UP007
    found = TypeAdapter(schemas).json_schema()
    return {"title": "Config", **found}
