"""How the rows of each shape become supervised examples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxrecipes.data.documents import (
    ColumnMapping,
    ReadReport,
    check_text,
    describe,
    group_of,
    id_of,
)
from jaxrecipes.data.example_shapes import COLUMNS, ResolvedShape, Shape, resolve_shape
from jaxrecipes.data.examples import Completion, Conversation, Example, Labelled
from jaxrecipes.errors import DataError

# Names of the speakers in sharegpt rows, and the role that chat templates know them by.
SPEAKERS: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
# A role becomes part of the template's markers, so that no other word may stand there.
CHAT_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")


@dataclass
class ExampleRows:
    """Makes rows supervised examples; see `documents.RowReader`.

    Attributes:
        columns: Role -> column, as given by the user.
        report: Counts examples and drops.
        shape: The shape of the rows; None: found from the first row, and then kept.
    """

    columns: ColumnMapping
    report: ReadReport
    shape: Shape | None = None
    _resolved: ResolvedShape | None = None

    def resolve(
        self, found: Sequence[str], *, where: str, text_like: Sequence[str] = ()
    ) -> list[str]:
        """Finds shape and columns; `text_like` is not needed for it."""
        del text_like
        resolved = resolve_shape(found, self.columns, where=where, shape=self.shape)
        self.shape, self._resolved = resolved.shape, resolved
        self.report.columns = dict(resolved.columns)
        return [column for column in dict.fromkeys(resolved.columns.values()) if column in found]

    def make(
        self, row: Mapping[str, object], *, where: str, default_id: str, id_prefix: str
    ) -> Example | None:
        """Makes one row an example; one whose answers are all empty is left out and counted.

        Raises:
            DataError: A column is missing in this row, or a value is not what the shape expects.
        """
        assert self._resolved is not None, "resolve comes first"
        shape, columns = self._resolved.shape, self._resolved.columns
        for role in (*COLUMNS[shape].needed, "id", "group"):
            if role in columns and columns[role] not in row:
                raise DataError(
                    f"{where}: the row has no {columns[role]!r}; it has {', '.join(row) or 'none'}."
                    f" Expected a row of shape {shape}, such as {COLUMNS[shape].example}."
                )
        identifier = default_id
        if "id" in columns:
            identifier = id_prefix + id_of(row[columns["id"]], columns["id"], where)
        example = _MAKERS[shape](_Row(row, columns, shape, where), identifier)
        if "group" in columns:
            group = group_of(row[columns["group"]], columns["group"], where)
            example = replace(example, group=group)
        if _is_empty(example):
            self.report.drop("empty answer", identifier)
            return None
        self.report.documents += 1
        self.report.characters += len(example.text)
        return example


@dataclass(frozen=True)
class _Row:
    """A row with the names of its columns, for messages."""

    values: Mapping[str, object]
    columns: Mapping[str, str]
    shape: Shape
    where: str

    def value(self, role: str) -> object:
        return self.values.get(self.columns[role]) if role in self.columns else None

    def error(self, key: str, value: object, expected: str) -> DataError:
        return DataError(
            f"{self.where}: {key} holds {describe(value)}; expected {expected}. A row of shape "
            f"{self.shape} looks like {COLUMNS[self.shape].example}."
        )

    def string(self, role: str, *, needed: bool = True) -> str:
        value = self.value(role)
        if value is None and not needed:
            return ""
        return self.checked(value, self.columns[role])

    def checked(self, value: object, key: str) -> str:
        if not isinstance(value, str):
            raise self.error(key, value, "a string")
        check_text(value, f"{self.where}: {key}")
        return value

    def tools(self) -> tuple[Mapping[str, Any], ...] | None:
        value = self.value("tools")
        if value is None or value == [] or value == "":
            return None
        key = self.columns["tools"]
        if isinstance(value, str):  # many data sets store the schemas as one JSON string
            try:
                value = json.loads(value)
            except ValueError as error:
                raise DataError(
                    f"{self.where}: {key} is no valid JSON ({error}); expected a list of tools."
                ) from None
        if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
            raise self.error(key, value, "a list of JSON schemas of tools")
        _check_strings(value, f"{self.where}: {key}")
        return tuple(value)


def _chat(row: _Row, identifier: str) -> Conversation:
    messages = _messages(row, row.value("messages"), row.columns["messages"])
    return _conversation(row, identifier, messages, tools=row.tools())


def _prompt_completion(row: _Row, identifier: str) -> Conversation | Completion:
    prompt, completion = row.value("prompt"), row.value("completion")
    if isinstance(prompt, list) or isinstance(completion, list):
        before = _messages(row, prompt, row.columns["prompt"])
        after = _messages(row, completion, row.columns["completion"])
        messages = [*before, *after]
        return _conversation(row, identifier, messages, tools=row.tools(), first=len(before))
    return Completion(identifier, row.where, row.string("prompt"), row.string("completion"))


def _alpaca(row: _Row, identifier: str) -> Conversation:
    instruction, context = row.string("instruction"), row.string("input", needed=False)
    messages = [
        {"role": "user", "content": f"{instruction}\n\n{context}" if context else instruction},
        {"role": "assistant", "content": row.string("output")},
    ]
    return _conversation(row, identifier, _with_system(row, messages))


def _sharegpt(row: _Row, identifier: str) -> Conversation:
    column = row.columns["conversations"]
    turns = row.value("conversations")
    if not isinstance(turns, list) or not turns:
        raise row.error(column, turns, "a list of turns that is not empty")
    messages = []
    for number, turn in enumerate(turns):
        key = f"{column}[{number}]"
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            hint = (
                " (these are chat messages: give shape: chat, columns: {messages: " + column + "})"
                if isinstance(turn, dict) and "role" in turn
                else ""
            )
            raise row.error(key, turn, f"an object with from and value{hint}")
        speaker = SPEAKERS.get(turn["from"]) if isinstance(turn["from"], str) else None
        if speaker is None:
            raise row.error(f"{key}.from", turn["from"], f"one of {', '.join(SPEAKERS)}")
        value = row.checked(turn["value"], f"{key}.value")
        messages.append({"role": speaker, "content": value})
    return _conversation(row, identifier, _with_system(row, messages), tools=row.tools())


def _labelled(row: _Row, identifier: str) -> Labelled:
    label = row.value("label")
    if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
        raise row.error(row.columns["label"], label, "a label: a string or a whole number")
    if isinstance(label, str):
        check_text(label, f"{row.where}: {row.columns['label']}")
    roles = ("text", "second_text") if row.shape == "sentence_pair" else ("text",)
    return Labelled(identifier, row.where, tuple(row.string(role) for role in roles), label)


def _with_system(row: _Row, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    system = row.string("system", needed=False)
    return [{"role": "system", "content": system}, *messages] if system else messages


def _conversation(
    row: _Row,
    identifier: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: tuple[Mapping[str, Any], ...] | None = None,
    first: int = 0,
) -> Conversation:
    if not any(message["role"] == "assistant" for message in messages[first:]):
        raise DataError(
            f"{row.where}: example {identifier!r} has no assistant turn"
            f"{' in its completion' if first else ''}, so there is nothing to learn in it; roles "
            f"found: {', '.join(message['role'] for message in messages)}. Leave the row out, or "
            "add the answer."
        )
    return Conversation(identifier, row.where, tuple(messages), tools, first)


def _messages(row: _Row, value: object, column: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise row.error(column, value, "a list of messages that is not empty")
    messages = []
    for number, message in enumerate(value):
        key = f"{column}[{number}]"
        if not isinstance(message, dict) or "role" not in message:
            hint = (
                " (these are sharegpt turns: give shape: sharegpt, columns: {conversations: "
                f"{column}}})"
                if isinstance(message, dict) and "from" in message
                else ""
            )
            raise row.error(key, message, f"an object with role and content{hint}")
        # A column of a Parquet file gives every message every key; null is the same as absent.
        message = {name: item for name, item in message.items() if item is not None}
        if message.get("role") not in CHAT_ROLES:
            raise row.error(f"{key}.role", message.get("role"), f"one of {', '.join(CHAT_ROLES)}")
        if "content" in message:
            row.checked(message["content"], f"{key}.content")
        elif not message.get("tool_calls"):
            raise row.error(f"{key}.content", None, "a string")
        _check_strings(message, f"{row.where}: {key}")
        messages.append(message)
    return messages


def _check_strings(value: Any, where: str) -> None:
    if isinstance(value, str):
        check_text(value, where)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            _check_strings(item, f"{where}.{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_strings(item, f"{where}[{number}]")


def _is_empty(example: Example) -> bool:
    if isinstance(example, Completion):
        return not example.completion.strip()
    if isinstance(example, Labelled):
        return not any(text.strip() for text in example.texts)
    answers = [m for m in example.messages[example.first_supervised :] if m["role"] == "assistant"]
    # What else a message may hold (tool calls, reasoning) is an answer too.
    return all(set(m) <= {"role", "content"} and not m["content"].strip() for m in answers)


_MAKERS: Mapping[Shape, Callable[[_Row, str], Example]] = {
    "chat": _chat,
    "sharegpt": _sharegpt,
    "prompt_completion": _prompt_completion,
    "alpaca": _alpaca,
    "classification": _labelled,
    "sentence_pair": _labelled,
}
