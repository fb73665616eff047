"""The report: one HTML file that needs nothing else, on a phone, in the dark and on paper."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from jaxrecipes.report import numbers
from jaxrecipes.report.charts import Chart, draw_charts
from jaxrecipes.report.numbers import (
    count,
    duration,
    interval,
    memory,
    negative,
    number,
    percent,
    value,
)
from jaxrecipes.report.orders import context_rows, order_examples, order_rows
from jaxrecipes.report.results import Results, collect_results
from jaxrecipes.report.rewrites import rewrite_examples, rewrite_rows

REPORT, RESULTS, PLOTS = "report.html", "results.json", "plots"
Measured = Mapping[str, Any] | None
Cell = dict[str, str]
Row = dict[str, Any]


def write_report(run_folder: Path) -> Results:
    """Writes `results.json`, `plots/*.png` and `report.html` of a run, finished or not.

    Args:
        run_folder: Output folder of a run.

    Returns:
        What `results.json` holds.

    Raises:
        UsageError: It is no run folder, or nothing was evaluated yet.
        DataError: A file in it is damaged.
    """
    run_folder = Path(run_folder)
    results = collect_results(run_folder)
    charts = draw_charts(results, run_folder / PLOTS)
    write_whole(run_folder / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    write_whole(run_folder / REPORT, render_page(results, charts))
    return results


def render_page(results: Results, charts: Sequence[Chart]) -> str:
    """Renders the page.

    Args:
        results: `results.json`, see `jaxrecipes.report.results`.
        charts: Charts that were drawn of it; their files are put into the page.

    Returns:
        HTML. All text of the run is escaped; nothing is fetched from anywhere.
    """
    return page_template("page.html.j2").render(
        results=results,
        arms=[arm["name"] for arm in results["arms"]],
        tiles=[_tile(arm) for arm in results["arms"]],
        learned=learned_rows(results["arms"]),
        equal=equal_rows(results),
        cost=cost_rows(results["arms"]),
        context=context_rows(results["arms"]),
        orders=order_rows(results["arms"]),
        examples=order_examples(results["arms"]),
        rewrites=rewrite_rows(results["arms"]),
        rewritten=rewrite_examples(results["arms"]),
        what_trains=[_what_trains(arm) for arm in results["arms"] if arm["summary"]],
        environment=environment_rows(results["environment"]),
        charts=embedded(charts),
        after=results["arms"][0]["after"],
    )


def page_template(name: str) -> Template:
    """Opens a template whose text is escaped, and where a missing value is an error."""
    environment = Environment(
        loader=PackageLoader("jaxrecipes.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def embedded(charts: Sequence[Chart]) -> list[dict[str, str]]:
    """Returns title, description and the file in base 64 of each chart."""
    return [
        {
            "title": chart.title,
            "description": chart.description,
            "data": base64.b64encode(chart.path.read_bytes()).decode(),
        }
        for chart in charts
    ]


def learned_rows(arms: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Returns the rows of the table of what was learned and forgotten, one cell an arm.

    Rows that no arm has a measure for are left out.
    """
    rows: list[Row] = []

    def add(group: str, label: str, blocks: Sequence[Measured], digits: int, signed: bool) -> None:
        if any(block and block.get("value") is not None for block in blocks):
            cells = [_cell(block, digits, signed=signed) for block in blocks]
            rows.append({"group": group, "label": label, "cells": cells})

    for name, group in (("learn", "Learn set"), ("keep", "Keep set")):
        blocks = [arm["after"].get(name) or {} for arm in arms]
        fall = name == "learn"
        changes = [block.get("change") for block in blocks]
        add(
            group,
            "learned: fall of the loss" if fall else "change of the loss",
            [negative(change) for change in changes] if fall else changes,
            3,
            True,
        )
        add(group, "loss, nats a token", [block.get("loss") for block in blocks], 3, False)
        add(group, "bits a byte", [block.get("bits_per_byte") for block in blocks], 3, False)
        add(group, "perplexity", [block.get("perplexity") for block in blocks], 2, False)
        add(group, "KL to the base, nats a token", [block.get("kl") for block in blocks], 3, False)
    for name, group in (("choices", "Multiple choice"), ("last_words", "Last words")):
        blocks = [arm["after"].get(name) or {} for arm in arms]
        for label, key, signed in (
            ("accuracy, %", "accuracy", False),
            ("change, points", "change", True),
            ("accuracy by character, %", "accuracy_normalized", False),
            ("probability of the right answer, %", "probability", False),
        ):
            add(group, label, [percent(block.get(key)) for block in blocks], 1, signed)
    return rows


def equal_rows(results: Results) -> list[Row]:
    """Returns the rows of the table of forgetting at equal learning, one cell an arm."""
    rows = []
    names = [arm["name"] for arm in results["arms"]]
    for measure, label, digits, scale in (
        ("kl", "KL to the base, nats a token", 3, False),
        ("loss", "rise of the keep loss, nats a token", 3, False),
        ("accuracy", "loss of accuracy, points", 1, True),
    ):
        comparison = results["equal_learning"].get(measure)
        if not comparison or comparison["gain"] is None or len(names) < 2:
            continue
        for text, found, signed in (
            (label, comparison["forgetting"], measure != "kl"),
            (f"difference from {names[0]}", comparison["differences"], True),
        ):
            blocks = [percent(found.get(name)) if scale else found.get(name) for name in names]
            cells = [
                _cell(block, digits, signed=signed) if block else {"value": "", "interval": ""}
                for block in blocks
            ]
            group = f"at {number(comparison['gain'])} nats a token learned"
            rows.append({"group": group, "label": text, "cells": cells})
    return rows


def cost_rows(arms: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Returns the rows of the table of costs, one cell an arm."""

    def share(summary: Mapping[str, Any]) -> str:
        trained, frozen = summary.get("trained_parameters"), summary.get("frozen_parameters")
        if trained is None or not frozen:
            return ""
        return f"{trained / (trained + frozen):.1%} of all"

    def flops(summary: Mapping[str, Any]) -> str:
        step = summary.get("flops_per_step")
        return numbers.NOT_MEASURED if not step else f"{step / 1e9:,.0f} G"

    labels: list[tuple[str, Any]] = [
        ("recipe", lambda arm, s: (str(s.get("recipe", numbers.NOT_MEASURED)), "")),
        ("parameters trained", lambda arm, s: (count(s.get("trained_parameters")), share(s))),
        ("parameters frozen", lambda arm, s: (count(s.get("frozen_parameters")), "")),
        ("learning rate", lambda arm, s: (f"{s['learning_rate']:g}", s.get("optimizer", ""))
         if "learning_rate" in s else (numbers.NOT_MEASURED, "")),
        ("steps", lambda arm, s: (f"{arm['after']['step']:,}",
         f"{arm['skipped']} skipped" if arm["skipped"] else "")),
        ("tokens", lambda arm, s: (count(arm["after"]["tokens"]), "")),
        ("time of the steps", lambda arm, s: (duration(arm["training_seconds"]), "")),
        ("time in all", lambda arm, s: (duration(s.get("wall_seconds")), "with evaluation")),
        ("compilation", lambda arm, s: (duration(s.get("compile_seconds")), "")),
        ("tokens a second", lambda arm, s: (count(arm["tokens_per_second"]), "")),
        ("peak memory a device", lambda arm, s: (memory(s.get("peak_memory_bytes")), "")),
        ("FLOP a step", lambda arm, s: (flops(s), "")),
    ]  # fmt: skip
    rows = []
    for label, make in labels:
        pairs = [make(arm, arm["summary"]) for arm in arms]
        if any(text != numbers.NOT_MEASURED for text, _ in pairs):
            cells = [{"value": text, "interval": note} for text, note in pairs]
            rows.append({"group": "", "label": label, "cells": cells})
    return rows


def _cell(measured: Measured, digits: int, *, signed: bool = False) -> Cell:
    return {
        "value": value(measured, digits, signed=signed),
        "interval": interval(measured, digits, signed=signed),
    }


def _tile(arm: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the three numbers that matter of an arm."""
    after = arm["after"]
    keep, choices = after.get("keep") or {}, after.get("choices") or {}
    entries = [
        ("learned", "nats a token", negative(after["learn"].get("change")), 3, True),
        ("forgotten", "nats a token", keep.get("kl"), 3, False),
        ("accuracy", "points", percent(choices.get("change")), 1, True),
    ]
    return {
        "name": arm["name"],
        "finished": arm["finished"],
        "entries": [
            {"label": label, "unit": unit, **_cell(measured, digits, signed=signed)}
            for label, unit, measured, digits, signed in entries
            if measured and measured.get("value") is not None
        ],
    }


def _what_trains(arm: Mapping[str, Any]) -> dict[str, Any]:
    summary = arm["summary"]
    blocks = summary.get("new_blocks") or []
    note = f"{summary.get('layers', '?')} layers"
    if blocks:
        note += f", of which {len(blocks)} new: {', '.join(map(str, blocks))}"
    return {
        "name": arm["name"],
        "note": note,
        "rows": [
            {
                "leaves": row["leaves"],
                "trained": f"{row['trained']:,}" if row["trained"] else "",
                "frozen": f"{row['frozen']:,}" if row["frozen"] else "",
            }
            for row in summary.get("what_trains", [])
        ],
    }


def environment_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what `environment.json` says as pairs of label and text."""
    rows = []
    for key, found in environment.items():
        label = key.replace("_", " ")
        if key.endswith("_bytes"):
            rows.append((label.removesuffix(" bytes"), memory(found)))
        elif isinstance(found, Mapping):
            pairs = (f"{name} {part}" for name, part in found.items() if part is not None)
            rows.append((label, ", ".join(pairs)))
        elif isinstance(found, list):
            rows.append((label, ", ".join(_device(part) for part in found)))
        else:
            rows.append((label, str(found)))
    return [(label, text) for label, text in rows if text]


def _device(part: Any) -> str:
    if not isinstance(part, Mapping):
        return str(part)
    size = part.get("memory_bytes")
    return f"{part.get('kind', part)}" + (f" ({memory(size)})" if size else "")


def write_whole(path: Path, text: str) -> None:
    """Writes a file completely or not at all."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
