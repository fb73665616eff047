"""Questions with answers: what a task holds, whatever the columns of its rows are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxrecipes.data.docstring_task import docstring_rows
from jaxrecipes.data.documents import check_text, describe, id_of
from jaxrecipes.data.example_sources import ALL_ROLES
from jaxrecipes.data.examples import Labelled
from jaxrecipes.data.sources import TABLE_KINDS, SourceSpec, read_rows, resolve_source
from jaxrecipes.data.split import stable_fraction
from jaxrecipes.errors import DataError

Layout = Literal["question_answer", "label", "choices"]
LETTERS = "ABCDEFGHIJ"

# Role -> the names under which public data sets have the column, and the config's role for it.
_COLUMNS: Mapping[Layout, Mapping[str, tuple[str, ...]]] = {
    "question_answer": {
        "prompt": ("question", "prompt", "instruction"),
        "completion": ("answer", "completion", "output"),
    },
    "label": {"text": ("text", "sentence", "question"), "label": ("label",)},
    "choices": {
        "text": ("context", "question", "text"),
        "choices": ("choices", "endings", "options"),
        "label": ("answer", "label"),
    },
}
_EXAMPLES: Mapping[Layout, str] = {
    "question_answer": '{"question": "...", "answer": "..."}',
    "label": '{"text": "...", "label": "positive"}',
    "choices": '{"context": "...", "choices": ["...", "..."], "answer": 0}',
}


@dataclass(frozen=True)
class TaskItem:
    """A question and its answer.

    Attributes:
        id: Unique within its source.
        question: What is asked; the choices are in it, one a line, lettered.
        answer: What is to be said: a solution, a label, or the letter of a choice.
        where: File and line, for messages.
    """

    id: str
    question: str
    answer: str
    where: str = ""


def lettered(question: str, choices: Sequence[str]) -> str:
    """Puts choices below a question, one a line, each with its letter."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, *lines])


def read_task_items(
    spec: SourceSpec, layout: Layout, *, limit: int | None = None, seed: int = 0
) -> list[TaskItem]:
    """Reads the items of a task, in the order of the source.

    Args:
        spec: A table; its column mapping names columns that are called otherwise (`prompt` and
            `completion`, or `text` and `label`). Or, for the layout label, docstrings: their first
            line, and the package that it is from.
        layout: What its rows hold.
        limit: Keep only so many, those with the smallest hash of seed and id.
        seed: Of that choice.

    Raises:
        ConfigError: The specification is wrong.
        DataError: The source is missing or damaged, a row is not of the layout, or an id occurs
            twice; names file, line and what was expected.
    """
    source = resolve_source(spec, roles=ALL_ROLES)
    if source.kind == "docstrings" and layout == "label":
        items = [_docstring_item(row) for row in docstring_rows(source)]
    elif source.kind in TABLE_KINDS:
        items = list(read_rows(source, _ItemRows(layout, dict(spec.columns))))
    else:
        raise DataError(
            f"{spec.reference}: this is a {source.kind} source; expected a table with rows such as "
            f"{_EXAMPLES[layout]}."
        )
    seen: dict[str, TaskItem] = {}
    for item in items:
        if item.id in seen:
            raise DataError(
                f"{item.where}: the id {item.id!r} is that of {seen[item.id].where}, too; expected "
                "unique ids."
            )
        seen[item.id] = item
    if not items:
        raise DataError(f"{spec.reference}: there are no rows; expected at least one.")
    if limit is None or limit >= len(items):
        return items
    chosen = sorted(items, key=lambda item: stable_fraction(item.id, seed))[:limit]
    kept = {item.id for item in chosen}
    return [item for item in items if item.id in kept]


def _docstring_item(row: Labelled) -> TaskItem:
    return TaskItem(row.id, row.texts[0].split("\n", 1)[0], str(row.label), row.where)


@dataclass
class _ItemRows:
    """Makes rows of a table items of a task."""

    layout: Layout
    mapping: Mapping[str, str | Sequence[str]]

    def resolve(
        self, found: Sequence[str], *, where: str, text_like: Sequence[str] = ()
    ) -> list[str]:
        del text_like
        self.columns: dict[str, str] = {}
        for role, names in _COLUMNS[self.layout].items():
            given = self.mapping.get(role)
            wanted = names if given is None else (str(given),)
            column = next((name for name in wanted if name in found), None)
            if column is None:
                raise DataError(
                    f"{where}: there is no column {' or '.join(wanted)}; it has "
                    f"{', '.join(found) or 'none'}. Expected rows such as "
                    f"{_EXAMPLES[self.layout]}, or a mapping of {role} in columns."
                )
            self.columns[role] = column
        identifier = str(self.mapping.get("id", "id"))
        if identifier in found:
            self.columns["id"] = identifier
        return list(self.columns.values())

    def make(
        self, row: Mapping[str, object], *, where: str, default_id: str, id_prefix: str
    ) -> TaskItem:
        identifier = default_id
        if "id" in self.columns:
            identifier = id_prefix + id_of(row.get(self.columns["id"]), self.columns["id"], where)
        if self.layout == "question_answer":
            question, answer = (
                self._text(row, "prompt", where),
                self._text(row, "completion", where),
            )
        elif self.layout == "label":
            question, answer = self._text(row, "text", where), self._label(row, where)
        else:
            question, answer = self._chosen(row, where)
        return TaskItem(identifier, question.strip(), answer.strip(), where)

    def _text(self, row: Mapping[str, object], role: str, where: str) -> str:
        value, column = row.get(self.columns[role]), self.columns[role]
        if not isinstance(value, str) or not value.strip():
            raise self._error(where, column, value, "a text that is not empty")
        check_text(value, f"{where}: {column}")
        return value

    def _label(self, row: Mapping[str, object], where: str) -> str:
        value = row.get(self.columns["label"])
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise self._error(where, self.columns["label"], value, "a text or a whole number")
        return str(value)

    def _chosen(self, row: Mapping[str, object], where: str) -> tuple[str, str]:
        choices, right = row.get(self.columns["choices"]), row.get(self.columns["label"])
        column = self.columns["choices"]
        texts = isinstance(choices, list) and all(isinstance(one, str) for one in choices)
        if not isinstance(choices, list) or not texts or not 2 <= len(choices) <= len(LETTERS):
            expected = f"a list of 2 to {len(LETTERS)} texts"
            raise self._error(where, column, choices, expected)
        if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(choices):
            expected = f"the number of a choice, from 0 to {len(choices) - 1}"
            raise self._error(where, self.columns["label"], right, expected)
        return lettered(self._text(row, "text", where), choices), LETTERS[right]

    def _error(self, where: str, column: str, value: object, expected: str) -> DataError:
        return DataError(
            f"{where}: {column} holds {describe(value)}; expected {expected}. A row looks like "
            f"{_EXAMPLES[self.layout]}."
        )
