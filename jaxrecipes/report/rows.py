"""The numbers of a report as text: the rows of its tables, the same in terminal and page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxrecipes.report.results import measured

MISSING = "-"


@dataclass(frozen=True)
class Row:
    """A row of a table with an arm a column.

    Attributes:
        label: What is measured.
        unit: Its unit, or "".
        cells: Text of each arm, in the order of the arms.
    """

    label: str
    unit: str
    cells: list[str]


def result_rows(results: Mapping[str, Any]) -> list[Row]:
    """Makes the rows of the result table: learned, forgotten, trained, time and memory.

    Args:
        results: From `collect_results`.

    Returns:
        The rows that at least one arm has a number for.
    """
    equal = results["equal_learning"]
    gain = "" if equal["gain"] is None else f" of {equal['gain']:.4f}"

    def after(block: str, field: str, digits: int = 4, *, signed: bool = False) -> _Cell:
        return lambda arm: interval_text(
            measured(arm["after"], block, field), digits, signed=signed
        )

    def both(block: str, field: str, digits: int = 4) -> _Cell:
        return lambda arm: _before_after(arm, block, field, digits)

    rows: list[tuple[str, str, _Cell]] = [
        ("learn loss, before → after", "nats/token", both("learn", "loss")),
        ("learn loss, change", "nats/token", after("learn", "change", signed=True)),
        ("learn bits per byte", "bits/byte", both("learn", "bits_per_byte")),
        ("keep KL(base ‖ arm)", "nats/token", after("keep", "kl")),
        ("keep loss, change", "nats/token", after("keep", "change", signed=True)),
        (
            f"keep KL at equal learning{gain}",
            "nats/token",
            lambda arm: interval_text(equal["forgetting"].get(arm["name"])),
        ),
        ("choice accuracy, before → after", "share", both("choices", "accuracy", 3)),
        ("choice accuracy, change", "share", after("choices", "change", 3, signed=True)),
        ("last-word accuracy, before → after", "share", both("last_words", "accuracy", 3)),
        ("last-word accuracy, change", "share", after("last_words", "change", 3, signed=True)),
        ("trained parameters", "", _summary("trained_parameters", count_text)),
        ("frozen parameters", "", _summary("frozen_parameters", count_text)),
        ("steps", "", _summary("steps", count_text)),
        ("tokens", "", _summary("tokens", count_text)),
        ("training time", "", _summary("seconds", seconds_text)),
        ("tokens a second", "", _tokens_per_second),
        ("peak memory", "", _summary("peak_memory_bytes", bytes_text)),
    ]
    return _filled(rows, results)


def cost_rows(results: Mapping[str, Any]) -> list[Row]:
    """Makes the rows of what each arm cost, likewise."""
    rows: list[tuple[str, str, _Cell]] = [
        ("recipe", "", _summary("recipe", str)),
        ("optimizer", "", _summary("optimizer", str)),
        ("learning rate", "", _summary("learning_rate", str)),
        ("blocks", "", _summary("layers", str)),
        ("new blocks at", "", _summary("new_blocks", _list_text)),
        ("bytes of trained parameters", "", _summary("trained_bytes", bytes_text)),
        ("bytes of frozen parameters", "", _summary("frozen_bytes", bytes_text)),
        ("compilation", "", _summary("compile_seconds", seconds_text)),
        ("training, steps only", "", _summary("seconds", seconds_text)),
        ("this arm, all in all", "", _summary("wall_seconds", seconds_text)),
        ("FLOPs of a step", "", _summary("flops_per_step", "{:.3g}".format)),
        ("temporary memory of a step", "", _summary("temp_bytes", bytes_text)),
        ("compute dtype", "", _summary("compute_dtype", str)),
        ("device", "", _summary("device", str)),
        ("devices", "", _summary("devices", str)),
    ]
    return _filled(rows, results)


def interval_text(
    interval: Mapping[str, Any] | None, digits: int = 4, *, signed: bool = False
) -> str:
    """Writes a value with its interval: "0.1234 [0.1200, 0.1300]", "-" where there is none."""
    if interval is None or interval.get("value") is None:
        return MISSING
    sign = "+" if signed else ""
    value = f"{interval['value']:{sign}.{digits}f}"
    if interval.get("low") is None or interval.get("high") is None:
        return value
    return f"{value} [{interval['low']:{sign}.{digits}f}, {interval['high']:{sign}.{digits}f}]"


def count_text(number: float) -> str:
    """Writes a count: 134,515,008."""
    return f"{number:,.0f}"


def bytes_text(number: float) -> str:
    """Writes a number of bytes in binary units: 1.5 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def seconds_text(seconds: float) -> str:
    """Writes a duration: 4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


_Cell = Callable[[Mapping[str, Any]], str]


def _filled(rows: list[tuple[str, str, _Cell]], results: Mapping[str, Any]) -> list[Row]:
    made = [Row(label, unit, [cell(arm) for arm in results["arms"]]) for label, unit, cell in rows]
    return [row for row in made if any(cell != MISSING for cell in row.cells)]


def _summary(key: str, text: Callable[[Any], str]) -> _Cell:
    def cell(arm: Mapping[str, Any]) -> str:
        value = arm["summary"].get(key)
        return MISSING if value is None or value == [] else text(value)

    return cell


def _list_text(values: Any) -> str:
    return ", ".join(str(value) for value in values)


def _before_after(arm: Mapping[str, Any], block: str, field: str, digits: int) -> str:
    before, after = (measured(arm[when], block, field) for when in ("before", "after"))
    if before is None and after is None:
        return MISSING
    texts = (MISSING if one is None else f"{one['value']:.{digits}f}" for one in (before, after))
    return " → ".join(texts)


def _tokens_per_second(arm: Mapping[str, Any]) -> str:
    tokens, seconds = arm["summary"].get("tokens"), arm["summary"].get("seconds")
    return count_text(tokens / seconds) if tokens and seconds else MISSING
