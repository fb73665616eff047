"""What fills the device's memory at a program's peak, read from the compiler's buffer assignment.

`memory_analysis()` says how much memory a compiled program needs, not what for. The compiler knows:
it places every value at an offset of one heap, with the instruction that makes it and the range of
the schedule in which it lives. It writes that down as text when it is asked to dump, also when the
program does not fit and no executable comes back. `compile_with_buffers` asks for it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxrecipes.plan.hlo_shapes import shape_bytes
from jaxrecipes.plan.hlo_sources import instruction_sources

ARGUMENT = "argument"
OUTPUT = "output"
TEMPORARY = "temporary"
CONSTANT = "constant"
# The compiler's number ("color") of the memory that a program competes for; 1 is the TPU's vector
# memory, 2 scalar memory, 5 the host's.
DEVICE_MEMORY = 0
HOST_MEMORY = 5

_ALLOCATION = re.compile(r"allocation (\d+): size (\d+)(?:, color (\d+))?(?:, page \d+)?(.*):$")
_VALUE = re.compile(r" value: <\d+ (\S+?)(?: \(phi\))? @\d+> \(size=(\d+),offset=(\d+)\): (.*)$")
_LIVE = re.compile(r"    (\S+):(\d+)-(\d+)$")
# A loop's state, and what only hands a value on, say less about a buffer than what filled it.
_PASSED_ON = re.compile(r"(while|tuple|get-tuple-element|(wide\.)*(arg_tuple|param|region)|copy)\b")


@dataclass(frozen=True)
class Buffer:
    """One piece of device memory that is in use at the peak.

    Attributes:
        size: Bytes, with the padding to the device's tiles.
        padding: Bytes of `size` that are only padding.
        kind: "argument", "output", "temporary" or "constant". An argument that the program may
            overwrite (donated) is an argument.
        shape: HLO type of the value, such as "bf16[8,4096,8192]".
        instruction: Name of the HLO instruction that fills it.
        operation: JAX's name of the operation ("jit(step)/transpose(jvp())/while/body/dot_general")
            or of the argument; empty where the compiler lost it.
        source: "file:line" of the Python code that asked for it, or empty.
    """

    size: int
    padding: int
    kind: str
    shape: str
    instruction: str
    operation: str
    source: str


@dataclass(frozen=True)
class BufferReport:
    """Device memory of one program on one device.

    Attributes:
        peak_bytes: Arguments, outputs, constants and the temporaries that live together at the
            worst moment.
        assigned_bytes: What the compiler reserves: `peak_bytes` and the gaps that placing buffers
            in one heap leaves.
        host_bytes: Memory of the host that offloaded values take.
        peak_instruction: The instruction that is executed at the peak, as `Buffer.operation`, or
            its HLO name where the operation is unknown.
        buffers: Everything alive at the peak, largest first.
    """

    peak_bytes: int
    assigned_bytes: int
    host_bytes: int
    peak_instruction: str
    buffers: tuple[Buffer, ...]

    def total(self, kind: str) -> int:
        """Returns the bytes of all buffers of a kind at the peak."""
        return sum(buffer.size for buffer in self.buffers if buffer.kind == kind)

    def table(self, rows: int = 20) -> str:
        """Formats the largest buffers, one a line: MiB, padding, kind, shape, where from."""
        lines = [
            f"peak {_mib(self.peak_bytes)} MiB (arguments {_mib(self.total(ARGUMENT))}, outputs "
            f"{_mib(self.total(OUTPUT))}, temporaries {_mib(self.total(TEMPORARY))}), assigned "
            f"{_mib(self.assigned_bytes)}, host {_mib(self.host_bytes)}; at {self.peak_instruction}"
        ]
        for buffer in self.buffers[:rows]:
            padding = (
                f" (padding {_mib(buffer.padding)})" if buffer.padding > buffer.size / 8 else ""
            )
            lines.append(
                f"{_mib(buffer.size):>9} {buffer.kind:<9} {buffer.shape}{padding}  "
                f"{buffer.operation or buffer.instruction}  {buffer.source}".rstrip()
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Compilation:
    """A compiled program, or why there is none, with its text and its buffers.

    Attributes:
        compiled: The executable, or None where the program does not fit into device memory.
        hlo_text: The optimised program; also there when it does not fit.
        buffers: None where the compiler wrote no assignment (a hit in the compilation cache).
        out_of_memory: The compiler's message where the program does not fit, else None.
    """

    compiled: jax.stages.Compiled | None
    hlo_text: str
    buffers: BufferReport | None
    out_of_memory: str | None


def compile_with_buffers(
    lowered: jax.stages.Lowered, compiler_options: Mapping[str, Any] | None = None
) -> Compilation:
    """Compiles a program and reads what the compiler says about its memory.

    Works for CPU, GPU and TPU, and ahead of time for a TPU that is not there.

    Args:
        lowered: `jax.jit(step).lower(...)`.
        compiler_options: More options of the compiler.

    Returns:
        The program and its buffers.

    Raises:
        jax.errors.JaxRuntimeError: Of the compiler, other than "does not fit".
    """
    with tempfile.TemporaryDirectory(prefix="jaxrecipes-plan-") as folder:
        options = dict(compiler_options or {}) | {
            "xla_dump_to": folder,
            "xla_dump_hlo_as_text": True,
        }
        compiled, message = None, None
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            message = str(error)
        dumps = _dump_files(Path(folder))
        hlo_text = compiled.as_text() if compiled is not None else None
        if hlo_text is None and "hlo" in dumps:
            hlo_text = dumps["hlo"].read_text()
        report = None
        if {"assignment", "live", "hlo"} <= dumps.keys():
            report = read_buffers(
                dumps["assignment"].read_text(),
                dumps["live"].read_text(),
                dumps["hlo"].read_text(),
            )
    return Compilation(compiled, hlo_text or "", report, message)


def _dump_files(folder: Path) -> dict[str, Path]:
    """Finds the dump of the largest module: a compiler may compile small helpers beside it."""
    suffix = "after_optimizations-buffer-assignment.txt"
    found = sorted(folder.glob(f"*{suffix}"), key=lambda file: file.stat().st_size)
    if not found:
        return {}
    stem = found[-1].name.removesuffix(suffix)
    names = {
        "assignment": suffix,
        "live": "after_optimizations-live-range.txt",
        "hlo": "after_optimizations.txt",
    }
    files = {key: folder / f"{stem}{name}" for key, name in names.items()}
    return {key: file for key, file in files.items() if file.exists()}


@dataclass
class _Value:
    name: str
    shape: str
    size: int
    offset: int
    start: int = -1
    end: int = -1


@dataclass
class _Allocation:
    size: int
    color: int
    kind: str
    values: list[_Value]


def read_buffers(assignment: str, live_ranges: str, hlo_text: str) -> BufferReport:
    """Reads the compiler's dump of one module.

    Args:
        assignment: Text of `*.after_optimizations-buffer-assignment.txt`.
        live_ranges: Text of `*.after_optimizations-live-range.txt`.
        hlo_text: Text of `*.after_optimizations.txt`, for the names of operations.

    Returns:
        The buffers at the peak. A program's peak is the moment of its schedule at which the live
        temporaries cover the most bytes of the heap; values that share bytes count once.
    """
    allocations = _read_allocations(assignment)
    schedule = _read_live_ranges(live_ranges, allocations)
    device = [a for a in allocations if a.color == DEVICE_MEMORY]
    temporaries = [v for a in device if a.kind == TEMPORARY for v in a.values if v.start >= 0]
    peak, covered = _peak(temporaries)
    fixed = [a for a in device if a.kind != TEMPORARY]

    slots: list[tuple[int, str, _Value]] = [
        (a.size, a.kind, _filled_by(_tenant(a, peak), a.values)) for a in fixed if a.values
    ]
    by_offset: dict[tuple[int, int], list[_Value]] = {}
    for value in temporaries:
        by_offset.setdefault((value.offset, value.size), []).append(value)
    live = [value for value in temporaries if value.start <= peak <= value.end]
    for size, value in _without_overlap(live):
        same = by_offset[value.offset, value.size]
        slots.append((size, TEMPORARY, _filled_by(value, same)))

    instructions = {_instruction(value.name) for _, _, value in slots} | {schedule.get(peak, "")}
    sources = instruction_sources(hlo_text, instructions)
    buffers = []
    for size, kind, value in slots:
        instruction = _instruction(value.name)
        operation, source = sources.get(instruction, ("", ""))
        table = value.shape.startswith("(")  # of a tuple's addresses
        padding = 0 if table else max(size - shape_bytes(value.shape), 0)
        shape = re.sub(r"\{[^}]*\}", "", value.shape)
        buffers.append(Buffer(size, padding, kind, shape, instruction, operation, source))
    at_peak = schedule.get(peak, "")
    return BufferReport(
        peak_bytes=sum(a.size for a in fixed) + covered,
        assigned_bytes=sum(a.size for a in device),
        host_bytes=sum(a.size for a in allocations if a.color == HOST_MEMORY),
        peak_instruction=sources.get(at_peak, ("", ""))[0] or at_peak,
        buffers=tuple(sorted(buffers, key=lambda buffer: -buffer.size)),
    )


def _read_allocations(text: str) -> list[_Allocation]:
    allocations: list[_Allocation] = []
    for line in text.splitlines():
        if found := _VALUE.match(line):
            name, size, offset, shape = found.groups()
            name = name if name.endswith("}") else f"{name}{{}}"
            allocations[-1].values.append(_Value(name, shape, int(size), int(offset)))
        elif found := _ALLOCATION.match(line):
            _, size, color, flags = found.groups()
            kind = CONSTANT
            if "parameter" in flags:
                kind = ARGUMENT
            elif "maybe-live-out" in flags:
                kind = OUTPUT
            elif "constant" not in flags:
                kind = TEMPORARY
            allocations.append(_Allocation(int(size), int(color or 0), kind, []))
    # Values of scalar helper computations (the addition of a reduction) live outside the schedule.
    return [a for a in allocations if a.kind != TEMPORARY or a.size > 512 or a.color]


def _read_live_ranges(text: str, allocations: list[_Allocation]) -> dict[int, str]:
    """Fills in the values' ranges; returns the schedule: position -> instruction."""
    values: dict[str, list[_Value]] = {}
    for allocation in allocations:
        for value in allocation.values:
            values.setdefault(value.name, []).append(value)
    schedule: dict[int, str] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("  ") and not line.startswith("   "):
            section = line.strip()
        elif section == "InstructionSequence:":
            position, _, name = line.strip().partition(":")
            schedule[int(position)] = name
        elif section == "BufferLiveRange:" and (found := _LIVE.match(line)):
            for value in values.get(found[1], []):
                value.start, value.end = int(found[2]), int(found[3])
        elif section.startswith("Live ranges at"):
            break
    return schedule


def _peak(values: list[_Value]) -> tuple[int, int]:
    """Finds the moment at which the live values cover the most bytes, and how many.

    The plain sum of live values is an upper bound that is cheap at every moment; the exact union is
    computed from the largest bound down until no other moment can exceed it.
    """
    change: dict[int, int] = {}
    for value in values:
        change[value.start] = change.get(value.start, 0) + value.size
        change[value.end + 1] = change.get(value.end + 1, 0) - value.size
    bounds, live = [], 0
    for moment in sorted(change):
        live += change[moment]
        bounds.append((live, moment))
    best = (0, 0)
    for bound, moment in sorted(bounds, reverse=True):
        if bound <= best[1]:
            break
        now = [value for value in values if value.start <= moment <= value.end]
        covered = sum(size for size, _ in _without_overlap(now))
        if covered > best[1]:
            best = (moment, covered)
    return best


def _without_overlap(values: list[_Value]) -> list[tuple[int, _Value]]:
    """Splits a heap's used bytes among values; bytes that two share go to the lower, larger one."""
    owned, end = [], 0
    for value in sorted(values, key=lambda v: (v.offset, -v.size)):
        size = value.offset + value.size - max(value.offset, end)
        if size > 0:
            owned.append((size, value))
            end = value.offset + value.size
    return owned


def _tenant(allocation: _Allocation, moment: int) -> _Value:
    """Returns the largest value that holds an allocation at a moment, else the last that does.

    The memory of an output serves temporaries before the output is written.
    """
    live = [v for v in allocation.values if v.start <= moment <= v.end]
    if live:
        return max(live, key=lambda value: value.size)
    return max(allocation.values, key=lambda value: (value.size, value.start))


def _filled_by(value: _Value, same_place: list[_Value]) -> _Value:
    """Follows a loop's state back to the value that was written to its place before."""
    seen = set()
    while _PASSED_ON.match(value.name) and value.name not in seen:
        seen.add(value.name)
        before = [v for v in same_place if v.end == value.start and v is not value]
        if not before:
            break
        value = before[0]
    return value


def _instruction(value_name: str) -> str:
    return value_name.partition("{")[0]


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"
