"""The optimizer of a phase, out of its config section."""

from __future__ import annotations

import optax

from jaxrecipes.config.train import OptimizerSection
from jaxrecipes.errors import ConfigError
from jaxrecipes.experiment.program import optimizer_settings
from jaxrecipes.models.stacking import Layout
from jaxrecipes.params.layout import runtime_path
from jaxrecipes.params.paths import Tree
from jaxrecipes.params.rules import label
from jaxrecipes.train.optimizer import learning_rate_schedule, make_optimizer


def phase_optimizer(
    section: OptimizerSection, layout: Layout, params: Tree, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Translates a section `optimizer`.

    Args:
        section: The section.
        layout: Of the trees that the optimizer will see.
        params: Canonical tree; its paths are read.
        steps: Length of the phase.

    Returns:
        The optimizer, and its rate as a function of the updates made.

    Raises:
        ConfigError: A rule does not fit the model, or tells layers of one stack apart.
    """
    settings = optimizer_settings(section, steps)
    decays = label(params, [(rule.pattern, rule.decay) for rule in section.decay_rules])
    rates = label(params, [(rule.pattern, rule.factor) for rule in section.rate_rules])
    of_stack: dict[str, tuple[bool, float]] = {}
    for path in decays:
        pair = (decays[path], rates[path])
        if of_stack.setdefault(runtime_path(layout, path), pair) != pair:
            raise ConfigError(
                f"decay_rules and rate_rules of a phase must treat all layers alike; {path!r} "
                "differs from the same leaf of another layer"
            )
    optimizer = make_optimizer(settings, layout=layout, decays=decays, rates=rates)
    return optimizer, learning_rate_schedule(settings)
