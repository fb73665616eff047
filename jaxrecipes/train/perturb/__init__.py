"""Perturbed word embeddings: adversarial training, virtual adversarial training, noise."""

from jaxrecipes.train.perturb.adversarial import FGM, PGD, FreeLB, KimKang
from jaxrecipes.train.perturb.causal import causal_problem
from jaxrecipes.train.perturb.divergence import kl_divergence, squared_difference
from jaxrecipes.train.perturb.noise import NEFTune
from jaxrecipes.train.perturb.protocol import (
    Clean,
    Perturber,
    Problem,
    Result,
    Statistics,
    update_teacher,
)
from jaxrecipes.train.perturb.virtual import ALUM, SMART, VAT

__all__ = [
    "ALUM",
    "FGM",
    "PGD",
    "SMART",
    "VAT",
    "Clean",
    "FreeLB",
    "KimKang",
    "NEFTune",
    "Perturber",
    "Problem",
    "Result",
    "Statistics",
    "causal_problem",
    "kl_divergence",
    "squared_difference",
    "update_teacher",
]
