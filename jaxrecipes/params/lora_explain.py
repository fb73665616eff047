"""The table that is shown before training: what gets an adapter, what not, exact counts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from jaxrecipes.params.lora_targets import Selection


@dataclass(frozen=True)
class ExplainRow:
    """One line of the table that is shown before training.

    Attributes:
        modules: Name, with `*` for the layers' indices.
        count: Number of modules.
        what: "adapter", "whole", "tokens" or "unmatched".
        rank: Of the adapters, else None.
        scale: Likewise.
        parameters: Trained values of all of them.
    """

    modules: str
    count: int
    what: Literal["adapter", "whole", "tokens", "unmatched"]
    rank: int | None
    scale: float | None
    parameters: int


def explain(selection: Selection) -> list[ExplainRow]:
    """Lists what trains and which linear layers do not, layers of one kind in one row.

    Args:
        selection: From `select_modules`.

    Returns:
        The rows; their parameters add up to `selection.parameters`.
    """
    entries: list[ExplainRow] = [
        ExplainRow(
            _starred(one.module.name),
            1,
            "adapter",
            one.rank,
            one.scale,
            one.size(use_dora=selection.use_dora),
        )
        for one in selection.adapters
    ]
    counted: set[str] = set()
    for module in selection.saved:
        size = sum(size for path, size in module.leaves.items() if path not in counted)
        counted.update(module.leaves)
        entries.append(ExplainRow(_starred(module.name), 1, "whole", None, None, size))
    if selection.tokens[0]:
        count, width = selection.tokens
        entries.append(
            ExplainRow("rows of the embedding", count, "tokens", None, None, count * width)
        )
    entries += [
        ExplainRow(_starred(module.name), 1, "unmatched", None, None, 0)
        for module in selection.unmatched
    ]
    rows: dict[tuple[str, str, int | None, float | None], ExplainRow] = {}
    for entry in entries:
        key = (entry.modules, entry.what, entry.rank, entry.scale)
        known = rows.get(key)
        rows[key] = (
            entry
            if known is None
            else ExplainRow(
                entry.modules,
                known.count + entry.count,
                entry.what,
                entry.rank,
                entry.scale,
                known.parameters + entry.parameters,
            )
        )
    return list(rows.values())


def _starred(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
