"""The section of perturbed word embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from jaxrecipes.config.section import Section

# Method -> its options, as `train.perturb.options.method_options`, which a test compares; the
# schema does not import JAX.
METHOD_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "fgm": ("epsilon", "weight", "relative"),
    "pgd": ("epsilon", "step_size", "steps", "relative"),
    "freelb": ("steps", "step_size", "initial_magnitude", "radius", "norm", "clean"),
    "neftune": ("alpha",),
    "vat": ("epsilon", "xi", "steps", "weight"),
    "smart": ("weight", "proximal", "epsilon", "noise", "step_size", "steps"),
    "alum": ("weight", "epsilon", "noise", "step_size", "steps"),
    "kim_kang": ("clean_weight", "epsilon", "step_size", "steps", "relative"),
}
# Keys of the section that are no options of a method.
NOT_OPTIONS = {"method", "warmup", "teacher"}
# Recipes whose trained leaves are leaves of the base, which another checkpoint has, too.
TEACHER_RECIPES = ("freeze", "full", "in_context_pretraining", "strided_freeze")
# The least entry of a perturbation that bfloat16 does not round away beside a word embedding. Of
# SmolLM2-135M's, 1e-3 changes 99.7 % (cosine with what was added 0.98), 1e-4 23 % (0.48), 1e-5 3 %.
LEAST_BFLOAT16 = 1e-3


class PerturbSection(Section):
    """Training on perturbed word embeddings: adversarial, virtual adversarial, or noise.

    Each method reads some of the options (docs/concepts/perturbations.md); one that it does not
    read is an error, and one that is not given is as in the method's paper.
    """

    method: Literal[
        "none", "fgm", "pgd", "freelb", "neftune", "vat", "smart", "alum", "kim_kang"
    ] = Field(
        description="fgm, pgd, freelb: perturbations that raise the loss. vat, smart, alum: "
        "that change the predictions. neftune: noise. kim_kang: perturbations of a model that was "
        "trained before. none: clean, for an arm beside a perturbed one."
    )
    warmup: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of all steps that train on clean embeddings before the method begins.",
    )
    epsilon: float | None = Field(
        default=None,
        gt=0,
        description="Size of an example's perturbation: its L2 norm (fgm, pgd, vat, kim_kang), its "
        "largest entry (smart, alum).",
    )
    relative: bool | None = Field(
        default=None,
        description="fgm, pgd, kim_kang: lengths are in units of the norm of an example's "
        "embeddings.",
    )
    steps: int | None = Field(default=None, ge=1, le=100, description="Steps of the search.")
    step_size: float | None = Field(default=None, gt=0, description="Length of one of them.")
    weight: float | None = Field(
        default=None, gt=0, description="fgm, vat, smart, alum: weight beside the clean loss."
    )
    norm: Literal["l2", "linf"] | None = Field(
        default=None, description="freelb: norm of steps and ball."
    )
    radius: float | None = Field(
        default=None, ge=0, description="freelb: of the ball around the embeddings; 0: no ball."
    )
    initial_magnitude: float | None = Field(
        default=None, ge=0, description="freelb: size of the random start; 0: none."
    )
    clean: bool | None = Field(
        default=None, description="freelb: train on the clean embeddings, too."
    )
    alpha: float | None = Field(
        default=None, gt=0, description="neftune: size of the noise; the paper takes 5, 10 or 15."
    )
    xi: float | None = Field(default=None, gt=0, description="vat: length of the probe.")
    noise: float | None = Field(
        default=None, gt=0, description="smart, alum: standard deviation of the start."
    )
    proximal: float | None = Field(
        default=None,
        ge=0,
        description="smart: weight of staying near the mean of past parameters; 0: none, which "
        "saves a copy of what trains.",
    )
    clean_weight: float | None = Field(
        default=None, ge=0, description="kim_kang: weight of the clean loss."
    )
    teacher: str | None = Field(
        default=None,
        min_length=1,
        description="kim_kang: checkpoint (folder or hub id) of the model that is attacked: the "
        "same base, trained on the same data, for instance the `final/model` of another run.",
    )


def perturb_conflicts(
    section: PerturbSection | None,
    recipe: str,
    compute_dtype: str,
    *,
    key: str = "train.perturb",
) -> list[tuple[str, str]]:
    """Finds options that a method does not read, and what cannot work together.

    Args:
        section: The section, or None.
        recipe: Name of the recipe.
        compute_dtype: Of the forward pass.
        key: Where the section is.

    Returns:
        Pairs (dotted key, what is wrong and what to do).
    """
    if section is None:
        return []
    method, known = section.method, METHOD_OPTIONS[section.method]
    options = section.model_dump(exclude=NOT_OPTIONS, exclude_none=True)
    reads = f"it reads {', '.join(known)}" if known else "it has no options"
    found = [
        (f"{key}.{name}", f"method {method} does not read it; {reads}")
        for name in options
        if name not in known
    ]
    if method == "none" and section.warmup:
        found.append((f"{key}.warmup", "method none has nothing to wait for; remove it"))
    if method == "kim_kang" and section.teacher is None:
        message = "kim_kang attacks a model that was trained before; give its checkpoint"
        found.append((f"{key}.teacher", message))
    if method == "kim_kang" and recipe not in TEACHER_RECIPES:
        message = (
            f"recipe {recipe} trains leaves that the teacher's checkpoint does not have; "
            f"kim_kang works with {', '.join(TEACHER_RECIPES)}"
        )
        found.append((f"{key}.method", message))
    if method != "kim_kang" and section.teacher is not None:
        found.append((f"{key}.teacher", "is read by method kim_kang only; remove it"))
    small = method in ("smart", "alum") and (section.epsilon or 1e-5) < LEAST_BFLOAT16
    if small and compute_dtype == "bfloat16":
        message = (
            f"{method} with perturbations below {LEAST_BFLOAT16:g} does nothing in bfloat16, which "
            f"rounds them away; set model.compute_dtype: float32, or a larger {key}.epsilon"
        )
        found.append((f"{key}.method", message))
    return found
