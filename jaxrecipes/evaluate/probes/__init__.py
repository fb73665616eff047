"""General prompts and questions that come with the package, all written by this project.

They show what a model keeps while it learns something else. Nothing here was taken from a published
benchmark. Every file has one JSON object a line and goes round its subjects, so that its first
lines are a fair sample:

- `general_prompts.jsonl`: everyday requests on eight subjects, none about programming. What the
  base model answers to them before training is the keep set.
- `general_choices.jsonl`: four-choice questions of general knowledge; the right answer is equally
  often at each place. For `evaluate.choices.read_choice_items`.
- `general_last_words.jsonl`: texts whose last word is to be found. For
  `evaluate.choices.read_last_word_items`.
"""

from __future__ import annotations

import json
from importlib import resources


def general_prompts() -> dict[str, str]:
    """Returns id -> prompt of `general_prompts.jsonl`, in its order."""
    file = resources.files(__name__).joinpath("general_prompts.jsonl")
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["prompt"] for row in rows}
