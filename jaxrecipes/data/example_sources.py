"""Supervised examples of a source: its shape found, its rows read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxrecipes.data.docstring_task import docstring_chats
from jaxrecipes.data.documents import ColumnMapping, ReadReport, check_unique_ids
from jaxrecipes.data.example_rows import ExampleRows
from jaxrecipes.data.example_shapes import COLUMNS, SHAPES, Shape, resolve_shape
from jaxrecipes.data.examples import Example
from jaxrecipes.data.sources import (
    TABLE_KINDS,
    ResolvedSource,
    SourceSpec,
    read_rows,
    resolve_source,
)
from jaxrecipes.errors import ConfigError, DataError

ALL_ROLES = tuple(dict.fromkeys(role for shape in COLUMNS.values() for role in shape.roles))


def find_shape(spec: SourceSpec | ResolvedSource, shape: Shape | None = None) -> Shape:
    """Finds the shape of a source from its kind and its first row.

    Args:
        spec: The source.
        shape: The shape that the user gave; None finds it.

    Raises:
        ConfigError: An unknown shape, or one that a source of this kind cannot have.
        DataError: The source cannot be read, or its columns fit no shape or several.
    """
    if shape is not None and shape not in SHAPES:
        raise ConfigError(f"shape: unknown {shape!r}; expected one of {', '.join(SHAPES)}.")
    source = _resolved(spec)
    if source.kind == "docstrings" and shape == "chat":
        return shape
    if source.kind not in TABLE_KINDS:
        if shape not in (None, "documents"):
            raise ConfigError(
                f"shape: {source.spec.reference} is a {source.kind} source, which has no columns; "
                f"expected shape documents (or none) instead of {shape}."
            )
        return "documents"
    if shape is not None:
        return shape
    text = source.spec.columns.get("text")
    if text is not None and not set(source.spec.columns) - {"text", "id", "group"}:
        return "documents"
    first: Shape
    for first in read_rows(source, _ShapeOfFirst(source.spec.columns)):
        return first
    return "documents"  # a table without rows is an error of whoever reads it


def read_examples(
    spec: SourceSpec | ResolvedSource,
    report: ReadReport | None = None,
    *,
    shape: Shape | None = None,
) -> Iterator[Example]:
    """Reads the supervised examples of a source, in an order that depends only on its content.

    Args:
        spec: The source.
        report: Filled with counts while reading; `columns` holds the shape and the columns.
        shape: The shape of the rows; None finds it from the columns.

    Yields:
        Examples with unique ids.

    Raises:
        ConfigError: The specification is wrong.
        DataError: The input is missing or damaged, or a row is not of the shape; the message names
            file, line, key, and what was expected.
    """
    source = _resolved(spec)
    report = report if report is not None else ReadReport()
    found = find_shape(source, shape)
    if found == "documents":
        raise DataError(
            f"{source.spec.reference}: these are plain documents; expected supervised rows. Give "
            f"their shape: {', '.join(name for name in SHAPES if name != 'documents')}."
        )
    if source.kind == "docstrings":
        yield from docstring_chats(source, report)
        return
    rows = ExampleRows(source.spec.columns, report, found)
    yield from check_unique_ids(read_rows(source, rows), source.spec.reference)
    if report.documents == 0:
        dropped = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
        raise DataError(
            f"{source.spec.reference}: no example was found ({dropped or 'nothing read'}); "
            "expected at least one with an answer that is not empty."
        )


@dataclass
class _ShapeOfFirst:
    """Makes the first row the shape of all."""

    columns: ColumnMapping
    shape: Shape = "documents"

    def resolve(
        self, found: Sequence[str], *, where: str, text_like: Sequence[str] = ()
    ) -> list[str]:
        resolved = resolve_shape(found, self.columns, where=where, text_like=text_like)
        self.shape = resolved.shape
        return list(found)

    def make(
        self, row: Mapping[str, object], *, where: str, default_id: str, id_prefix: str
    ) -> Shape:
        del row, where, default_id, id_prefix
        return self.shape


def _resolved(spec: SourceSpec | ResolvedSource) -> ResolvedSource:
    return spec if isinstance(spec, ResolvedSource) else resolve_source(spec, roles=ALL_ROLES)
