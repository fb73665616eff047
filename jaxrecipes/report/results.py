"""What a run folder says, gathered into one JSON value: `results.json`.

    {"schema": 1, "name": "quickstart",
     "headline": "…", "findings": ["…", …],
     "arms": [{"name", "finished": bool, "summary": {…} of summary.json,
               "before": record | null, "after": record,
               "evaluations": [records without sums by document],
               "training": [{"step", "tokens", "loss", "accepted"}],
               "training_seconds", "tokens_per_second", "skipped",
               "orders": [what the order of a source's documents is like]}],
     "equal_learning": {"kl": {"gain", "forgetting", "differences", "reason"}, "loss": …,
                        "accuracy": …},
     "config": "…yaml…", "environment": {…}}

Records are those of `jaxrecipes.evaluate.record`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrecipes.errors import DataError, UsageError
from jaxrecipes.evaluate.frontier import Curve, EqualLearning, curve_from_records, equal_learning
from jaxrecipes.evaluate.record import read_metrics, read_records
from jaxrecipes.report.findings import findings

SCHEMA = 1
# In an arm's folder, where its recipe orders documents.
ORDERS = "orders.json"
REWRITES = "rewrites.json"
MEASURES = ("kl", "loss", "accuracy")
# A curve on a screen has no more to show.
_MAX_TRAINING_POINTS = 2000

Results = dict[str, Any]


def collect_results(run_folder: Path) -> Results:
    """Reads a run folder.

    Args:
        run_folder: Output folder of a run, finished or not.

    Returns:
        The value described in this module's docstring. Arms are in the order of the run; those
        that were not evaluated yet are left out.

    Raises:
        UsageError: It is no run folder, or nothing was evaluated yet.
        DataError: A file in it is damaged; names file and line.
    """
    folders = _arm_folders(run_folder)
    if not folders:
        raise UsageError(
            f"{run_folder} is no run folder: it has no arms; give the output folder of a run"
        )
    arms, records = [], {}
    for folder in folders:
        path = folder / "evaluations.jsonl"
        found = read_records(path) if path.exists() else []
        if found:
            # After a resumed run a step may be there twice; the last one counts.
            records[folder.name] = [
                record for _, record in sorted({one["step"]: one for one in found}.items())
            ]
            arms.append(_arm(folder, records[folder.name]))
    if not arms:
        raise UsageError(
            f"{run_folder}: no arm was evaluated yet; `jaxrecipes run` writes the first evaluation "
            "before the first step"
        )
    compared = {measure: compare(records, measure).to_json() for measure in MEASURES}
    sentences = findings(arms, compared)
    return finite_values(
        {
            "schema": SCHEMA,
            "name": run_folder.resolve().name,
            "headline": sentences[0],
            "findings": sentences[1:],
            "arms": arms,
            "equal_learning": compared,
            "config": read_text_or_nothing(run_folder / "run.yaml"),
            "environment": read_object(run_folder / "environment.json"),
        }
    )


def compare(records: Mapping[str, Sequence[Mapping[str, Any]]], measure: str) -> EqualLearning:
    """Compares arms at equal learning, or says why that cannot be done.

    Args:
        records: Arm -> its evaluation records.
        measure: See `curve_from_records`.

    Returns:
        The comparison.
    """
    curves = [curve_from_records(name, found, measure=measure) for name, found in records.items()]
    reasons = [curve for curve in curves if isinstance(curve, str)]
    if measure == "accuracy":
        # Items cost more than documents and may be scored at both ends only: no curve, two points.
        reasons += [
            f"{curve.name} was asked the questions {len(curve.steps)} times; a curve needs three"
            for curve in curves
            if isinstance(curve, Curve) and len(curve.steps) < 3
        ]
    if reasons:
        return EqualLearning(None, {}, {}, "; ".join(reasons))
    return equal_learning([curve for curve in curves if isinstance(curve, Curve)])


def _arm_folders(run_folder: Path) -> list[Path]:
    """Lists the arms' folders in the order of the run, which `identity.json` keeps."""
    present = {path.name: path for path in (run_folder / "arms").glob("*") if path.is_dir()}
    order = list((read_object(run_folder / "identity.json").get("arms")) or {})
    names = [name for name in order if name in present]
    return [present[name] for name in [*names, *sorted(present.keys() - set(names))]]


def _arm(folder: Path, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    summary = read_object(folder / "summary.json")
    path = folder / "metrics.jsonl"
    steps = read_metrics(path) if path.exists() else []
    accepted = [step for step in steps if step.get("accepted", True)]
    stride = max(1, math.ceil(len(accepted) / _MAX_TRAINING_POINTS))
    seconds = sum(step.get("seconds") or 0.0 for step in steps)
    # The first step of a process may still wait for data and compilation; speed is of the others.
    timed = steps[1:] if len(steps) > 1 else steps
    timed_seconds = sum(step.get("seconds") or 0.0 for step in timed)
    tokens = sum(step.get("supervised_tokens") or 0 for step in timed)
    light = [
        {key: part for key, part in record.items() if key != "document_sums"} for record in records
    ]
    return {
        "name": folder.name,
        "finished": bool(summary),
        "summary": summary,
        "before": light[0] if light[0]["step"] == 0 else None,
        "after": light[-1],
        "evaluations": light,
        "training": [
            {"step": step["step"], "tokens": step["tokens"], "loss": step["loss"]}
            for step in accepted[::stride]
        ],
        "training_seconds": seconds if steps else None,
        "tokens_per_second": tokens / timed_seconds if tokens and timed_seconds > 0 else None,
        "skipped": len(steps) - len(accepted),
        "orders": read_object(folder / ORDERS).get("sources", []),
        "rewrites": read_object(folder / REWRITES).get("sources", []),
    }


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; {} where there is no file."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as JSON ({error}); run the config again"
        ) from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def read_text_or_nothing(path: Path) -> str:
    """Reads a text file; "" where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def finite_values(value: Any) -> Any:
    """Replaces numbers that JSON cannot hold by None."""
    if isinstance(value, dict):
        return {key: finite_values(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite_values(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
