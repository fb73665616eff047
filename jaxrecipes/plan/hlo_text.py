"""Reads a compiled program's HLO text into computations and instructions, line by line.

Only what accounting needs is understood: names, types, operation codes, operands, and attributes on
demand. Texts of 50 MB are read in seconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(")
_OPERAND = re.compile(r"%([\w.\-]+)(?:#(\d+(?:,\d+)*))?")
_PARENTHESIS = re.compile(r"[()]")
_PARTITIONS = re.compile(r"num_partitions=(\d+)")


@dataclass(slots=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: Unique in its computation, without "%".
        type: HLO type of the result, an array or a tuple, with layout and memory space.
        opcode: "dot", "all-gather-start", ...
        rest: The line after the opening parenthesis: operands, then attributes.
    """

    name: str
    type: str
    opcode: str
    rest: str
    _operands: list[tuple[str, tuple[int, ...]]] | None = None

    def operand_text(self) -> str:
        """Returns the text between the parentheses."""
        depth = 0
        for mark in _PARENTHESIS.finditer(self.rest):
            depth += 1 if mark[0] == "(" else -1
            if depth < 0:
                return self.rest[: mark.start()]
        return self.rest

    def operands(self) -> list[tuple[str, tuple[int, ...]]]:
        """Lists operands as (instruction, path): "%while.3#1" is element 1 of a tuple."""
        if self._operands is None:
            self._operands = [
                (name, tuple(int(part) for part in path.split(",")) if path else ())
                for name, path in _OPERAND.findall(self.operand_text())
            ]
        return self._operands

    def attribute(self, name: str) -> str | None:
        """Returns an attribute's text: up to the next attribute, braces balanced."""
        start = self.rest.find(f"{name}=", len(self.operand_text()))
        if start < 0:
            return None
        start += len(name) + 1
        depth = 0
        for position in range(start, len(self.rest)):
            mark = self.rest[position]
            if mark in "{[(":
                depth += 1
            elif mark in "}])":
                depth -= 1
            elif mark == "," and depth == 0:
                return self.rest[start:position]
        return self.rest[start:]

    def called(self, name: str) -> str | None:
        """Returns the one computation that an attribute names ("calls", "body", ...)."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None


@dataclass(slots=True)
class Computation:
    """A function of the program: instructions by name, in order."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    def operand_type(self, instruction: Instruction, index: int) -> str:
        """Returns the HLO type of an operand; "" where the text does not tell."""
        operands = instruction.operands()
        if index >= len(operands) or operands[index][0] not in self.instructions:
            return ""
        name, path = operands[index]
        text = self.instructions[name].type
        for element in path:
            elements = tuple_elements(text)
            if element >= len(elements):
                return ""
            text = elements[element]
        return text

    def operand(self, instruction: Instruction, index: int) -> Instruction | None:
        """Returns the instruction that makes a whole operand, if it is in this computation."""
        operands = instruction.operands()
        if index >= len(operands) or operands[index][1]:
            return None
        return self.instructions.get(operands[index][0])

    def parameters(self) -> dict[int, Instruction]:
        """Returns the parameters by number."""
        return {
            int(one.operand_text()): one
            for one in self.instructions.values()
            if one.opcode == "parameter"
        }


@dataclass(slots=True)
class Program:
    """A module: its computations by name, the entry's name, the number of devices."""

    computations: dict[str, Computation]
    entry: str
    partitions: int


def read_program(text: str) -> Program:
    """Reads HLO text, as `compiled.as_text()` gives it.

    Args:
        text: One module.

    Returns:
        The program.

    Raises:
        ValueError: The text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    current, entry = Computation(""), ""
    for line in text.splitlines():
        if line.startswith("  "):
            if found := _INSTRUCTION.match(line):
                root, name, kind, opcode, rest = found.groups()
                current.instructions[name] = Instruction(name, kind, opcode, rest)
                if root:
                    current.root = name
        elif line.endswith("{") and "->" in line and (found := _HEADER.match(line)):
            current = computations.setdefault(found[2], Computation(found[2]))
            entry = found[2] if found[1] else entry
    if not entry:
        raise ValueError("the HLO text has no ENTRY computation")
    partitions = _PARTITIONS.search(text[: text.find("\n")])
    return Program(computations, entry, int(partitions[1]) if partitions else 1)


def tuple_elements(text: str) -> list[str]:
    """Splits a tuple's HLO type into its elements: "(f32[2], (s32[], pred[]))" into two."""
    elements, depth, start = [], 0, 1
    for position, mark in enumerate(text):
        if mark in "({[":
            depth += 1
        elif mark in ")}]":
            depth -= 1
            if depth == 0 and mark == ")":
                elements.append(text[start:position])
                break
        elif mark == "," and depth == 1:
            elements.append(text[start:position])
            start = position + 1
    return [re.sub(r"/\*.*?\*/", "", element).strip() for element in elements if element.strip()]
