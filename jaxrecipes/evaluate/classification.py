"""Scores of classifiers: accuracy, macro-F1, over seeds, and two methods against each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxrecipes.errors import ConfigError, DataError
from jaxrecipes.evaluate.bootstrap import Interval, percentile_interval, resampling_weights

Score = Literal["accuracy", "macro_f1"]


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Computes the share of right predictions.

    Args:
        predictions: int [items].
        labels: int [items].

    Raises:
        DataError: There are no items, or the shapes differ.
    """
    return float(_scores(*_checked(predictions, labels), "accuracy")[0])


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Computes the mean over classes of F1 = 2 TP / (2 TP + FP + FN).

    As scikit-learn's `f1_score(average="macro")`: the mean is over the classes that occur among the
    labels or the predictions.

    Args:
        predictions: int [items].
        labels: int [items].

    Raises:
        DataError: There are no items, or the shapes differ.
    """
    return float(_scores(*_checked(predictions, labels), "macro_f1")[0])


def _scores(
    predictions: np.ndarray,
    labels: np.ndarray,
    score: Score,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Computes a score for each row of item weights [samples, items]; float64 [samples]."""
    weights = np.ones((1, labels.size)) if weights is None else weights
    right = (predictions == labels).astype(np.float64)
    if score == "accuracy":
        return (weights @ right) / weights.sum(axis=1)
    classes = np.union1d(predictions, labels)
    predicted = (predictions[:, None] == classes).astype(np.float64)  # [items, classes]
    true = (labels[:, None] == classes).astype(np.float64)
    hits = 2.0 * (weights @ (predicted * true))
    total = weights @ predicted + weights @ true  # 2 TP + FP + FN
    occurs = total > 0
    f1 = np.divide(hits, total, out=np.zeros_like(hits), where=occurs)
    return f1.sum(axis=1) / occurs.sum(axis=1)


# (predictions, labels) -> score.
SCORES: Mapping[Score, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
}


@dataclass(frozen=True)
class SeedSummary:
    """A score over seeds.

    Attributes:
        mean: Mean.
        deviation: Standard deviation of a seed (n - 1 in the denominator); None for one seed.
        values: The score of each seed.
    """

    mean: float
    deviation: float | None
    values: tuple[float, ...]

    def show(self, scale: float = 100.0) -> str:
        """Returns for instance "81.25 ± 0.40"."""
        spread = "" if self.deviation is None else f" ± {scale * self.deviation:.2f}"
        return f"{scale * self.mean:.2f}{spread}"


def over_seeds(values: Sequence[float]) -> SeedSummary:
    """Summarises the scores of runs that differ in their seed.

    Raises:
        DataError: There are none.
    """
    if not values:
        raise DataError("there are no scores to summarise; expected one for each seed")
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return SeedSummary(float(np.mean(values)), deviation, tuple(float(value) for value in values))


def paired_difference(
    predictions: np.ndarray,
    base_predictions: np.ndarray,
    labels: np.ndarray,
    score: Score,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Compares two methods on the same test items.

    Items are drawn with replacement, the same for both and for all seeds (Berg-Kirkpatrick et al.
    2012, D12-1091). The interval says how much the difference depends on the test items, not on
    the seeds: those are in the means.

    Args:
        predictions: int [seeds, items] of a method.
        base_predictions: int [seeds, items] of what it is compared with; other seeds are allowed.
        labels: int [items].
        score: "accuracy" or "macro_f1".
        samples: Number of resamples.
        confidence: Mass of the interval.
        seed: Of the resampling.

    Returns:
        The method's mean score over seeds minus the other's, with its percentile interval.

    Raises:
        DataError: There are no items or seeds, or the shapes differ.
    """
    arms = []
    for name, arm in (("predictions", predictions), ("base_predictions", base_predictions)):
        arm = np.asarray(arm)
        if arm.ndim != 2 or not len(arm) or arm.shape[1:] != np.shape(labels):
            raise DataError(
                f"{name} has the shape {arm.shape}; expected [seeds, {np.size(labels)}], a row for "
                "each seed on the same items as the labels"
            )
        arms.append([_checked(row, labels) for row in arm])

    def difference(weights: np.ndarray | None) -> np.ndarray:
        means = [
            np.mean([_scores(found, truth, score, weights) for found, truth in arm], axis=0)
            for arm in arms
        ]
        return means[0] - means[1]

    value = float(difference(None)[0])
    if np.size(labels) < 2:
        return Interval(value, None, None)
    blocks = resampling_weights(np.size(labels), samples=samples, seed=seed)
    draws = np.concatenate([difference(weights) for weights in blocks])
    return percentile_interval(value, draws, confidence=confidence)


@dataclass
class EarlyStopping:
    """Remembers the best score on held-out data and says when to stop.

    Attributes:
        patience: Looks in a row without a better score after which to stop.
        best: Best score so far; None before the first.
        best_at: Number of the look that gave it, from 0.
        looks: Looks so far.
    """

    patience: int
    best: float | None = None
    best_at: int = -1
    looks: int = 0

    def __post_init__(self) -> None:
        """Refuses a patience that is not positive.

        Raises:
            ConfigError: It is less than 1.
        """
        if self.patience < 1:
            raise ConfigError(f"patience is {self.patience}; expected at least 1")

    def improved(self, score: float) -> bool:
        """Takes a score and tells whether it is the best so far; an equal one is not better."""
        better = not np.isnan(score) and (self.best is None or score > self.best)
        if better:
            self.best, self.best_at = score, self.looks
        self.looks += 1
        return better

    @property
    def should_stop(self) -> bool:
        """Whether the latest `patience` looks brought nothing better."""
        return self.looks - 1 - self.best_at >= self.patience


def _checked(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if labels.ndim != 1 or predictions.shape != labels.shape or not labels.size:
        raise DataError(
            f"predictions have the shape {predictions.shape} and labels {labels.shape}; expected "
            "two vectors of one length, at least 1"
        )
    return predictions, labels
