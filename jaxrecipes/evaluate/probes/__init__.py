"""General prompts and questions that come with the package, all written by this project.

They show what a model keeps while it learns something else: answers to the prompts (written by the
base model itself before training), four-choice questions of general knowledge, and sentences whose
last word is to be found. Nothing here was taken from a published benchmark.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class ChoiceItem:
    """A question with exactly one right answer.

    Attributes:
        id: Subject and number.
        question: A full sentence.
        choices: Four answers.
        answer: Index of the right one.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class LastWordItem:
    """A text without its last word.

    Attributes:
        id: Name of the item.
        context: The text, without a space at its end.
        target: The word that follows, without the space before it.
    """

    id: str
    context: str
    target: str


def general_prompts() -> dict[str, str]:
    """Returns id -> prompt: everyday requests on eight subjects, none about programming."""
    return {row["id"]: row["prompt"] for row in _rows("general_prompts.jsonl")}


def general_choices() -> list[ChoiceItem]:
    """Returns the four-choice questions; the right answer is equally often at each place."""
    return [
        ChoiceItem(row["id"], row["question"], tuple(row["choices"]), row["answer"])
        for row in _rows("general_choices.jsonl")
    ]


def general_last_words() -> list[LastWordItem]:
    """Returns the texts whose last word is to be found."""
    return [
        LastWordItem(row["id"], row["context"], row["target"])
        for row in _rows("general_last_words.jsonl")
    ]


def _rows(name: str) -> list[dict[str, Any]]:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
