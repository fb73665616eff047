"""Learning one task after another: accuracy, transfer and forgetting.

R[i, j] is the score on task j after training on the tasks 1 .. i; row 0 is the untrained model. Of
T tasks, with j counted from 1 (Lopez-Paz and Ranzato, arXiv 1706.08840; forgetting: Chaudhry et
al., arXiv 1801.10112):

    ACC = mean over j of R[T, j]
    BWT = mean over j < T of R[T, j] - R[j, j]          negative: what was learned is lost again
    FWT = mean over j > 1 of R[j - 1, j] - R[0, j]      positive: earlier tasks helped
    forgetting = mean over j < T of (max over l < T of R[l, j]) - R[T, j]

SSR (Huang et al., arXiv 2403.01244) writes a_j^(i) for R[i, j]. Its AR is ACC, its BWT the one
above. Its FWT is another one, without the untrained model: mean over j > 1 of R[j - 1, j], the
plain score on a task before it is learned (`zero_shot`).

An entry that was not measured is NaN, and the terms that need it are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxrecipes.errors import DataError
from jaxrecipes.evaluate.bootstrap import Interval, percentile_interval, resampling_weights

Metric = Callable[[np.ndarray], np.ndarray]


def accuracy(matrix: np.ndarray) -> np.ndarray:
    """Returns ACC, the mean score after the last task.

    Args:
        matrix: R as float [..., tasks + 1, tasks].

    Returns:
        float64 [...]; NaN where no entry of the last row was measured.
    """
    return _mean(matrix[..., -1, :])


def backward_transfer(matrix: np.ndarray) -> np.ndarray:
    """Returns BWT; argument and result as for `accuracy`, NaN for a single task."""
    learned = np.diagonal(matrix[..., 1:, :], axis1=-2, axis2=-1)
    return _mean((matrix[..., -1, :] - learned)[..., :-1])


def forward_transfer(matrix: np.ndarray) -> np.ndarray:
    """Returns FWT; argument and result as for `accuracy`, NaN for a single task."""
    before = np.diagonal(matrix[..., :-1, :], axis1=-2, axis2=-1)
    return _mean((before - matrix[..., 0, :])[..., 1:])


def zero_shot(matrix: np.ndarray) -> np.ndarray:
    """Returns what SSR calls FWT; argument and result as for `accuracy`, NaN for a single task."""
    return _mean(np.diagonal(matrix[..., :-1, :], axis1=-2, axis2=-1)[..., 1:])


def forgetting(matrix: np.ndarray, *, untrained: bool = True) -> np.ndarray:
    """Returns how far the tasks are below the best that the model could do before.

    Args:
        matrix: R as float [..., tasks + 1, tasks].
        untrained: The untrained model counts among those before, since a pretrained model can do
            much that it was not trained for; Chaudhry et al. begin after the first task.

    Returns:
        float64 [...]; NaN for a single task.
    """
    before = matrix[..., 0 if untrained else 1 : -1, :-1]
    missing = np.isnan(before)
    # -inf where nothing was measured, which the difference must not show.
    best = np.max(np.where(missing, -np.inf, before), axis=-2, initial=-np.inf)
    best = np.where(np.isneginf(best), np.nan, best)
    return _mean(best - matrix[..., -1, :-1])


@dataclass(frozen=True)
class SequenceMetrics:
    """A sequence of tasks in a few numbers.

    Attributes:
        accuracy: ACC, in the unit of the scores.
        backward_transfer: BWT; negative is forgetting, also for losses.
        forward_transfer: FWT; positive is help, also for losses.
        forgetting: Positive is loss of ability, also for losses.
        zero_shot: SSR's FWT, in the unit of the scores.
    """

    accuracy: Interval
    backward_transfer: Interval
    forward_transfer: Interval
    forgetting: Interval
    zero_shot: Interval

    def to_json(self) -> dict[str, dict[str, float | None]]:
        """Returns {name: {"value", "low", "high"}}; what cannot be computed is None."""
        return {
            "accuracy": self.accuracy.to_json(),
            "backward_transfer": self.backward_transfer.to_json(),
            "forward_transfer": self.forward_transfer.to_json(),
            "forgetting": self.forgetting.to_json(),
            "zero_shot": self.zero_shot.to_json(),
        }


@dataclass(frozen=True)
class DocumentScores:
    """Scores of every model on every task, document by document.

    Attributes:
        scores: scores[i][j] float [documents of task j] after the tasks 1 .. i, in the order of
            the task's documents; None where it was not measured.
        weights: weights[j] float [documents of task j], for instance tokens; a model's score on a
            task is sum(scores) / sum(weights). None for ones, the mean.
    """

    scores: Sequence[Sequence[np.ndarray | None]]
    weights: Sequence[np.ndarray] | None = None

    def matrix(self) -> np.ndarray:
        """Returns R, float64 [tasks + 1, tasks].

        Raises:
            DataError: Rows, tasks or documents do not fit together.
        """
        return self.resampled([np.ones((1, size)) for size in self._documents()])[0]

    def resampled(self, draws: Sequence[np.ndarray]) -> np.ndarray:
        """Returns R for resampled documents.

        Args:
            draws: For each task how often each document was drawn, float [samples, documents].

        Returns:
            float64 [samples, tasks + 1, tasks].

        Raises:
            DataError: Rows, tasks or documents do not fit together.
        """
        sizes = self._documents()
        result = np.full((draws[0].shape[0], len(self.scores), len(sizes)), np.nan)
        for task, (size, drawn) in enumerate(zip(sizes, draws, strict=True)):
            weights = np.ones(size) if self.weights is None else np.asarray(self.weights[task])
            totals = drawn @ weights
            for row, models in enumerate(self.scores):
                values = models[task]
                if values is not None:
                    with np.errstate(divide="ignore", invalid="ignore"):
                        ratio = (drawn @ np.asarray(values, np.float64)) / totals
                    result[:, row, task] = np.where(totals > 0, ratio, np.nan)
        return result

    def draws(self, *, samples: int, seed: int) -> list[np.ndarray]:
        """Draws documents for `resampled`: the same for all models, independent between tasks."""
        return [
            np.concatenate(list(resampling_weights(size, samples=samples, seed=_seed(seed, task))))
            for task, size in enumerate(self._documents())
        ]

    def _documents(self) -> list[int]:
        """Checks the scores and returns the number of documents of each task."""
        tasks = len(self.scores) - 1
        if tasks < 1 or any(len(row) != tasks for row in self.scores):
            raise DataError(
                f"scores of {len(self.scores)} models on {[len(row) for row in self.scores]} "
                "tasks; expected one model more than tasks: the untrained one, then one a task"
            )
        if self.weights is not None and len(self.weights) != tasks:
            raise DataError(f"weights of {len(self.weights)} tasks for {tasks} tasks")
        sizes = []
        for task in range(tasks):
            models = [row[task] for row in self.scores]
            found = {np.shape(values) for values in models if values is not None}
            if self.weights is not None:
                found.add(np.shape(self.weights[task]))
            if len(found) != 1 or len(next(iter(found))) != 1 or next(iter(found))[0] < 1:
                raise DataError(
                    f"task {task + 1}: scores by document have the shapes {sorted(found)}; "
                    "expected the same documents for every model, at least one"
                )
            sizes.append(next(iter(found))[0])
        return sizes


def sequence_metrics(
    scores: np.ndarray | DocumentScores,
    *,
    higher_is_better: bool = True,
    untrained: bool = True,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> SequenceMetrics:
    """Computes ACC, BWT, FWT and forgetting of a sequence of tasks.

    Args:
        scores: R as [tasks + 1, tasks], NaN where it was not measured; or the scores by document,
            which give intervals as well.
        higher_is_better: False for losses; transfer and forgetting keep their signs' meaning.
        untrained: See `forgetting`.
        samples: Number of resamples.
        confidence: Mass of the intervals.
        seed: Seed of the resampling.

    Returns:
        The numbers; intervals by document (all models see the same resample) where scores by
        document are given.

    Raises:
        DataError: The matrix does not have one row more than columns, or documents do not fit.
    """
    draws = None
    if isinstance(scores, DocumentScores):
        matrix = scores.matrix()
        draws = scores.resampled(scores.draws(samples=samples, seed=seed))
    else:
        matrix = np.asarray(scores, np.float64)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] + 1 or matrix.shape[1] < 1:
            raise DataError(
                f"R has the shape {matrix.shape}; expected [tasks + 1, tasks]: the row of the "
                "untrained model, then one row after each task"
            )
    sign = 1.0 if higher_is_better else -1.0

    def interval(metric: Metric, sign: float) -> Interval:
        value = float(metric(sign * matrix))
        if draws is None:
            return Interval(value, None, None)
        return percentile_interval(value, metric(sign * draws), confidence=confidence)

    return SequenceMetrics(
        accuracy=interval(accuracy, 1.0),
        backward_transfer=interval(backward_transfer, sign),
        forward_transfer=interval(forward_transfer, sign),
        forgetting=interval(lambda matrix: forgetting(matrix, untrained=untrained), sign),
        zero_shot=interval(zero_shot, 1.0),
    )


def _mean(values: np.ndarray) -> np.ndarray:
    """Averages what was measured along the last axis; NaN where nothing was."""
    measured = ~np.isnan(values)
    total = np.sum(np.where(measured, values, 0.0), axis=-1)
    with np.errstate(invalid="ignore"):
        return total / np.where(measured.any(axis=-1), measured.sum(axis=-1), np.nan)


def _seed(seed: int, task: int) -> int:
    return int(np.random.SeedSequence([seed, task]).generate_state(1)[0])
