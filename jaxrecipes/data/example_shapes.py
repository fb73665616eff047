"""The shapes of supervised rows, and how the columns of a table tell which one it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from jaxrecipes.data.documents import ColumnMapping
from jaxrecipes.errors import ConfigError, DataError

Shape = Literal[
    "documents",
    "prompt_completion",
    "chat",
    "alpaca",
    "sharegpt",
    "classification",
    "sentence_pair",
]
SHAPES: tuple[Shape, ...] = get_args(Shape)
COMMON_ROLES = ("id", "group")


@dataclass(frozen=True)
class ShapeColumns:
    """The columns of one shape.

    Attributes:
        needed: Role -> names under which public data sets have it, the most usual first.
        optional: The same for columns that may be missing.
        example: A row, for messages.
    """

    needed: Mapping[str, tuple[str, ...]]
    optional: Mapping[str, tuple[str, ...]]
    example: str

    @property
    def roles(self) -> tuple[str, ...]:
        """All roles that a mapping may name."""
        return (*self.needed, *self.optional, *COMMON_ROLES)


# The order is that of detection: a table of text with labels is read as documents, as it always
# was, unless its shape is given or the label is mapped.
COLUMNS: Mapping[Shape, ShapeColumns] = {
    "chat": ShapeColumns(
        {"messages": ("messages",)},
        {"tools": ("tools",)},
        '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}',
    ),
    "sharegpt": ShapeColumns(
        {"conversations": ("conversations",)},
        {"system": ("system",), "tools": ("tools",)},
        '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}]}',
    ),
    "prompt_completion": ShapeColumns(
        {"prompt": ("prompt",), "completion": ("completion",)},
        {"tools": ("tools",)},
        '{"prompt": "...", "completion": "..."}',
    ),
    "alpaca": ShapeColumns(
        {"instruction": ("instruction",), "output": ("output",)},
        {"input": ("input",), "system": ("system",)},
        '{"instruction": "...", "input": "...", "output": "..."}',
    ),
    "documents": ShapeColumns({"text": ("text",)}, {}, '{"text": "..."}'),
    "sentence_pair": ShapeColumns(
        {
            "text": ("sentence1", "premise", "text1"),
            "second_text": ("sentence2", "hypothesis", "text2"),
            "label": ("label",),
        },
        {},
        '{"sentence1": "...", "sentence2": "...", "label": "yes"}',
    ),
    "classification": ShapeColumns(
        {"text": ("text", "sentence"), "label": ("label",)},
        {},
        '{"text": "...", "label": "positive"}',
    ),
}


@dataclass(frozen=True)
class ResolvedShape:
    """A shape whose columns were found.

    Attributes:
        shape: Which one.
        columns: Role -> column, the optional ones too where the table has them or may have them.
    """

    shape: Shape
    columns: Mapping[str, str]


def resolve_shape(
    found: Sequence[str],
    mapping: ColumnMapping,
    *,
    where: str,
    shape: Shape | None = None,
    text_like: Sequence[str] = (),
) -> ResolvedShape:
    """Decides which shape rows have and which columns to read.

    Args:
        found: Columns of the table (of its first row, where rows differ).
        mapping: Role -> column, as given by the user.
        where: File and line, for messages.
        shape: The shape that the user gave; None finds it from the columns.
        text_like: Columns that hold strings, best candidate first, for the proposed mapping.

    Raises:
        ConfigError: An unknown shape.
        DataError: No shape fits, several do, or a column is missing; the message lists the columns
            found and needed and a mapping to paste.
    """
    if shape is not None:
        if shape not in COLUMNS:
            raise ConfigError(f"shape: unknown {shape!r}; expected one of {', '.join(SHAPES)}.")
        return _with_shape(shape, found, mapping, where)
    roles = {role for role in mapping if role not in COMMON_ROLES}
    fitting: list[Shape] = [
        name
        for name, columns in COLUMNS.items()
        if roles <= set(columns.roles) and not _missing(columns, found, mapping)
    ]
    if "documents" in fitting:
        # A label beside the text does not make a corpus a classification task.
        fitting = [name for name in fitting if name not in ("sentence_pair", "classification")]
    if len(fitting) > 1:
        raise DataError(
            f"{where}: the columns ({', '.join(found)}) fit several shapes: {', '.join(fitting)}. "
            f"Say which one is meant, for instance: shape: {fitting[0]}"
        )
    if not fitting:
        needed = "; ".join(
            f"{', '.join(columns.needed)} ({name})" for name, columns in COLUMNS.items()
        )
        text = next((name for name in (*text_like, *found) if name != "id"), "<column>")
        raise DataError(
            f"{where}: column 'text' not found, nor the columns of another shape of rows.\n"
            f"  columns found:  {', '.join(found) if found else '(none)'}\n"
            f"  columns needed: one of {needed}\n"
            f"  paste this and adapt it: columns: {{text: {text}}}, or shape: prompt_completion, "
            "columns: {prompt: <column>, completion: <column>}"
        )
    return _with_shape(fitting[0], found, mapping, where)


def _with_shape(
    shape: Shape, found: Sequence[str], mapping: ColumnMapping, where: str
) -> ResolvedShape:
    columns = COLUMNS[shape]
    for role, value in mapping.items():
        if role not in columns.roles:
            raise ConfigError(
                f"columns: rows of shape {shape} have no role {role!r}; expected some of "
                f"{', '.join(columns.roles)}."
            )
        if not isinstance(value, str):
            raise ConfigError(
                f"columns.{role}: expected one column name for shape {shape}, found {value!r}."
            )
    missing = _missing(columns, found, mapping)
    if missing:
        left = [name for name in found if name not in set(map(str, mapping.values()))]
        proposal = ", ".join(
            f"{role}: {left[at] if at < len(left) else '<column>'}"
            for at, role in enumerate(columns.needed)
        )
        raise DataError(
            f"{where}: a row of shape {shape} needs {', '.join(missing)}, which is not there.\n"
            f"  columns found:  {', '.join(found) if found else '(none)'}\n"
            f"  columns needed: {', '.join(columns.needed)}, such as {columns.example}\n"
            f"  paste this and adapt it: shape: {shape}, columns: {{{proposal}}}"
        )
    resolved = {
        role: _column(names, role, found, mapping) for role, names in columns.needed.items()
    }
    for role, names in columns.optional.items():
        # Rows of a JSONL file need not all have it, so that it may be missing in the first.
        resolved[role] = _column(names, role, found, mapping) or names[0]
    for role in COMMON_ROLES:
        name = mapping.get(role, "id" if role == "id" and "id" in found else None)
        if name is not None:
            resolved[role] = str(name)
    return ResolvedShape(shape, {role: str(name) for role, name in resolved.items()})


def _column(
    names: Sequence[str], role: str, found: Sequence[str], mapping: ColumnMapping
) -> str | None:
    if role in mapping:
        return str(mapping[role])
    return next((name for name in names if name in found), None)


def _missing(columns: ShapeColumns, found: Sequence[str], mapping: ColumnMapping) -> list[str]:
    missing = []
    for role, names in columns.needed.items():
        given = mapping.get(role)
        wanted = [given] if isinstance(given, str) else list(given or names)
        # A mapped list of text columns has to be there as a whole; of usual names, one is enough.
        present = [name in found for name in wanted]
        if not (all(present) if given else any(present)):
            missing.append(role if given is None else f"{role} ({', '.join(map(str, wanted))})")
    return missing
