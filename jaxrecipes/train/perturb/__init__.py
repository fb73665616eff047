"""Perturbed word embeddings: adversarial training, virtual adversarial training, noise."""

from jaxrecipes.train.perturb.adversarial import FGM, PGD, FreeLB, KimKang
from jaxrecipes.train.perturb.causal import causal_problem
from jaxrecipes.train.perturb.divergence import kl_divergence, squared_difference
from jaxrecipes.train.perturb.noise import NEFTune
from jaxrecipes.train.perturb.options import build_method
from jaxrecipes.train.perturb.protocol import (
    Clean,
    Perturber,
    Problem,
    Result,
    Statistics,
    Task,
    update_teacher,
)
from jaxrecipes.train.perturb.schedule import UNPERTURBED, Perturbation
from jaxrecipes.train.perturb.virtual import ALUM, SMART, VAT, Ascent

__all__ = [
    "ALUM",
    "FGM",
    "PGD",
    "SMART",
    "UNPERTURBED",
    "VAT",
    "Ascent",
    "Clean",
    "FreeLB",
    "KimKang",
    "NEFTune",
    "Perturbation",
    "Perturber",
    "Problem",
    "Result",
    "Statistics",
    "Task",
    "build_method",
    "causal_problem",
    "kl_divergence",
    "squared_difference",
    "update_teacher",
]
