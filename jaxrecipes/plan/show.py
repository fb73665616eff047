"""Plans on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxrecipes.config import Config
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.plan.candidates import Tried
from jaxrecipes.plan.changes import Change, in_bytes
from jaxrecipes.plan.step import PlannedStep
from jaxrecipes.plan.target import Target

_ARMS_BESIDE = 3
_ROWS_OF_TRIED = 10

CONVENTION = (
    "Operations are those of matrix products, two a multiply-add, on one device. Executed: counted "
    "in the compiled program with loops multiplied out, and for attention kernels, which the "
    "compiler does not see into, two products forward and seven backward (splash; five where one "
    "block holds the row), of the keys that causality and windows let a query see. Model: what the "
    "mathematics needs, four products in attention's backward pass, nothing twice, no gradient of "
    "a frozen weight; MFU is model operations / (bfloat16 peak x time). The bound is the longest "
    "of compute, memory and network, as if they overlapped fully; in brackets their sum."
)


def show_arms(
    planned: Sequence[PlannedStep], config: Config, model: ModelConfig, console: Console
) -> None:
    """Prints what each arm takes, as many beside each other as a narrow terminal holds.

    Args:
        planned: The arms.
        config: The experiment.
        model: The base model.
        console: Where to.
    """
    for first in range(0, len(planned), _ARMS_BESIDE):
        shown = planned[first : first + _ARMS_BESIDE]
        table = Table(title="plan", title_justify="left", show_edge=False)
        table.add_column("")
        for step in shown:
            table.add_column(step.name, justify="right", overflow="fold")
        for title, cell in _ROWS:
            cells = [cell(step, config, model) for step in shown]
            if any(cells):
                table.add_row(title, *cells)
        console.print(table)


def show_peak(step: PlannedStep, console: Console) -> None:
    """Prints what fills the memory at the peak of a step."""
    found = step.measurement
    if not found.largest:
        return
    table = Table(title=f"{step.name}: the peak", title_justify="left", show_edge=False)
    for title in ("MiB", "kind", "value", "from"):
        table.add_column(title, justify="right" if title == "MiB" else "left", overflow="fold")
    for buffer in found.largest:
        origin = buffer.operation or buffer.instruction
        table.add_row(f"{buffer.size / 2**20:,.0f}", buffer.kind, buffer.shape, _short(origin))
    console.print(table)


def show_collectives(step: PlannedStep, console: Console) -> None:
    """Prints what a device sends in a step, by kind and mesh axes."""
    account = step.measurement.account
    totals = account.sent_bytes()
    if not totals:
        return
    table = Table(title=f"{step.name}: collectives", title_justify="left", show_edge=False)
    for title in ("kind", "mesh axes", "times", "GiB sent a device"):
        table.add_column(title, justify="left" if title in ("kind", "mesh axes") else "right")
    for (kind, axes), sent in sorted(totals.items(), key=lambda item: -item[1]):
        same = [one for one in account.collectives if (one.kind, one.axes) == (kind, axes)]
        times = sum(one.count for one in same)
        table.add_row(kind, " x ".join(axes), f"{times:,}", f"{sent / 2**30:,.3f}")
    console.print(table)


def show_target(planned: Sequence[PlannedStep], target: Target, console: Console) -> None:
    """Prints what the steps were compiled for, and the conventions of the figures."""
    memory = target.memory_bytes
    limit = f", {in_bytes(memory)} each" if memory else ""
    attention = planned[0].summary
    console.print(
        f"Compiled for {target.name} ({len(target.devices)} x {attention['device']}{limit}), mesh "
        f"{attention['mesh']}, attention: {attention['attention']}. Nothing was run.",
        highlight=False,
    )
    console.print(CONVENTION if planned[0].bound else CONVENTION.split(" Executed")[0])


def show_tried(title: str, tried: Sequence[tuple[Change, Tried]], console: Console) -> None:
    """Prints changes and what came of them, best first.

    Args:
        title: Above the table.
        tried: Pairs (overrides as the user types them, what came of the change).
        console: Where to.
    """
    table = Table(title=title, title_justify="left", show_edge=False)
    hosted = any(one.step and one.step.measurement.host_bytes for _, one in tried)
    # Changes are there to be typed: they break between overrides only.
    table.add_column("change", min_width=24)
    columns = ["memory", *(["host"] if hosted else []), "fits", "tokens/s", "MFU", "bound by"]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for change, one in tried[:_ROWS_OF_TRIED]:
        name = str(change) or "(as it is)"
        if one.step is None:
            cells = {
                "memory": f"> {in_bytes(one.least_bytes)}" if one.least_bytes else "",
                "fits": "no",
            }
        else:
            found, bound = one.step.measurement, one.step.bound
            cells = {
                "memory": in_bytes(found.peak_bytes),
                "host": in_bytes(found.host_bytes) if found.host_bytes else "",
                "fits": "yes" if found.fits else "no",
            }
            if bound is not None:
                cells["tokens/s"] = f"{bound.tokens_per_second:,.0f}"
                cells["MFU"] = f"{bound.model_flops_utilisation:.0%}"
                cells["bound by"] = bound.limit
        table.add_row(name, *(cells.get(column, "") for column in columns))
    console.print(table)


def _short(operation: str) -> str:
    """Drops what every operation's name starts with."""
    return operation.removeprefix("jit(step)/")


def _fits(step: PlannedStep, *_: Any) -> str:
    if step.limit_bytes is None:
        return ""
    return f"{'yes' if step.fits else 'NO'}, of {in_bytes(step.limit_bytes)}"


def _checkpoint_bytes(step: PlannedStep, config: Config, _: ModelConfig) -> str:
    # Trained leaves and two moments, float32; one more exists while the oldest is deleted.
    return in_bytes(3 * step.summary["trained_bytes"] * (config.train.checkpoint.keep + 1))


def _export_bytes(step: PlannedStep, *_: Any) -> str:
    parameters = step.summary["trained_parameters"] + step.summary["frozen_parameters"]
    return f"up to {in_bytes(4 * parameters)}"


def _host(step: PlannedStep, *_: Any) -> str:
    return in_bytes(step.measurement.host_bytes) if step.measurement.host_bytes else ""


def _sent(step: PlannedStep, *_: Any) -> str:
    sent = sum(one.sent_bytes for one in step.measurement.account.collectives)
    return in_bytes(sent) if sent else ""


def _times(step: PlannedStep, *_: Any) -> str:
    bound = step.bound
    if bound is None:
        return ""
    network = sum(bound.network.values())
    return f"{_seconds(bound.compute)} / {_seconds(bound.memory)} / {_seconds(network)}"


def _bound(step: PlannedStep, *_: Any) -> str:
    bound = step.bound
    if bound is None:
        return ""
    return f"{_seconds(bound.overlapped)} ({_seconds(bound.sequential)}), {bound.limit}"


def _speed(step: PlannedStep, *_: Any) -> str:
    return f"{step.bound.tokens_per_second:,.0f}" if step.bound else ""


def _utilisation(step: PlannedStep, *_: Any) -> str:
    return f"{step.bound.model_flops_utilisation:.1%}" if step.bound else ""


def _seconds(time: float) -> str:
    return f"{time:.2f} s" if time >= 1 else f"{1e3 * time:.3g} ms"


def _giga(count: float) -> str:
    return f"{count / 1e9:,.3g}" if count < 1e12 else f"{count / 1e9:,.0f}"


_ROWS: tuple[tuple[str, Any], ...] = (
    ("recipe", lambda s, c, m: s.summary["recipe"]),
    ("parameters trained", lambda s, c, m: f"{s.summary['trained_parameters']:,}"),
    ("parameters frozen", lambda s, c, m: f"{s.summary['frozen_parameters']:,}"),
    ("layers", lambda s, c, m: f"{m.num_layers} -> {s.summary['layers']}"),
    ("memory a device", lambda s, c, m: in_bytes(s.measurement.peak_bytes)),
    ("fits", _fits),
    ("of it arguments", lambda s, c, m: in_bytes(s.measurement.argument_bytes)),
    ("of it temporary", lambda s, c, m: in_bytes(s.measurement.temporary_bytes)),
    ("memory of the host", _host),
    ("steps", lambda s, c, m: f"{s.summary['steps']:,}"),
    ("tokens", lambda s, c, m: f"{s.summary['tokens']:,}"),
    ("GFLOP a step, executed", lambda s, c, m: _giga(s.executed_flops)),
    ("of it in kernels", lambda s, c, m: _giga(s.kernel_flops) if s.kernel_flops else ""),
    ("GFLOP a step, model", lambda s, c, m: _giga(s.flops.model)),
    ("memory traffic", lambda s, c, m: in_bytes(s.measurement.account.hbm_bytes)),
    ("sent over the network", _sent),
    ("compute / memory / network", _times),
    ("bound of a step", _bound),
    ("tokens/s, at most", _speed),
    ("MFU, at most", _utilisation),
    ("compile time", lambda s, c, m: f"{s.measurement.compile_seconds:.1f} s"),
    ("disk: training states", _checkpoint_bytes),
    ("disk: exported model", _export_bytes),
)
