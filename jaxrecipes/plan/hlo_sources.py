"""Where an HLO instruction comes from: JAX's operation name and the Python line."""

from __future__ import annotations

import re
from collections.abc import Collection

_DEFINITION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_OPERATION = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_FILE_AND_LINE = re.compile(r'source_file="([^"]*)" source_line=(\d+)')
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


def instruction_sources(hlo_text: str, names: Collection[str]) -> dict[str, tuple[str, str]]:
    """Looks up instructions of a program.

    Args:
        hlo_text: A module's text. Its head lists file names and stack frames, which instructions
            point to; older texts name file and line in the instruction.
        names: Instructions to look for, without "%".

    Returns:
        For each that was found with metadata: (operation name or "", "file:line" or "").
    """
    wanted = set(names)
    tables: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
    table: dict[int, str] | None = None
    found: dict[str, tuple[str, str]] = {}
    for line in hlo_text.splitlines():
        if line.startswith("  "):
            definition = _DEFINITION.match(line)
            if definition and definition[1] in wanted:
                operation, where = _OPERATION.search(line), ""
                if frame := _FRAME.search(line):
                    where = _frame_source(tables, int(frame[1]))
                elif place := _FILE_AND_LINE.search(line):
                    where = f"{place[1]}:{place[2]}"
                name = operation[1].replace('\\"', '"').replace("\\'", "'") if operation else ""
                if name or where:
                    found.setdefault(definition[1], (name, where))
        elif line in tables:
            table = tables[line]
        elif table is not None and line[:1].isdigit():
            number, _, rest = line.partition(" ")
            table[int(number)] = rest
        elif line:
            table = None
    return found


def _frame_source(tables: dict[str, dict[int, str]], frame: int) -> str:
    location = _field(tables["StackFrames"].get(frame, ""), "file_location_id")
    place = tables["FileLocations"].get(location, "")
    file = tables["FileNames"].get(_field(place, "file_name_id"), "").strip('"')
    return f"{file}:{_field(place, 'line')}" if file else ""


def _field(record: str, name: str) -> int:
    found = re.search(rf"\b{name}=(\d+)", record)
    return int(found[1]) if found else 0
