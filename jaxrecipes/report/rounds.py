"""What the run folder of recipe llm2llm says, gathered into one JSON value: `results.json`.

Its keys: `schema`, `kind` ("rounds"), `name`, `recipe`, `model`, `task`, `teacher`, `items`
(`seeds`, `dev`, `test`), `headline`, `findings`, `main` (an arm), `config`, `environment`,
`exported` and `arms`. An arm has `name`, `control`, `seeds`, `test` (`mean`, `deviation`,
`values`, of the chosen round), `chosen`, `against` (None for the main arm: `value`, `low`, `high`
of main minus this arm, `better` and `worse` seeds, `p`), and `rounds`: for each `round`, `runs`,
`records`,
`synthetic`, `wrong_seeds`, `wanted`, `kept`, `rejected`, `steps`, `loss` (means over runs), `dev`
and `test` (`mean`, `deviation`, or None) and `stop` (reason -> runs).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrecipes.errors import DataError, UsageError
from jaxrecipes.evaluate.classification import over_seeds, paired_difference
from jaxrecipes.report.numbers import interval, number, percent, value
from jaxrecipes.report.results import finite_values, read_object, read_text_or_nothing
from jaxrecipes.report.seeds import show_score

ROUNDS_FILE = "llm2llm.json"
Arm = dict[str, Any]


def exported_students(run_folder: Path) -> str:
    """Says where below a run folder the main arm's students are, one for each seed."""
    arms = read_object(run_folder / ROUNDS_FILE).get("arms") or [{"runs": []}]
    return ", ".join(str(run["model"]) for run in arms[0]["runs"]) or "none yet"


def collect_rounds(run_folder: Path) -> dict[str, Any]:
    """Reads the run folder of recipe llm2llm.

    Args:
        run_folder: Output folder of a run, finished or not.

    Returns:
        The value described in this module's docstring; arms without a finished run are left out.

    Raises:
        UsageError: No run was finished yet.
        DataError: Two runs were measured on different test items.
    """
    found = read_object(run_folder / ROUNDS_FILE)
    kept = [arm for arm in found.get("arms", []) if arm["runs"]]
    if not kept:
        raise UsageError(f"{run_folder}: no run is finished yet; `jaxrecipes run` goes on with it")
    sizes = {len(run["test_right"]) for arm in kept for run in arm["runs"]}
    if len(sizes) > 1:
        raise DataError(
            f"{run_folder / ROUNDS_FILE}: runs were measured on different numbers of test items "
            f"({', '.join(map(str, sorted(sizes)))}); run the config again"
        )
    arms = [_arm(arm, kept[0]) for arm in kept]
    sentences = _findings(arms)
    return finite_values(
        {
            "schema": 1,
            "kind": "rounds",
            "name": run_folder.resolve().name,
            **{key: found[key] for key in ("recipe", "model", "task", "teacher", "items")},
            "main": arms[0]["name"],
            "headline": sentences[0],
            "findings": sentences[1:],
            "exported": exported_students(run_folder),
            "arms": arms,
            "config": read_text_or_nothing(run_folder / "run.yaml"),
            "environment": read_object(run_folder / "environment.json"),
        }
    )


def _arm(arm: Mapping[str, Any], main: Mapping[str, Any]) -> Arm:
    runs = arm["runs"]
    most = max(len(run["rounds"]) for run in runs)
    rounds = [
        _round([run["rounds"][place] for run in runs if place < len(run["rounds"])])
        for place in range(most)
    ]
    return {
        "name": arm["name"],
        "control": arm["control"],
        "seeds": [run["seed"] for run in runs],
        "chosen": [run["chosen"] for run in runs],
        "test": _score([float(np.mean(run["test_right"])) for run in runs]),
        "against": None if arm is main else _against(main["runs"], runs),
        "rounds": rounds,
    }


def _round(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    means = {
        key: float(np.mean([state[key] for state in states]))
        for key in ("records", "synthetic", "wrong_seeds", "wanted", "kept", "steps", "loss")
    }
    rejected = Counter[str]()
    for state in states:
        rejected.update(state["rejected"])
    stops = Counter(state["stop"] for state in states if state["stop"])
    dev = [state["dev"] for state in states if state["dev"] is not None]
    return {
        "round": states[0]["round"],
        "runs": len(states),
        **means,
        "rejected": {reason: count / len(states) for reason, count in sorted(rejected.items())},
        "dev": _score(dev) if dev else None,
        "test": _score([state["test"] for state in states]),
        "stop": dict(stops),
    }


def _score(values: Sequence[float]) -> dict[str, Any]:
    summary = over_seeds(values)
    return {"mean": summary.mean, "deviation": summary.deviation, "values": list(summary.values)}


def _against(main: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> Arm:
    """Compares the main arm with another one: over test items, and seed by seed."""
    ours, theirs = (np.array([run["test_right"] for run in each]) for each in (main, runs))
    ones = np.ones(ours.shape[1], np.int64)
    measured = paired_difference(ours, theirs, ones, "accuracy")
    by_seed = {run["seed"]: np.mean(run["test_right"]) for run in runs}
    pairs = [
        float(np.mean(run["test_right"]) - by_seed[run["seed"]])
        for run in main
        if run["seed"] in by_seed
    ]
    better, worse = sum(one > 0 for one in pairs), sum(one < 0 for one in pairs)
    return {
        "value": measured.value,
        "low": measured.low,
        "high": measured.high,
        "better": better,
        "worse": worse,
        "p": sign_test(better, worse),
    }


def sign_test(better: int, worse: int) -> float:
    """Returns the probability of so uneven a split, or a more uneven one, by chance (two sides).

    Pairs without a difference are left out, as is usual; 1 where all are.
    """
    pairs, least = better + worse, min(better, worse)
    return min(1.0, 2 * sum(math.comb(pairs, k) for k in range(least + 1)) / 2**pairs)


def _findings(arms: Sequence[Arm]) -> list[str]:
    sentences = []
    for arm in arms:
        seeds = "one seed" if len(arm["seeds"]) == 1 else f"{len(arm['seeds'])} seeds"
        sentence = f"{arm['name']}: {show_score(arm['test'])} % of test items over {seeds}"
        if arm["against"] is not None:
            block = percent(arm["against"])
            bounds = interval(block, 2, signed=True)
            sentence = (
                f"{arms[0]['name']} against {arm['name']} ({show_score(arm['test'])} %): "
                f"{value(block, 2, signed=True)} points"
                + (f" (95 % of test items: {bounds})" if bounds else "")
                + f"; better with {arm['against']['better']} and worse with "
                f"{arm['against']['worse']} of the seeds (sign test: p {arm['against']['p']:.3g})"
            )
        sentences.append(sentence + ".")
    return sentences


def round_rows(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns a row for each round of each arm: its data, what was kept, its scores."""
    rows = []
    for arm in results["arms"]:
        for state in arm["rounds"]:
            rejected = "; ".join(
                f"{number(count, 1)} {reason}" for reason, count in state["rejected"].items()
            )
            stops = [f"{reason} ({runs})" for reason, runs in state["stop"].items()]
            rows.append(
                {
                    "arm": arm["name"],
                    "round": str(state["round"]),
                    "records": _mean(state["records"]),
                    "wrong": _mean(state["wrong_seeds"]),
                    "kept": f"{_mean(state['kept'])} of {_mean(state['wanted'])}",
                    "rejected": rejected,
                    "steps": _mean(state["steps"]),
                    "loss": number(state["loss"]),
                    "dev": "" if state["dev"] is None else show_score(state["dev"]),
                    "test": show_score(state["test"]),
                    "stop": ", ".join(stops),
                }
            )
    return rows


def _mean(amount: float) -> str:
    return f"{amount:,.0f}" if amount == round(amount) else f"{amount:,.1f}"


def score_rows(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns a row for each arm: its score, and the main arm against it."""
    rows = []
    for arm in results["arms"]:
        last = arm["rounds"][-1]
        row = {
            "arm": arm["name"],
            "seeds": str(len(arm["seeds"])),
            "items": _mean(last["records"]),
            "steps": _mean(last["steps"]),
            "test": show_score(arm["test"]),
            "difference": "",
            "interval": "",
            "seeds_better": "",
        }
        if arm["against"] is not None:
            block = percent(arm["against"])
            row["difference"] = value(block, 2, signed=True)
            row["interval"] = interval(block, 2, signed=True)
            row["seeds_better"] = (
                f"{arm['against']['better']} : {arm['against']['worse']}"
                f" (p {arm['against']['p']:.2g})"
            )
        rows.append(row)
    return rows
