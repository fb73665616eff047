"""Confidence intervals by resampling documents.

Tokens of one document are not independent, documents are: so documents are drawn, with
replacement, and every measure is a ratio of sums over the drawn documents (Efron and Tibshirani
1993, percentile intervals). Intervals say how much a number depends on which documents were in
the evaluation set. They say nothing about another run of the training with another seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrecipes.errors import DataError

# Entries of one block of resampling weights: bounds memory for sets of many documents.
_BLOCK_ENTRIES = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A measured value and its confidence interval.

    Attributes:
        value: The measure on all documents.
        low: Lower end, or None where it cannot be computed (fewer than two documents).
        high: Upper end, or None likewise.
    """

    value: float
    low: float | None
    high: float | None

    def excludes_zero(self) -> bool:
        """Tells whether the whole interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def to_json(self) -> dict[str, float | None]:
        """Returns {"value", "low", "high"}; a value that is not finite becomes None."""
        fields = {"value": self.value, "low": self.low, "high": self.high}
        return {
            name: float(number) if number is not None and np.isfinite(number) else None
            for name, number in fields.items()
        }


def resampling_weights(
    documents: int, *, samples: int, seed: int
) -> Iterator[np.ndarray[Any, np.dtype[np.float64]]]:
    """Yields blocks of bootstrap weights.

    Args:
        documents: Number of documents.
        samples: Number of resamples over all blocks.
        seed: Seed; the same seed and number of documents give the same weights, which is what
            makes differences between models paired.

    Yields:
        float64 [block, documents]: how often each document was drawn; every row sums to
        `documents`.
    """
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_ENTRIES // max(documents, 1))
    probabilities = np.full(documents, 1.0 / documents)
    for start in range(0, samples, block):
        count = min(block, samples - start)
        yield generator.multinomial(documents, probabilities, size=count).astype(np.float64)


def percentile_interval(value: float, draws: np.ndarray, *, confidence: float) -> Interval:
    """Makes an interval of a value and its resampled draws [samples]; NaN draws are left out."""
    draws = draws[np.isfinite(draws)]
    if draws.size < 2:
        return Interval(value, None, None)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))


def ratio_interval(
    numerators: np.ndarray,
    denominators: np.ndarray,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Computes sum(numerators) / sum(denominators) with a bootstrap interval by document.

    Args:
        numerators: [documents], for instance summed losses in nats.
        denominators: [documents], for instance numbers of tokens; not negative.
        samples: Number of resamples.
        confidence: Mass of the interval.
        seed: Seed of the resampling.

    Returns:
        The ratio and its percentile interval; no interval where there is one document only.

    Raises:
        DataError: There are no documents, shapes differ, or all denominators are zero.
    """
    numerators, denominators = _documents(numerators, denominators)
    value = float(numerators.sum() / denominators.sum())
    if numerators.size < 2:
        return Interval(value, None, None)
    draws = [
        _ratios(weights, numerators, denominators)
        for weights in resampling_weights(numerators.size, samples=samples, seed=seed)
    ]
    return percentile_interval(value, np.concatenate(draws), confidence=confidence)


def difference_interval(
    numerators: np.ndarray,
    base_numerators: np.ndarray,
    denominators: np.ndarray,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Computes the paired difference of two ratios over the same documents.

    Args:
        numerators: [documents], of the model.
        base_numerators: [documents], of what it is compared with, on the same documents.
        denominators: [documents], shared.
        samples: Number of resamples.
        confidence: Mass of the interval.
        seed: Seed of the resampling.

    Returns:
        ratio(model) - ratio(base); paired, so variation between documents cancels.

    Raises:
        DataError: There are no documents, shapes differ, or all denominators are zero.
    """
    if np.shape(base_numerators) != np.shape(numerators):
        raise DataError(
            f"a paired difference needs the same documents on both sides: one has shape "
            f"{np.shape(numerators)}, the other {np.shape(base_numerators)}"
        )
    difference = np.asarray(numerators, np.float64) - np.asarray(base_numerators, np.float64)
    return ratio_interval(
        difference, denominators, samples=samples, confidence=confidence, seed=seed
    )


def _ratios(weights: np.ndarray, numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Returns the ratio of each resample [samples]; NaN where it drew no tokens at all."""
    totals = weights @ denominators
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(totals > 0, (weights @ numerators) / totals, np.nan)


def _documents(numerators: np.ndarray, denominators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checks per-document sums and returns them as float64."""
    numerators = np.asarray(numerators, np.float64)
    denominators = np.asarray(denominators, np.float64)
    if numerators.ndim != 1 or numerators.shape != denominators.shape:
        raise DataError(
            f"sums by document must be two vectors of one length, got shapes {numerators.shape} "
            f"and {denominators.shape}"
        )
    if not denominators.sum() > 0:
        raise DataError(
            f"{numerators.size} documents hold nothing to score; expected at least one "
            "supervised token (a document of one token has none)"
        )
    return numerators, denominators
