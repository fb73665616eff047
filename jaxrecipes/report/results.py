"""Everything a report shows, read from the JSON files of a run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrecipes.errors import DataError
from jaxrecipes.evaluate.frontier import Curve, curve_from_records, equal_learning
from jaxrecipes.evaluate.record import read_metrics, read_records


def collect_results(
    run_folder: Path, *, samples: int = 1000, confidence: float = 0.95
) -> dict[str, Any]:
    """Reads a run folder and compares its finished arms.

    Args:
        run_folder: Output folder of a run. Arms without `summary.json` have not finished; they
            are named and left out.
        samples: Bootstrap resamples for the comparison at equal learning.
        confidence: Mass of the intervals of that comparison. Intervals of single evaluations were
            computed by the run, at 95 %.

    Returns:
        JSON values::

            {"run": "name", "main": "arm", "confidence": 0.95, "samples": 1000,
             "unfinished": ["arm", ...],
             "arms": [{"name", "summary", "before": record | null, "after": record | null,
                       "evaluations": [record, ...], "metrics": [step, ...]}, ...],
             "equal_learning": {"gain", "forgetting", "differences", "reason", "left_out": [text]},
             "environment": {...}, "config": "text of run.yaml"}

        Records are those of `jaxrecipes.evaluate.record` without the sums by document, in the
        order of their steps. The first arm is the main one; `differences` are measured minus it.

    Raises:
        DataError: It is no run folder, no arm has finished, or a file in it is damaged.
    """
    run_folder = Path(run_folder)
    identity_file = run_folder / "identity.json"
    if not identity_file.is_file():
        raise DataError(
            f"{run_folder} is no run folder: it has no identity.json; give the config's output"
        )
    identity = _read_json(identity_file)
    if not isinstance(identity.get("arms"), dict):
        raise DataError(f"{identity_file}: expected an object 'arms' with a hash for each arm")
    names = list(identity["arms"])
    folders = {name: run_folder / "arms" / name for name in names}
    finished = [name for name in names if (folders[name] / "summary.json").is_file()]
    if not finished:
        raise DataError(
            f"{run_folder}: none of its arms ({', '.join(names)}) has finished; a report needs "
            "arms/<arm>/summary.json, so run the same config again to go on with it"
        )
    arms, curves, left_out = [], [], []
    for name in finished:
        records = _by_step(read_records(folders[name] / "evaluations.jsonl"))
        curve = curve_from_records(name, records)
        if isinstance(curve, Curve):
            curves.append(curve)
        else:
            left_out.append(curve)
        arms.append(_arm(name, folders[name], records))
    return {
        "run": run_folder.resolve().name,
        "main": finished[0],
        "confidence": confidence,
        "samples": samples,
        "unfinished": [name for name in names if name not in finished],
        "arms": arms,
        "equal_learning": _compare(curves, samples, confidence) | {"left_out": left_out},
        "environment": _read_json(run_folder / "environment.json"),
        "config": _read_text(run_folder / "run.yaml"),
    }


def measured(record: Mapping[str, Any] | None, block: str, field: str) -> dict[str, Any] | None:
    """Returns a measure of a record as {"value", "low", "high"}.

    Args:
        record: An evaluation record, or None.
        block: "learn", "keep", "choices" or "last_words".
        field: For instance "loss".

    Returns:
        The measure, or None where it was not measured or is not finite.
    """
    interval = ((record or {}).get(block) or {}).get(field)
    return interval if interval and interval.get("value") is not None else None


def _arm(name: str, folder: Path, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    evaluations = [
        {key: value for key, value in record.items() if key != "document_sums"}
        for record in records
    ]
    trained = [record for record in evaluations if record["step"] > 0]
    return {
        "name": name,
        "summary": _read_json(folder / "summary.json"),
        "before": next((record for record in evaluations if record["step"] == 0), None),
        "after": trained[-1] if trained else None,
        "evaluations": evaluations,
        "metrics": _by_step(read_metrics(folder / "metrics.jsonl")),
    }


def _compare(curves: Sequence[Curve], samples: int, confidence: float) -> dict[str, Any]:
    """Compares the arms; what makes them incomparable becomes the reason, not an error."""
    try:
        return equal_learning(curves, samples=samples, confidence=confidence).to_json()
    except DataError as error:
        return {"gain": None, "forgetting": {}, "differences": {}, "reason": str(error)}


def _by_step(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Puts entries in the order of their steps; of a step run twice, the last one counts."""
    return [entry for _, entry in sorted({entry["step"]: entry for entry in entries}.items())]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON ({error.msg}); run the same config again to write it"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
