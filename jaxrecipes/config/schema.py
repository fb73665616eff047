"""The JSON schema of config files, for editors."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from jaxrecipes.config.adaptive import AdaptiveConfig
from jaxrecipes.config.experiment import Config


def json_schema() -> dict[str, Any]:
    """Returns the schema of a config of any recipe."""
    found = TypeAdapter(Config | AdaptiveConfig).json_schema()
    return {"title": "Config", **found}
