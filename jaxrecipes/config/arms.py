"""The arms of a comparison: each is a whole config, equal to the main one but for its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxrecipes.config.experiment import Config, arm_names
from jaxrecipes.config.recipe_options import ALSO_READS, RECIPE_SECTIONS


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: Unique in the experiment; usable as a folder name.
        config: What it runs; its `compare` is empty.
    """

    name: str
    config: Config


def expand_arms(config: Config) -> list[Arm]:
    """Lists the arms of an experiment, the main one first, sweeps written out.

    Args:
        config: A valid config. One that came from `load_config` has valid arms.

    Returns:
        At least one arm.

    Raises:
        pydantic.ValidationError: A config made in Python has an arm that is not valid.
    """
    given = config.model_dump(exclude_unset=True)
    main = {key: value for key, value in given.items() if key != "compare"}
    arms = [_make_arm(config, config.arm_name, main)]
    for number, section in enumerate(config.compare):
        raw = section.model_dump(exclude_unset=True)
        for name, rate in zip(arm_names(section), section.learning_rates or [None], strict=True):
            merged = merge_arm(given, raw, name=name, learning_rate=rate)
            arms.append(_make_arm(config, name, merged, number))
    return arms


def _make_arm(main: Config, name: str, data: dict[str, Any], number: int | None = None) -> Arm:
    config = Config.model_validate(data)
    config._origins.update(main.origins)
    if number is not None:
        prefix = f"compare.{number}."
        own = {key: text for key, text in main.origins.items() if key.startswith(prefix)}
        config._origins.update({key.removeprefix(prefix): text for key, text in own.items()})
    return Arm(name, config)


def merge_arm(
    main: Mapping[str, Any],
    arm: Mapping[str, Any],
    *,
    name: str | None = None,
    learning_rate: float | None = None,
) -> dict[str, Any]:
    """Puts an arm's plain data over that of the main config.

    The options of the main recipe go, unless the arm runs the same recipe; its own replace them.

    Args:
        main: The main config, as plain data; may be invalid.
        arm: One item of `compare`, as plain data; may be invalid.
        name: The arm's name, where the arm gives none or is one of a sweep.
        learning_rate: Rate of one run of a sweep.

    Returns:
        Plain data of the arm's config.
    """
    recipe = arm.get("recipe")
    reads = (
        {str(recipe), *ALSO_READS.get(str(recipe), ())} if recipe == main.get("recipe") else set()
    )
    dropped = {"compare", "name", *RECIPE_SECTIONS} - reads
    merged = {key: value for key, value in main.items() if key not in dropped}
    for key in ("name", "recipe", *RECIPE_SECTIONS):
        if arm.get(key) is not None:
            merged[key] = arm[key]
    if name is not None:
        merged["name"] = name
    changes = arm.get("train")
    if isinstance(changes, Mapping):
        given = {key: value for key, value in changes.items() if value is not None}
        merged["train"] = _overlay(merged.get("train"), given)
        if "perturb" in given:
            # Options belong to a method: those of the main arm's would be errors beside another.
            merged["train"]["perturb"] = given["perturb"]
    if learning_rate is not None:
        rate = {"optimizer": {"learning_rate": learning_rate}}
        merged["train"] = _overlay(merged.get("train"), rate)
    return merged


def _overlay(base: Any, changes: Mapping[str, Any]) -> Any:
    if not isinstance(base, Mapping):
        return dict(changes)
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _overlay(merged[key], value) if nested else value
    return merged
