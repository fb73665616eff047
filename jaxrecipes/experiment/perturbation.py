"""An arm's perturbation, out of its config."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from jaxrecipes.config import Config
from jaxrecipes.config.perturb import NOT_OPTIONS, PerturbSection
from jaxrecipes.train.perturb.options import build_method
from jaxrecipes.train.perturb.schedule import UNPERTURBED, Perturbation


def make_perturbation(section: PerturbSection | None, steps: int) -> Perturbation:
    """Translates a section `perturb`.

    Args:
        section: The section; None for clean embeddings.
        steps: Length of the run.

    Returns:
        The perturbation; `UNPERTURBED` where there is none.

    Raises:
        ConfigError: An option is out of its range.
    """
    if section is None or section.method == "none":
        return UNPERTURBED
    options = section.model_dump(exclude=NOT_OPTIONS, exclude_none=True)
    method = build_method(section.method, options)
    clean_steps = min(math.ceil(section.warmup * steps), steps - 1)
    return Perturbation(method, clean_steps, steps)


def describe_perturbation(config: Config, steps: int) -> dict[str, Any] | None:
    """Describes an arm's perturbation, with every option of its method.

    Returns:
        JSON values for the summary; None where embeddings are clean.
    """
    section = config.train.perturb
    if section is None or section.method == "none":
        return None
    perturbation = make_perturbation(section, steps)
    method: Any = perturbation.method
    return {
        "method": section.method,
        "options": asdict(method),
        "clean_steps": perturbation.clean_steps,
        "teacher": section.teacher or perturbation.teacher,
    }
