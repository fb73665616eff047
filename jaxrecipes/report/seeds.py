"""What an adaptive run's folder says, gathered into one JSON value: `results.json`.

Its keys: `schema`, `kind` ("adaptive"), `name`, `recipe`, `model`, `score`, `base` (an arm),
`headline`, `findings`, `task` (`rows`, `classes`, `overlaps`, `transductive`), `selection`,
`exported`, `config`, `environment`, and `arms`. An arm has `name`, `seeds`, `scores` (score ->
`mean`, `deviation`, `values`), `differences` to the base (score -> `value`, `low`, `high`),
`train_score`, `steps`, `epochs`, `seconds`, `pretraining_tokens`, `finetuning_tokens` and `phases`,
what each pretraining phase recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrecipes.errors import DataError, UsageError
from jaxrecipes.evaluate.classification import SCORES, Score, over_seeds, paired_difference
from jaxrecipes.evaluate.seed_results import SeedResults, SeedRow
from jaxrecipes.report.numbers import count, interval, number, percent, value
from jaxrecipes.report.results import finite_values, read_object, read_text_or_nothing

SEED_RESULTS, ADAPTIVE_FILE = "results.jsonl", "adaptive.json"
TITLES: Mapping[Score, str] = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
Arm = dict[str, Any]


def exported_model(run_folder: Path) -> str:
    """Says where below a run folder the best model is, or why there is none."""
    return str(read_object(run_folder / ADAPTIVE_FILE).get("exported"))


def collect_seed_results(run_folder: Path) -> dict[str, Any]:
    """Reads the run folder of an adaptive recipe.

    Args:
        run_folder: Output folder of a run, finished or not.

    Returns:
        The value described in this module's docstring; arms without a finished fine-tuning are left
        out.

    Raises:
        UsageError: Nothing was fine-tuned yet.
        DataError: A file is damaged, or two files do not belong together.
    """
    found = read_object(run_folder / ADAPTIVE_FILE)
    labels = np.array(found["test_labels"], np.int64)
    results = SeedResults(run_folder / SEED_RESULTS)
    rows = {
        arm["name"]: [row for _, row in sorted(results.rows(arm["name"], arm["options"]).items())]
        for arm in found["arms"]
    }
    kept = [arm for arm in found["arms"] if rows[arm["name"]]]
    if not kept:
        raise UsageError(
            f"{run_folder}: no arm was fine-tuned yet; `jaxrecipes run` goes on with it"
        )
    names = [arm["name"] for arm in kept]
    base = "none" if "none" in names else names[0]
    facts = {
        arm["name"]: {name: arm[name] for name in ("epochs", "pretraining_tokens", "phases")}
        for arm in kept
    }
    arms = [
        arm | facts[arm["name"]]
        for arm in seed_arms({name: rows[name] for name in names}, labels, base)
    ]
    score: Score = found["arms"][0]["options"]["score"]
    sentences = seed_findings(arms, base, score)
    return finite_values(
        {
            "schema": 1,
            "kind": "adaptive",
            "name": run_folder.resolve().name,
            "recipe": found["recipe"],
            "model": found["model"],
            "score": score,
            "base": base,
            "headline": sentences[0],
            "findings": sentences[1:],
            "task": {
                "rows": found["rows"],
                "classes": found["labels"],
                "overlaps": found["overlaps"],
                "transductive": found["transductive"],
            },
            "selection": found["selection"],
            "exported": found["exported"],
            "arms": arms,
            "config": read_text_or_nothing(run_folder / "run.yaml"),
            "environment": read_object(run_folder / "environment.json"),
        }
    )


def seed_arms(
    rows: Mapping[str, Sequence[SeedRow]], labels: np.ndarray, base: str
) -> list[dict[str, Any]]:
    """Summarises arms over their seeds, and compares them with one of them.

    Args:
        rows: For each arm its rows, at least one; see `SeedResults`.
        labels: int [test rows].
        base: The arm that the others are compared with.

    Returns:
        For each arm `name`, `seeds`, `scores`, `differences` (None for the base, or where there is
        none), `train_score`, `steps`, `seconds` and `finetuning_tokens`; means over seeds.

    Raises:
        DataError: A row has predictions for other test rows.
    """
    predictions = {name: _predictions(of_arm, labels) for name, of_arm in rows.items()}
    return [
        _arm(name, of_arm, predictions[name], labels)
        | {"differences": _differences(name, base, predictions, labels)}
        for name, of_arm in rows.items()
    ]


def _predictions(rows: Sequence[SeedRow], labels: np.ndarray) -> np.ndarray:
    """Returns int [seeds, test rows]."""
    for row in rows:
        if len(row.get("predictions", ())) != len(labels):
            raise DataError(
                f"{SEED_RESULTS}: arm {row['arm']}, seed {row['seed']} has "
                f"{len(row.get('predictions', ()))} predictions for {len(labels)} test rows; "
                "remove its line and run the config again"
            )
    return np.array([row["predictions"] for row in rows], np.int64)


def _arm(name: str, rows: Sequence[SeedRow], predictions: np.ndarray, labels: np.ndarray) -> Arm:
    scores = {}
    for score, compute in SCORES.items():
        summary = over_seeds([compute(one, labels) for one in predictions])
        scores[score] = {
            "mean": summary.mean,
            "deviation": summary.deviation,
            "values": list(summary.values),
        }
    means = {
        key: float(np.mean([row[key] for row in rows]))
        for key in ("train_score", "steps", "seconds", "tokens")
    }
    means["finetuning_tokens"] = means.pop("tokens")
    return {"name": name, "seeds": [row["seed"] for row in rows], "scores": scores, **means}


def _differences(
    name: str, base: str, predictions: Mapping[str, np.ndarray], labels: np.ndarray
) -> dict[str, Any] | None:
    if name == base or base not in predictions:
        return None
    found = {}
    for score in SCORES:
        measured = paired_difference(predictions[name], predictions[base], labels, score)
        found[score] = {"value": measured.value, "low": measured.low, "high": measured.high}
    return found


def show_score(summary: Mapping[str, Any]) -> str:
    """Returns for instance "81.25 ± 0.40", in points."""
    spread = "" if summary["deviation"] is None else f" ± {number(100 * summary['deviation'], 2)}"
    return number(100 * summary["mean"], 2) + spread


def seed_findings(arms: Sequence[Arm], base: str, score: Score) -> list[str]:
    """Says what came out, the main arm first.

    Args:
        arms: As in `results.json`.
        base: Name of the arm that the others are compared with.
        score: What is talked about.

    Returns:
        Sentences; the first one is the headline.
    """
    sentences = []
    for arm in arms:
        shown = show_score(arm["scores"][score])
        seeds = "one seed" if len(arm["seeds"]) == 1 else f"{len(arm['seeds'])} seeds"
        sentence = f"{arm['name']}: {TITLES[score]} {shown} over {seeds}"
        if arm["differences"] is not None:
            block = percent(arm["differences"][score])
            bounds = interval(block, 2, signed=True)
            sentence += f", {value(block, 2, signed=True)} points against {base}"
            sentence += f" (95 % of test rows: {bounds})" if bounds else ""
        sentences.append(sentence + ".")
    said = set()
    for arm in arms:
        for phase in arm["phases"]:
            first, last = phase["loss"]["dev"]
            sentence = (
                f"Phase {phase['name']}: {phase['objective']} loss on dev texts {number(first)} → "
                f"{number(last)} nats ({number(100 * (last / first - 1), 1, signed=True)} %), "
                f"{count(phase['tokens'])} tokens."
            )
            if sentence not in said:
                sentences.append(sentence)
            said.add(sentence)
    return sentences


def score_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of the table of scores, one cell an arm."""
    rows, arms = [], results["arms"]
    for score, title in TITLES.items():
        cells = [{"value": show_score(arm["scores"][score]), "interval": ""} for arm in arms]
        rows.append({"group": title, "label": "mean ± sd over seeds, %", "cells": cells})
        cells = []
        for arm in arms:
            block = percent((arm["differences"] or {}).get(score))
            cells.append(
                {
                    "value": "" if block is None else value(block, 2, signed=True),
                    "interval": interval(block, 2, signed=True),
                }
            )
        if len(arms) > 1:
            label = f"difference to {results['base']}, points"
            rows.append({"group": title, "label": label, "cells": cells})
    return rows


def cost_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of the table of what arms read and took, one cell an arm."""
    lines = (
        ("seeds", lambda arm: str(len(arm["seeds"]))),
        (
            f"{TITLES[results['score']]} on training rows, %",
            lambda arm: number(100 * arm["train_score"], 2),
        ),
        ("tokens read in pretraining", lambda arm: count(arm["pretraining_tokens"])),
        ("tokens read in a fine-tuning", lambda arm: count(arm["finetuning_tokens"])),
        (
            "tokens read in all",
            lambda arm: count(arm["pretraining_tokens"] + arm["finetuning_tokens"]),
        ),
        ("steps of a fine-tuning", lambda arm: count(arm["steps"])),
        ("seconds of a fine-tuning", lambda arm: number(arm["seconds"], 0)),
    )
    return [
        {
            "group": "",
            "label": label,
            "cells": [{"value": show(arm), "interval": ""} for arm in results["arms"]],
        }
        for label, show in lines
    ]


def phase_table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns a row for each pretraining phase of each arm: what it read, and its losses."""
    rows = []
    for arm in results["arms"]:
        for phase in arm["phases"]:
            read = ", ".join(f"{one['texts']:,} {one['from']}" for one in phase["read"])
            row = {"arm": arm["name"], "phase": phase["name"], "read": read}
            row |= {"steps": f"{phase['steps']:,}", "tokens": count(phase["tokens"])}
            for where in ("read", "dev"):
                first, last = phase["loss"][where]
                row[f"loss_{where}"] = f"{number(first)} → {number(last)}"
            rows.append(row | {"head": phase["head"]})
    return rows
