"""What the report says of answers that were rewritten before they were learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxrecipes.report.numbers import NOT_MEASURED, count, number

Row = dict[str, Any]
Arms = Sequence[Mapping[str, Any]]
_MOST_REASONS = 6


def rewrite_rows(arms: Arms) -> list[Row]:
    """Returns the rows of the table of rewritten answers, one cell an arm, grouped by source.

    Args:
        arms: Of `results.json`; those that rewrite nothing have empty cells.

    Returns:
        Rows, empty where no arm rewrites answers.
    """
    sources = dict.fromkeys(one["source"] for arm in arms for one in arm["rewrites"])
    rows: list[Row] = []
    for source in sources:
        found = [
            next((one for one in arm["rewrites"] if one["source"] == source), None) for arm in arms
        ]
        for label, text in _ROWS:
            cells = [{"value": "" if one is None else text(one), "interval": ""} for one in found]
            rows.append({"group": source, "label": label, "cells": cells})
    return rows


def rewrite_findings(arms: Arms) -> list[str]:
    """Says for each arm what became of its answers."""
    return [
        f"{arm['name']}, {one['source']}: {rewrite_sentence(one)}"
        for arm in arms
        for one in arm.get("rewrites", ())
    ]


def rewrite_examples(arms: Arms) -> list[dict[str, Any]]:
    """Returns answers before and after, to be shown side by side.

    Returns:
        For each: `name` (arm and example), `original`, `rewritten`.
    """
    return [
        {**shown, "name": f"{arm['name']}: {shown['id']}"}
        for arm in arms
        for one in arm["rewrites"]
        for shown in one["shown"]
    ]


def rewrite_sentence(source: Mapping[str, Any]) -> str:
    """Says in words which of a source's answers are rewritten, and how far that moved them."""
    total = source["examples"]
    text = (
        f"of {total:,} answers {_share(source['rewritten'], total)} are rewritten, "
        f"{_share(source['copied'], total)} copied word for word, "
        f"{_share(source['fallback'], total)} stayed because no rewriting was accepted"
    )
    if source["original"]:
        text += f", {_share(source['original'], total)} because of the mixing ratio"
    if source["chosen_nll"] is not None:
        text += (
            "; those rewritten cost the seed model "
            f"{source['original_nll']:.3f} nats a token before and {source['chosen_nll']:.3f} after"
        )
    return f"{text}."


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else NOT_MEASURED


def _reasons(source: Mapping[str, Any]) -> str:
    listed = list(source["reasons"].items())[:_MOST_REASONS]
    return ", ".join(f"{reason} {times:,}" for reason, times in listed) or "none"


_ROWS = (
    ("answers", lambda one: count(one["examples"])),
    ("rewritten", lambda one: _share(one["rewritten"], one["examples"])),
    ("copied word for word", lambda one: _share(one["copied"], one["examples"])),
    ("no rewriting accepted", lambda one: _share(one["fallback"], one["examples"])),
    ("left by the mixing ratio", lambda one: _share(one["original"], one["examples"])),
    ("seed loss of originals, nats a token", lambda one: number(one["original_nll"])),
    ("seed loss of their rewritings", lambda one: number(one["chosen_nll"])),
    ("samples rejected", _reasons),
)
