"""Function calls that an answer makes: parsed, compared by value, none of them overlooked."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

_NAME = re.compile(r"(?<![\w.])[A-Za-z_][\w.]*\(")
_JSON_START = re.compile(r"[{\[]")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
# An answer in which this many characters follow an opening bracket without an end holds no call.
_LONGEST_CALL = 20_000
_DEEPEST = 50


@dataclass(frozen=True)
class FunctionCall:
    """A call of a function with values.

    Attributes:
        name: The function, with the objects it belongs to: `math.sqrt`.
        positional: Values without a name, as JSON.
        named: Values by name, as JSON with sorted keys, so that their order does not count.
    """

    name: str
    positional: str
    named: str


def find_calls(text: str) -> list[FunctionCall]:
    """Finds every function call in a text, in order.

    A call is written as in Python, `name(1, unit="km")`, with values only; or as JSON, an object
    with `name` (or `function`) and `arguments` (or `parameters`), which may be JSON in a string.
    `f(x)` with a variable, `file(s)` and other prose are no calls. A call inside of another one's
    brackets belongs to that.

    Args:
        text: An answer, with or without words and fences around the calls.
    """
    found, at = [], 0
    places = sorted(
        [*(match.start() for match in _NAME.finditer(text))]
        + [match.start() for match in _JSON_START.finditer(text)]
    )
    for place in places:
        if place < at:
            continue
        calls, end = _json_calls(text, place) if text[place] in "{[" else _python_call(text, place)
        if calls:
            found += calls
            at = end
    return found


def _python_call(text: str, start: int) -> tuple[list[FunctionCall], int]:
    end = _end_of_brackets(text, text.index("(", start))
    if end is None:
        return [], start
    try:
        node = ast.parse(text[start:end], mode="eval").body
        if not isinstance(node, ast.Call):
            return [], start
        positional = [ast.literal_eval(value) for value in node.args]
        named = {str(one.arg): ast.literal_eval(one.value) for one in node.keywords}
        if any(one.arg is None for one in node.keywords):
            return [], start
        name = ast.unparse(node.func)
        return [FunctionCall(name, _canonical(positional), _canonical(named))], end
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return [], start


def _end_of_brackets(text: str, start: int) -> int | None:
    """Returns where the bracket at `start` is closed, strings left out of account."""
    open_brackets: list[str] = []
    quote, at = "", start
    last = min(len(text), start + _LONGEST_CALL)
    while at < last:
        one = text[at]
        if quote:
            if one == "\\":
                at += 1
            elif one == quote:
                quote = ""
        elif one in "\"'":
            quote = one
        elif one in _CLOSING:
            open_brackets.append(_CLOSING[one])
            if len(open_brackets) > _DEEPEST:
                return None
        elif open_brackets and one == open_brackets[-1]:
            open_brackets.pop()
            if not open_brackets:
                return at + 1
        elif one in ")]}":
            return None
        at += 1
    return None


def _json_calls(text: str, start: int) -> tuple[list[FunctionCall], int]:
    end = _end_of_brackets(text, start)
    if end is None:
        return [], start
    try:
        value = json.loads(text[start:end])
    except (ValueError, RecursionError):
        return [], start
    items = value if isinstance(value, list) else [value]
    calls = [call for call in map(_json_call, items) if call is not None]
    return (calls, end) if len(calls) == len(items) else ([], start)


def _json_call(value: Any) -> FunctionCall | None:
    if not isinstance(value, dict):
        return None
    inner = value.get("function")
    if isinstance(inner, dict):  # {"type": "function", "function": {"name": …, "arguments": …}}
        return _json_call(inner)
    name = value.get("name", inner)
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return FunctionCall(name, _canonical([]), _canonical(arguments))


def _canonical(value: Any) -> str:
    """Writes values so that equal ones are equal texts; 1 is 1.0, and True is not 1."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int) or isinstance(value, float) and not value.is_integer():
        return value
    if isinstance(value, float):
        return int(value)
    raise TypeError(f"{type(value).__name__} is no value of a call")
