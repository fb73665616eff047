"""The report of a run: `results.json`, `plots/*.png` and `report.html`, one file to pass on."""

from __future__ import annotations

import base64
import json
import math
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from jaxrecipes.report.charts import (
    evaluation_loss_chart,
    learned_forgotten_chart,
    training_loss_chart,
)
from jaxrecipes.report.headline import headline
from jaxrecipes.report.results import collect_results
from jaxrecipes.report.rows import cost_rows, count_text, result_rows


def write_report(
    run_folder: Path, *, samples: int = 1000, confidence: float = 0.95
) -> dict[str, Any]:
    """Writes `results.json`, `plots/*.png` and `report.html` into a run folder.

    The page needs no network and no other file. Each file is replaced as a whole.

    Args:
        run_folder: Output folder of a run.
        samples: Bootstrap resamples for the comparison at equal learning.
        confidence: Mass of the intervals of that comparison.

    Returns:
        The results, see `collect_results`.

    Raises:
        DataError: See `collect_results`.
    """
    run_folder = Path(run_folder)
    results = collect_results(run_folder, samples=samples, confidence=confidence)
    charts = {
        "learned-forgotten": (
            "What each arm had forgotten when it had learned so much: to the right is better, low "
            "is better. Whiskers are 95 % intervals.",
            learned_forgotten_chart(results),
        ),
        "learn-loss": (
            "Loss on held-out text of what is taught. Whiskers are 95 % intervals of the change "
            "since the base model.",
            evaluation_loss_chart(results, "learn"),
        ),
        "keep-loss": (
            "Loss on text that must not be forgotten, likewise.",
            evaluation_loss_chart(results, "keep"),
        ),
        "training-loss": (
            "Training loss of each step, and its running mean over a twentieth of the run.",
            training_loss_chart(results),
        ),
    }
    images = {name: (text, image) for name, (text, image) in charts.items() if image is not None}
    plots = run_folder / "plots"
    plots.mkdir(exist_ok=True)
    for name in charts:
        if name in images:
            _replace(plots / f"{name}.png", images[name][1])
        else:
            (plots / f"{name}.png").unlink(missing_ok=True)
    # Steps are in metrics.jsonl already; results.json is what a script would compare runs by.
    arms = [
        {key: value for key, value in arm.items() if key != "metrics"} for arm in results["arms"]
    ]
    text = json.dumps(_finite(results | {"arms": arms}), indent=2, ensure_ascii=False)
    _replace(run_folder / "results.json", (text + "\n").encode())
    _replace(run_folder / "report.html", _render(results, images).encode())
    return results


def _render(results: dict[str, Any], images: dict[str, tuple[str, bytes]]) -> str:
    environment = Environment(
        loader=PackageLoader("jaxrecipes.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = count_text
    sentences = headline(results)
    return environment.get_template("report.html.j2").render(
        results=results,
        verdict=sentences[0],
        sentences=sentences[1:],
        rows=result_rows(results),
        costs=cost_rows(results),
        images=[(text, base64.b64encode(image).decode("ascii")) for text, image in images.values()],
        environment_json=json.dumps(results["environment"], indent=2, ensure_ascii=False),
    )


def _finite(value: Any) -> Any:
    """Returns JSON values with null for numbers that JSON has no form for."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old one or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
