"""What each arm forgot by the time it had learned as much as the others.

Arms learn at different speeds, so comparing what they forgot after the same number of steps
favours the one that learned least. Along its run an arm draws a curve of (gain, forgetting), from
the untrained model at (0, 0) on; forgetting is read off where the running maximum of the gain
first reaches a common value, by linear interpolation between two evaluations. The common value is
the largest gain that every arm reached: nothing is extrapolated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrecipes.errors import DataError
from jaxrecipes.evaluate.bootstrap import Interval, percentile_interval, resampling_weights

# Above this share of resamples without a common gain, an interval would describe the others only.
_MAX_UNDEFINED = 0.05


@dataclass(frozen=True)
class Curve:
    """An arm's evaluations in the order of its run, the first one before training.

    Attributes:
        name: Name of the arm.
        steps: int64 [points], increasing, first 0.
        gain: float64 [points], base learn loss minus learn loss, nats a token.
        forgetting: float64 [points], on the keep set.
        gain_sums: float64 [points, learn documents], gain summed over each document's tokens, or
            None without sums by document.
        learn_tokens: float64 [learn documents], or None.
        forgetting_sums: float64 [points, keep documents], likewise.
        keep_tokens: float64 [keep documents], or None.
    """

    name: str
    steps: np.ndarray
    gain: np.ndarray
    forgetting: np.ndarray
    gain_sums: np.ndarray | None = None
    learn_tokens: np.ndarray | None = None
    forgetting_sums: np.ndarray | None = None
    keep_tokens: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Refuses points that are not one run.

        Raises:
            DataError: There are fewer than two points, or they are not in order.
        """
        if len(self.steps) < 2 or len({len(self.steps), len(self.gain), len(self.forgetting)}) > 1:
            raise DataError(
                f"arm {self.name!r}: a curve needs the evaluation before training and at least one "
                f"after it, with gain and forgetting each; found {len(self.steps)} evaluations"
            )
        if (np.diff(self.steps) <= 0).any():
            raise DataError(f"arm {self.name!r}: evaluations are not in the order of their steps")

    @property
    def has_sums(self) -> bool:
        """Tells whether intervals can be computed."""
        return self.gain_sums is not None and self.forgetting_sums is not None


@dataclass(frozen=True)
class EqualLearning:
    """Forgetting of every arm at one gain.

    Attributes:
        gain: The common gain in nats a token, or None where there is none.
        forgetting: For each arm its forgetting there.
        differences: For each arm but the first, forgetting minus that of the first arm.
        reason: Why there is no result, or why it has no intervals; None where all is there.
    """

    gain: float | None
    forgetting: dict[str, Interval]
    differences: dict[str, Interval]
    reason: str | None

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {
            "gain": self.gain,
            "forgetting": {name: value.to_json() for name, value in self.forgetting.items()},
            "differences": {name: value.to_json() for name, value in self.differences.items()},
            "reason": self.reason,
        }


def equal_learning(
    curves: Sequence[Curve], *, samples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> EqualLearning:
    """Compares arms by what they forgot when they had learned equally much.

    Args:
        curves: One for each arm.
        samples: Number of bootstrap resamples of documents. In each one learn and keep documents
            are drawn anew, the same for all arms, and everything is computed again, the common
            gain included.
        confidence: Mass of the intervals.
        seed: Seed of the resampling.

    Returns:
        The comparison; without a result, and with the reason, where an arm did not learn.
    """
    if not curves:
        return EqualLearning(None, {}, {}, "there are no arms to compare")
    gains = np.stack([_padded(curve.gain, curves) for curve in curves])
    forgetting = np.stack([_padded(curve.forgetting, curves) for curve in curves])
    common = float(np.min(np.nanmax(gains, axis=-1)))
    if not common > 0:
        idle = [curve.name for curve in curves if not np.nanmax(np.asarray(curve.gain, float)) > 0]
        return EqualLearning(
            None,
            {},
            {},
            f"{', '.join(idle)} never got below the base model's loss on the learn set, so there "
            "is no gain that all arms reached",
        )
    values = _interpolate(gains, forgetting, np.asarray(common))
    draws, reason = None, None
    if all(curve.has_sums for curve in curves):
        draws, undefined = _draws(curves, samples=samples, seed=seed)
        if undefined > _MAX_UNDEFINED:
            draws = None
            reason = (
                f"no intervals: in {undefined:.0%} of the resamples some arm did not learn at all; "
                "the gain is too small or the learn set has too few documents"
            )
    else:
        reason = "no intervals: the evaluations carry no sums by document"

    def interval(value: float, drawn: np.ndarray | None) -> Interval:
        if drawn is None:
            return Interval(value, None, None)
        return percentile_interval(value, drawn, confidence=confidence)

    names = [curve.name for curve in curves]
    return EqualLearning(
        gain=common,
        forgetting={
            name: interval(float(values[index]), None if draws is None else draws[:, index])
            for index, name in enumerate(names)
        },
        differences={
            name: interval(
                float(values[index] - values[0]),
                None if draws is None else draws[:, index] - draws[:, 0],
            )
            for index, name in enumerate(names)
            if index
        },
        reason=reason,
    )


def curve_from_records(
    name: str, records: Sequence[Mapping[str, Any]], *, measure: str = "kl"
) -> Curve | str:
    """Makes an arm's curve from its evaluation records.

    Args:
        name: Name of the arm.
        records: Its records (`jaxrecipes.evaluate.record`), in any order. Where a step occurs
            twice, as after a resumed run, the last one counts.
        measure: "kl": KL(base || model) on the keep set; "loss": increase of the keep loss;
            "accuracy": decrease of the accuracy on multiple-choice items (no intervals).

    Returns:
        The curve; or, where there is none, the reason. Evaluations without the measure are left
        out. Where there is none at step 0, the curve begins with (0, 0), the base.

    Raises:
        DataError: The measure is unknown.
    """
    if measure not in ("kl", "loss", "accuracy"):
        raise DataError(f"forgetting measure {measure!r} is unknown; expected kl, loss or accuracy")
    latest = {record["step"]: record for record in records}
    points, gains, forgetting = [], [], []
    for _, record in sorted(latest.items()):
        change, lost = _number(record, "learn", "change"), _forgetting(record, measure)
        if change is not None and lost is not None:
            points.append(record)
            gains.append(-change)
            forgetting.append(lost)
    if not any(record["step"] > 0 for record in points):
        what = {"kl": "KL to the base", "loss": "loss", "accuracy": "accuracy"}[measure]
        where = "the multiple-choice items" if measure == "accuracy" else "the keep set"
        return f"{name} has no {what} on {where} after training began"
    sums = _sums(points, measure)
    if points[0]["step"] > 0:
        # An evaluation before training was not written: the base itself, by definition.
        gains, forgetting = [0.0, *gains], [0.0, *forgetting]
        sums = {
            key: value if key.endswith("tokens") else np.pad(value, ((1, 0), (0, 0)))
            for key, value in sums.items()
        }
    steps = [record["step"] for record in points]
    return Curve(
        name=name,
        steps=np.asarray(steps if steps[0] == 0 else [0, *steps]),
        gain=np.asarray(gains),
        forgetting=np.asarray(forgetting),
        **sums,
    )


def _number(record: Mapping[str, Any], block: str, field: str) -> float | None:
    """Returns record[block][field]["value"], or None where any of them is absent."""
    measured = (record.get(block) or {}).get(field) or {}
    return measured.get("value")


def _forgetting(record: Mapping[str, Any], measure: str) -> float | None:
    if measure == "kl":
        return _number(record, "keep", "kl")
    if measure == "loss":
        return _number(record, "keep", "change")
    change = _number(record, "choices", "change")
    return None if change is None else -change


def _sums(records: Sequence[Mapping[str, Any]], measure: str) -> dict[str, np.ndarray]:
    """Returns the sums by document that a curve takes; {} where a record lacks them."""
    if measure == "accuracy":
        return {}
    blocks = [record.get("document_sums") or {} for record in records]
    if not all("learn" in block and "keep" in block for block in blocks):
        return {}
    learn, keep = [block["learn"] for block in blocks], [block["keep"] for block in blocks]
    gain = [np.subtract(one["base_nll"], one["nll"]) for one in learn]
    lost = [
        np.asarray(one["kl"]) if measure == "kl" else np.subtract(one["nll"], one["base_nll"])
        for one in keep
    ]
    return {
        "gain_sums": np.stack(gain),
        "learn_tokens": np.asarray(learn[0]["tokens"], float),
        "forgetting_sums": np.stack(lost),
        "keep_tokens": np.asarray(keep[0]["tokens"], float),
    }


def _padded(values: np.ndarray, curves: Sequence[Curve]) -> np.ndarray:
    """Extends [..., points] with NaN to the longest curve, so that arms can be stacked."""
    points = max(len(curve.steps) for curve in curves)
    values = np.asarray(values, float)
    widths = [(0, 0)] * (values.ndim - 1) + [(0, points - values.shape[-1])]
    return np.pad(values, widths, constant_values=np.nan)


def _interpolate(gains: np.ndarray, forgetting: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Reads forgetting where the running maximum of the gain first reaches the target.

    Args:
        gains: [..., points], NaN after the last point.
        forgetting: [..., points].
        target: Broadcasts to [...]; positive and not above the largest gain.

    Returns:
        [...]; NaN where the target is not in reach.
    """
    target = np.broadcast_to(target, gains.shape[:-1])[..., None]
    reached = np.nan_to_num(gains, nan=-np.inf) >= target
    after = reached.argmax(-1)[..., None]
    before = np.maximum(after - 1, 0)
    # The point before the first that reaches the target lies below it, whatever came earlier.
    low, high = (np.take_along_axis(gains, index, -1) for index in (before, after))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(after > 0, (target - low) / (high - low), 0.0)
    start, stop = (np.take_along_axis(forgetting, index, -1) for index in (before, after))
    values = start + share * (stop - start)
    return np.where(reached.any(-1, keepdims=True) & (target > 0), values, np.nan)[..., 0]


def _draws(curves: Sequence[Curve], *, samples: int, seed: int) -> tuple[np.ndarray, float]:
    """Resamples documents; returns forgetting [defined samples, arms] and the undefined share."""
    learn, keep = curves[0].learn_tokens, curves[0].keep_tokens
    assert learn is not None and keep is not None  # the caller asked has_sums
    for curve in curves[1:]:
        theirs = (curve.learn_tokens, curve.keep_tokens)
        if not all(
            b is not None and np.array_equal(a, b)
            for a, b in zip((learn, keep), theirs, strict=True)
        ):
            raise DataError(
                f"arms {curves[0].name!r} and {curve.name!r} were evaluated on different "
                "documents; run them with the same evaluation sets"
            )
    # Two generators: the same draw must not pick learn and keep documents of the same number.
    gains = _resampled(curves, "gain_sums", learn, samples, seed)
    forgetting = _resampled(curves, "forgetting_sums", keep, samples, seed + 1)
    common = np.nanmax(gains, axis=-1).min(axis=-1)  # [samples]
    values = _interpolate(gains, forgetting, np.broadcast_to(common[:, None], gains.shape[:-1]))
    defined = np.isfinite(values).all(-1)
    return values[defined], 1.0 - float(defined.mean())


def _resampled(
    curves: Sequence[Curve], field: str, tokens: np.ndarray, samples: int, seed: int
) -> np.ndarray:
    """Returns ratios of resampled sums, [samples, arms, points]."""
    blocks = []
    for weights in resampling_weights(len(tokens), samples=samples, seed=seed):
        totals = (weights @ tokens)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            blocks.append(
                np.stack(
                    [
                        _padded(weights @ getattr(curve, field).T / totals, curves)
                        for curve in curves
                    ],
                    axis=1,
                )
            )
    return np.concatenate(blocks)
