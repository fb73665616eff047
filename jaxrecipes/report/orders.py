"""What the report says of the order of documents, and of what a related context is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxrecipes.report.numbers import NOT_MEASURED, count, interval, number, value

Row = dict[str, Any]
Arms = Sequence[Mapping[str, Any]]


def order_rows(arms: Arms) -> list[Row]:
    """Returns the rows of the table of orders, one cell an arm, grouped by source.

    Args:
        arms: Of `results.json`; those that order no documents have empty cells.

    Returns:
        Rows, empty where no arm orders documents.
    """
    sources: dict[str, None] = {}
    for arm in arms:
        for order in arm["orders"]:
            sources.setdefault(order["source"])
    rows: list[Row] = []
    for source in sources:
        found = [
            next((order for order in arm["orders"] if order["source"] == source), None)
            for arm in arms
        ]
        for label, text in _ORDER_ROWS:
            cells = [
                {"value": "" if order is None else text(order), "interval": ""} for order in found
            ]
            rows.append({"group": source, "label": label, "cells": cells})
    return rows


def order_examples(arms: Arms) -> list[dict[str, Any]]:
    """Returns contexts of the same documents in each arm, to be shown side by side.

    Returns:
        For each document: `document`, and `arms`, pairs of an arm's name and its context.
    """
    shown: dict[str, list[tuple[str, Any]]] = {}
    for arm in arms:
        for order in arm["orders"]:
            for example in order["examples"]:
                shown.setdefault(example["document"], []).append((arm["name"], example["context"]))
    return [{"document": name, "arms": found} for name, found in shown.items()]


def context_rows(arms: Arms) -> list[Row]:
    """Returns the rows of the table of losses behind other documents, one cell an arm.

    The first arm's evaluation before training stands for the base: all arms began with it.
    """
    blocks = [(arm["after"] or {}).get("context") for arm in arms]
    if not any(blocks):
        return []
    rows = []
    for key, label, signed in (
        ("alone", "loss alone, nats a token", False),
        ("after_random", "loss after an unrelated document", False),
        ("after_related", "loss after a related document", False),
        ("gain", "gain of related over unrelated", True),
        ("gain_over_none", "gain of related over none", True),
    ):
        cells = [
            {
                "value": value((block or {}).get(key), 3, signed=signed),
                "interval": interval((block or {}).get(key), 3, signed=signed),
            }
            for block in blocks
        ]
        rows.append({"group": "", "label": label, "cells": cells})
    return rows


def context_findings(arms: Arms) -> list[str]:
    """Says for each arm what a related context is worth, and what it was worth to the base."""
    sentences = []
    for arm in arms:
        before, after = ((arm.get(when) or {}).get("context") for when in ("before", "after"))
        if not after or arm["after"]["step"] == 0:
            continue
        bounds = interval(after["gain"], signed=True)
        sentence = (
            f"{arm['name']}: after a related document, held-out documents cost "
            f"{value(after['gain'])} nats a token less than after an unrelated one"
        ) + (f" ({bounds})" if bounds else "")
        if before:
            sentence += f"; before training {value(before['gain'])}"
        sentences.append(sentence + ".")
    return sentences


def _share(part: float, whole: float) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else NOT_MEASURED


def _recall(order: Mapping[str, Any]) -> str:
    recall = order.get("recall")
    return f"{order['index']}, recall {number(recall)}" if recall is not None else order["index"]


_ORDER_ROWS = (
    ("order", lambda order: str(order["order"])),
    ("documents", lambda order: count(order["documents"])),
    (
        "near duplicates removed",
        lambda order: _share(order["duplicates"]["removed"], order["documents"]),
    ),
    ("neighbours", lambda order: f"{order['neighbors']} ({_recall(order)})"),
    ("cosine of adjacent documents", lambda order: number(order["mean_adjacent_cosine"])),
    ("weight of the path, a pair", lambda order: number(order["mean_path_weight"])),
    ("starts", lambda order: count(order["starts"])),
    ("documents that occur", lambda order: f"{order['coverage']:.1%}"),
    ("most repeats of one", lambda order: count(order["largest_repeats"])),
    ("contexts", lambda order: count(order["contexts"])),
    ("tokens", lambda order: count(order["tokens"])),
    ("padding", lambda order: count(order["padding_tokens"])),
)
