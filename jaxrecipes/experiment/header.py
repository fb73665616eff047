"""What is said of an arm before its first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_arm(summary: Mapping[str, Any], console: Console) -> None:
    """Prints what an arm trains and what a step takes, before the first one."""
    trained, frozen = summary["trained_parameters"], summary["frozen_parameters"]
    table = Table(title=f"arm {summary['arm']}", title_justify="left", show_edge=False)
    table.add_column("leaves (of all layers)")
    table.add_column("trained", justify="right")
    table.add_column("frozen", justify="right")
    rates = {rate for row in summary["what_trains"] for rate in row["rates"]}
    if len(rates) > 1:
        table.add_column("peak rate", justify="right")
    for row in summary["what_trains"]:
        cells = [
            row["leaves"],
            f"{row['trained']:,}" if row["trained"] else "",
            f"{row['frozen']:,}" if row["frozen"] else "",
        ]
        if len(rates) > 1:
            cells.append(", ".join(f"{rate:g}" for rate in row["rates"]))
        table.add_row(*cells)
    table.add_section()
    table.add_row("all", f"{trained:,}", f"{frozen:,}")
    console.print(table)
    if summary["adapters"]:
        console.print(_adapter_table(summary["adapters"]))
    mib = 2**20
    console.print(
        f"{trained / (trained + frozen):.1%} of {trained + frozen:,} parameters train, "
        f"{summary['layers']} layers, {summary['steps']} steps, {summary['tokens']:,} tokens; "
        f"a step takes {summary['flops_per_step'] / 1e9:,.0f} GFLOP and "
        f"{summary['peak_memory_bytes'] / mib:,.0f} MiB on a device "
        f"({summary['temp_bytes'] / mib:,.0f} temporary), frozen weights "
        f"{summary['frozen_bytes'] / mib:,.0f} MiB in all; compiled in "
        f"{summary['compile_seconds']:.1f} s for {summary['devices']} x {summary['device']} "
        f"({summary['mesh']}), attention: {summary['attention']} ({summary['attention_reason']})",
        highlight=False,
    )
    if summary["perturbation"] is not None:
        console.print(_perturbation_line(summary["perturbation"]), highlight=False)
    if summary["penalty"] is not None:
        console.print(_penalty_line(summary["penalty"]), highlight=False)
    if summary["whole_leaves"]:
        console.print(
            "whole on every device, because the mesh does not divide their sizes: "
            f"{', '.join(summary['whole_leaves'])}",
            style="yellow",
            highlight=False,
        )


def _adapter_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="adapters", title_justify="left", show_edge=False)
    table.add_column("modules")
    for name in ("number", "gets", "rank", "scale", "trained"):
        table.add_column(name, justify="left" if name == "gets" else "right")
    gets = {
        "adapter": "an adapter",
        "whole": "trained whole",
        "tokens": "trained rows",
        "unmatched": "nothing: no target names it",
    }
    for row in rows:
        table.add_row(
            row["modules"],
            str(row["count"]),
            gets[row["what"]],
            "" if row["rank"] is None else str(row["rank"]),
            "" if row["scale"] is None else f"{row['scale']:g}",
            f"{row['parameters']:,}" if row["parameters"] else "",
            style="yellow" if row["what"] == "unmatched" else None,
        )
    return table


def _perturbation_line(perturbation: Mapping[str, Any]) -> str:
    options = []
    for name, value in perturbation["options"].items():
        nested = value.items() if isinstance(value, Mapping) else [(name, value)]
        options += [f"{key} {setting}" for key, setting in nested]
    begins = perturbation["clean_steps"]
    when = f", from step {begins + 1} on" if begins else ""
    teacher = perturbation["teacher"]
    beside = {"none": "", "mean": "; teacher: the mean of past parameters"}
    return (
        f"word embeddings are perturbed: {perturbation['method']} ({', '.join(options)}){when}"
        f"{beside.get(teacher, f'; teacher: {teacher}')}"
    )


def _penalty_line(penalty: Mapping[str, Any]) -> str:
    what = {"l2": "L2 to the start", "ewc": "elastic weights", "kl": "KL to the base"}
    options = [f"{name} {value}" for name, value in penalty.items() if value is not None]
    return f"beside the loss: {what[penalty['kind']]} ({', '.join(options[1:])})"
