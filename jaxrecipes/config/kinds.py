"""The kinds of experiments: which recipes have which schema, arms and runner; one visible table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxrecipes.config.adaptive import ADAPTIVE_RECIPES, AdaptiveConfig, adaptive_arms
from jaxrecipes.config.arms import expand_arms
from jaxrecipes.config.experiment import Config
from jaxrecipes.config.llm2llm import LLM2LLM_RECIPES, Llm2llmConfig, llm2llm_arms
from jaxrecipes.config.recipe_options import RECIPE_NAMES
from jaxrecipes.config.rehearsal import REHEARSAL_RECIPES, RehearsalConfig, rehearsal_arms
from jaxrecipes.config.section import ExperimentSection


class NamedArm(Protocol):
    """What the arms of every kind have."""

    @property
    def name(self) -> str:
        """Unique in the experiment; usable as a folder name."""
        ...


@dataclass(frozen=True)
class Kind:
    """Experiments that share a schema.

    Attributes:
        title: What the reference calls them; empty for the kind of most recipes.
        recipes: Their names.
        schema: What a config of theirs holds.
        arms: Lists the arms of a config, the main one first.
        runner: Module with `run(config, *, console)`. It is imported when it runs, not before: it
            needs JAX, the schema does not.
        unhashed: Keys beside `output`, `name` and `compare` that change no result.
    """

    title: str
    recipes: tuple[str, ...]
    schema: type[ExperimentSection]
    arms: Callable[[Any], Sequence[NamedArm]]
    runner: str
    unhashed: frozenset[str] = frozenset()


KINDS = (
    Kind("", RECIPE_NAMES, Config, expand_arms, "jaxrecipes.experiment.run", frozenset({"mesh"})),
    Kind(
        "the adaptive recipes",
        ADAPTIVE_RECIPES,
        AdaptiveConfig,
        adaptive_arms,
        "jaxrecipes.experiment.adaptive",
        # A run can go on with more seeds.
        frozenset({"seeds", "checkpoint"}),
    ),
    Kind(
        "recipe llm2llm",
        LLM2LLM_RECIPES,
        Llm2llmConfig,
        llm2llm_arms,
        "jaxrecipes.experiment.llm2llm",
        frozenset({"seeds", "mesh"}),
    ),
    Kind(
        "self-synthesized rehearsal",
        REHEARSAL_RECIPES,
        RehearsalConfig,
        rehearsal_arms,
        "jaxrecipes.experiment.rehearsal",
        frozenset({"mesh"}),
    ),
)
ALL_RECIPES = tuple(recipe for kind in KINDS for recipe in kind.recipes)


def kind_of(config: ExperimentSection | Mapping[str, Any]) -> Kind:
    """Returns the kind of a config.

    Args:
        config: A config, or the plain data of one, which may be invalid.

    Returns:
        Its recipe's kind; that of most recipes for an unknown one.
    """
    recipe = config.recipe if isinstance(config, ExperimentSection) else config.get("recipe")
    return next((kind for kind in KINDS if recipe in kind.recipes), KINDS[0])
