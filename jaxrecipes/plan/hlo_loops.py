"""How often a while loop of a compiled program runs."""

from __future__ import annotations

import re

from jaxrecipes.plan.hlo_text import Computation, Instruction, Program

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_INDEX = re.compile(r"index=(\d+)")
_FORWARDED = ("copy", "bitcast", "convert", "reshape", "copy-done")


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """Finds the rounds of a loop.

    The compiler notes them where it knows them; the TPU's does not. JAX's scans count an integer
    from a constant to a constant by one, and that is what is read otherwise: the condition's
    comparison, the counter's first value in the loop's operand, its step in the body.

    Args:
        program: The program.
        computation: Where the loop is.
        loop: Its "while" instruction.

    Returns:
        Rounds, or None where they are not constant.
    """
    if known := _KNOWN.search(loop.rest):
        return int(known[1])
    condition = program.computations.get(loop.called("condition") or "")
    if condition is None or condition.root not in condition.instructions:
        return None
    found = _comparison(program, condition)
    if found is None:
        return None
    direction, left, right = found
    start = computation.operand(loop, 0)

    def first_value(side: int | tuple[str, int]) -> int | None:
        """The value before the first round: a constant, or an element of the loop's operand."""
        if isinstance(side, int):
            return side
        if start is None or start.opcode != "tuple":
            return None
        return _constant(computation, start, side[1])

    if not isinstance(left, int) and not isinstance(right, int):
        # Both travel through the loop; the limit is the one that the body hands on unchanged.
        right = first_value(right) if _step(program, loop, right[1]) is None else right
        left = first_value(left) if _step(program, loop, left[1]) is None else left
    if isinstance(left, int) and not isinstance(right, int):
        direction = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
        left, right = right, left
    if not isinstance(left, tuple) or not isinstance(right, int):
        return None
    step = _step(program, loop, left[1]) or (1 if direction in ("LT", "LE", "NE") else -1)
    begin = first_value(left)
    # A counter whose first value is out of sight is a scan's, which starts at zero.
    distance = (right - (begin or 0)) * (1 if step > 0 else -1)
    if direction in ("LE", "GE"):
        distance += 1
    return max(-(-distance // abs(step)), 0)


Side = int | tuple[str, int]


def _comparison(program: Program, condition: Computation) -> tuple[str, Side, Side] | None:
    """Reads `counter < limit`: each side a constant or ("state", its index in the loop's state)."""
    root = condition.instructions[condition.root]
    compare, inner = root, condition
    if root.opcode == "fusion":
        inner = program.computations.get(root.called("calls") or "") or condition
        compare = inner.instructions.get(inner.root, root)
    if compare.opcode != "compare":
        return None
    direction = compare.attribute("direction") or "LT"
    sides: list[Side] = []
    for index in (0, 1):
        side = _side(condition, inner, root, compare, index)
        if side is None:
            return None
        sides.append(side)
    return direction, sides[0], sides[1]


def _side(
    condition: Computation,
    inner: Computation,
    root: Instruction,
    compare: Instruction,
    index: int,
) -> Side | None:
    value = _constant(inner, compare, index)
    if value is not None:
        return value
    owner, user = inner, compare
    if inner is not condition:
        # Inside a fusion: step out through the parameter to the fusion's operand.
        parameter = inner.operand(compare, index)
        if parameter is None or parameter.opcode != "parameter":
            return None
        owner, user, index = condition, root, int(parameter.operand_text())
        value = _constant(owner, user, index)
        if value is not None:
            return value
    name, path = user.operands()[index]
    if path:
        return "state", path[0]
    source = owner.instructions.get(name)
    while source is not None and source.opcode in _FORWARDED:
        source = owner.operand(source, 0)
    if source is not None and source.opcode == "get-tuple-element":
        found = _INDEX.search(source.rest)
        return ("state", int(found[1])) if found else None
    return None


def _constant(computation: Computation, user: Instruction, index: int) -> int | None:
    """Follows an operand through copies to an integer constant."""
    source = computation.operand(user, index)
    while source is not None and source.opcode in _FORWARDED:
        source = computation.operand(source, 0)
    if source is not None and source.opcode == "constant":
        text = source.operand_text()
        return int(text) if re.fullmatch(r"-?\d+", text) else None
    return None


def _step(program: Program, loop: Instruction, index: int) -> int | None:
    """Reads how much a round adds to an element of the loop's state; None where it is not seen."""
    body = program.computations.get(loop.called("body") or "")
    root = body.instructions.get(body.root) if body else None
    if body is None or root is None or root.opcode != "tuple":
        return None
    source = body.operand(root, index)
    while source is not None and source.opcode in _FORWARDED:
        source = body.operand(source, 0)
    if source is None or source.opcode not in ("add", "subtract"):
        return None
    values = [_constant(body, source, side) for side in (0, 1)]
    if source.opcode == "subtract":
        return -values[1] if values[1] is not None else None
    return values[0] if values[0] is not None else values[1]
