"""The annotated configs that ship with the package."""

from __future__ import annotations

import difflib
from pathlib import Path

import jaxrecipes
from jaxrecipes.errors import UsageError
from jaxrecipes.recipes import RECIPES


def shipped_folder() -> Path:
    """Returns the folder of shipped configs: in an installed wheel, else in a checkout."""
    package = Path(jaxrecipes.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_config(recipe: str, name: str | None = None) -> Path:
    """Finds a shipped config.

    Args:
        recipe: A recipe's name.
        name: Which of its configs; None for the first.

    Returns:
        Path of a YAML file.

    Raises:
        UsageError: No such recipe or config; names the nearest.
    """
    by_name = {entry.name: entry for entry in RECIPES}
    if recipe not in by_name:
        raise UsageError(f"no recipe {recipe!r}{_choices(recipe, list(by_name))}")
    configs = by_name[recipe].configs
    if name is not None and name not in configs:
        raise UsageError(f"recipe {recipe} has no config {name!r}{_choices(name, list(configs))}")
    return shipped_folder() / recipe / f"{name or configs[0]}.yaml"


def _choices(given: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(given, valid, n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    return f"{hint} There are: {', '.join(valid)}"
