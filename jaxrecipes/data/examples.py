"""Supervised examples: what a row of any shape becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of a chat, of which the assistant's are learned.

    Attributes:
        id: Unique within the source.
        where: File and line (or row), for messages.
        messages: The turns as a chat template reads them, without keys that hold null.
        tools: JSON schemas of tools, or None.
        first_supervised: Assistant turns before this one are context only.
        group: See `Document`.
    """

    id: str
    where: str
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] | None = None
    first_supervised: int = 0
    group: str | None = None

    @property
    def text(self) -> str:
        """The whole conversation as JSON."""
        return _json([*self.messages, *(self.tools or ()), self.first_supervised])


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and the text that follows it directly, without any template.

    Attributes:
        id: Unique within the source.
        where: File and line (or row), for messages.
        prompt: May be empty.
        completion: What is learned.
        group: See `Document`.
    """

    id: str
    where: str
    prompt: str
    completion: str
    group: str | None = None

    @property
    def text(self) -> str:
        """Both as JSON, so that the border between them counts."""
        return _json([self.prompt, self.completion])


@dataclass(frozen=True, slots=True)
class Labelled:
    """One text, or a pair of them, with a label.

    Attributes:
        id: Unique within the source.
        where: File and line (or row), for messages.
        texts: One text or two.
        label: As it stands in the row.
        group: See `Document`.
    """

    id: str
    where: str
    texts: tuple[str, ...]
    label: str | int
    group: str | None = None

    @property
    def text(self) -> str:
        """Texts and label as JSON."""
        return _json([*self.texts, self.label])

    def conversation(self) -> Conversation:
        """Returns the texts as the user's turn and the label as the assistant's."""
        messages = (
            {"role": "user", "content": "\n\n".join(self.texts)},
            {"role": "assistant", "content": str(self.label)},
        )
        return Conversation(self.id, self.where, messages, group=self.group)


Example = Conversation | Completion | Labelled


def _json(value: Sequence[Any]) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
