"""Bytes that one HLO instruction moves from and to device memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from jaxrecipes.plan.hlo_shapes import shape_bytes
from jaxrecipes.plan.hlo_text import Computation, Instruction, Program, tuple_elements

# Names and handles of what is already there; nothing moves.
_FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "add-dependency",
    "domain",
    "iota",
)
_FREE_CALLS = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast|AsyncCollective\w+)"')
# The TPU's vector and scalar memory and semaphores; space 5 is the host's.
_NOT_DEVICE_MEMORY = re.compile(r"S\((?!0\))\d+\)")
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclass
class Traffic:
    """Estimates the memory traffic of a program's instructions.

    Every operand is read once and every result written once, except that slices, gathers and
    in-place updates move only the part they touch, also through fusions, and that values in other
    memory than the device's main one are free.
    """

    program: Program
    read: dict[tuple[str, int], int | None] = field(default_factory=dict)

    def instruction(self, computation: Computation, instruction: Instruction) -> int:
        """Returns the bytes of one execution of an instruction outside fusions."""
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return 0
        if opcode == "custom-call" and _FREE_CALLS.search(instruction.rest):
            return 0
        if opcode == "slice-start":
            # Its state lists the whole operand, of which only the result's size is read.
            operand, result = tuple_elements(instruction.type)[:2]
            read = shape_bytes(result) if _main_bytes(operand) else 0
            return read + _main_bytes(result)
        if opcode.endswith("-start"):
            # The state of an asynchronous operation lists its operands and its results.
            return _main_bytes(instruction.type)
        if opcode in _SLICES:
            return 2 * _main_bytes(instruction.type)
        if opcode == "dynamic-update-slice":
            return 2 * _main_bytes(computation.operand_type(instruction, 1))
        fused = None
        if opcode == "fusion":
            fused = self.program.computations.get(instruction.called("calls") or "")
        moved = self._written(fused, instruction.type)
        for index in range(len(instruction.operands())):
            whole = _main_bytes(computation.operand_type(instruction, index))
            part = self._part_read(fused, index) if fused is not None else None
            moved += whole if part is None else min(part, whole)
        return moved

    def _part_read(self, fused: Computation, index: int) -> int | None:
        """Returns the bytes that a fusion reads of a parameter; None for all of it."""
        key = (fused.name, index)
        if key not in self.read:
            self.read[key] = None
            parameter = fused.parameters().get(index)
            self.read[key] = self._uses(fused, parameter.name) if parameter else None
        return self.read[key]

    def _uses(self, fused: Computation, name: str) -> int | None:
        total = 0
        for user in fused.instructions.values():
            places = [i for i, (used, _) in enumerate(user.operands()) if used == name]
            if not places:
                continue
            if user.opcode in _SLICES and places == [0]:
                total += shape_bytes(user.type)
            elif user.opcode == "tuple" and user.name == fused.root:
                continue  # handed through
            elif user.opcode == "dynamic-update-slice" and places == [0]:
                continue  # written in place
            elif user.opcode == "custom-call" and _FREE_CALLS.search(user.rest):
                continue
            elif user.opcode == "bitcast":
                if user.name == fused.root:
                    return None  # who called this computation reads it
                part = self._uses(fused, user.name)
                if part is None:
                    return None
                total += part
            elif user.opcode == "fusion":
                inner = self.program.computations.get(user.called("calls") or "")
                parts = [self._part_read(inner, i) if inner else None for i in places]
                if any(part is None for part in parts):
                    return None
                total += sum(part for part in parts if part is not None)
            else:
                return None
        return total

    def _written(self, fused: Computation | None, result_type: str) -> int:
        """Returns the bytes of a result; of an in-place update only the update."""
        if fused is None or fused.root not in fused.instructions:
            return _main_bytes(result_type)
        root = fused.instructions[fused.root]
        if root.opcode != "tuple":
            update = self._update(fused, root)
            return _main_bytes(result_type) if update is None else update
        total = 0
        types = tuple_elements(result_type)
        for index, element in enumerate(types):
            source = fused.operand(root, index)
            if source is not None and source.opcode == "parameter":
                continue
            update = self._update(fused, source) if source is not None else None
            total += _main_bytes(element) if update is None else update
        return total

    def _update(self, fused: Computation, source: Instruction) -> int | None:
        while source.opcode == "bitcast":
            inner = fused.operand(source, 0)
            if inner is None:
                return None
            source = inner
        if source.opcode != "dynamic-update-slice":
            return None
        return shape_bytes(fused.operand_type(source, 1))


def _main_bytes(text: str) -> int:
    """Returns the bytes of a type's arrays that are in the device's main memory."""
    if not text.startswith("("):
        return 0 if _NOT_DEVICE_MEMORY.search(text) else shape_bytes(text)
    return sum(_main_bytes(element) for element in tuple_elements(text))
