"""What a document is, and how the columns of a table become one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from jaxrecipes.errors import ConfigError, DataError

ROLES = ("text", "id", "group")
T_co = TypeVar("T_co", covariant=True)
Made = TypeVar("Made")
ColumnMapping = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a source.

    Attributes:
        id: Unique within the source.
        text: Not empty, valid Unicode, without NUL characters.
        group: Documents of one group always land on the same side of a held-out split.
    """

    id: str
    text: str
    group: str | None = None


@dataclass
class ReadReport:
    """What reading a source left out, filled while ``read_documents`` runs.

    Attributes:
        documents: Documents that were handed on.
        characters: Their total length in characters.
        dropped: Reason -> number of documents left out.
        examples: Reason -> the first ids (or file:line) left out, at most five each.
        columns: Columns that were read, as a mapping; empty for sources without columns.
    """

    documents: int = 0
    characters: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    columns: dict[str, object] = field(default_factory=dict)

    def drop(self, reason: str, where: str) -> None:
        """Counts one document that was left out for ``reason``."""
        self.dropped[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < 5:
            examples.append(where)


def make_document(
    text: str, *, id: str, where: str, report: ReadReport, group: str | None = None
) -> Document | None:
    """Checks a text and makes it a document.

    Args:
        text: The document's text.
        id: Its id.
        where: File and line (or row), for messages.
        report: Counts the document, or the reason why it was dropped.
        group: The split group, if the source has one.

    Returns:
        The document, or None where the text is empty or only whitespace (counted in ``report``).

    Raises:
        DataError: The text holds a NUL character or half of a surrogate pair.
    """
    if not text.strip():
        report.drop("empty", id)
        return None
    check_text(text, where)
    report.documents += 1
    report.characters += len(text)
    return Document(id, text, group)


def check_text(text: str, where: str) -> None:
    """Raises a DataError where a text holds a NUL character or half of a surrogate pair."""
    if "\x00" in text:
        raise DataError(
            f"{where}: the text holds a NUL character (at character {text.index(chr(0))}), so it "
            "is probably binary or badly converted; expected plain text. Remove the NUL "
            "characters (for a whole file: tr -d '\\000' < in > out) or leave the file out."
        )
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: the text holds half of a surrogate pair at character {error.start} "
                f"({text[error.start]!r}), which is no Unicode text; expected valid Unicode. "
                "Write the file again from its origin, or remove the character."
            ) from None


class Item(Protocol):
    """What documents and supervised examples have in common."""

    @property
    def id(self) -> str:
        """Unique within the source."""
        ...

    @property
    def text(self) -> str:
        """What it says; equal texts are duplicates and stay on one side of a held-out split."""
        ...

    @property
    def group(self) -> str | None:
        """Items of one group stay on one side of a held-out split."""
        ...


ItemType = TypeVar("ItemType", bound=Item)


def check_unique_ids(documents: Iterable[ItemType], source: str) -> Iterator[ItemType]:
    """Passes documents (or examples) on and raises at the second use of an id.

    Raises:
        DataError: Two documents have the same id.
    """
    seen: set[bytes] = set()
    for document in documents:
        # Eight bytes a document keep the set small; 2**64 values make a false alarm impossible in
        # practice (1e-6 at six million documents).
        digest = hashlib.blake2b(document.id.encode(), digest_size=8).digest()
        if digest in seen:
            raise DataError(
                f"{source}: two documents have the id {document.id!r}; expected unique ids. Map "
                "another column to 'id', or none: then file and line number are used."
            )
        seen.add(digest)
        yield document


@dataclass(frozen=True)
class ResolvedColumns:
    """Which columns of a table hold the text, the id and the split group."""

    text: tuple[str, ...]
    id: str | None
    group: str | None

    def as_mapping(self) -> dict[str, object]:
        """Returns the mapping as a user would write it."""
        mapping: dict[str, object] = {
            "text": self.text[0] if len(self.text) == 1 else list(self.text)
        }
        if self.id is not None:
            mapping["id"] = self.id
        if self.group is not None:
            mapping["group"] = self.group
        return mapping


def check_mapping(mapping: ColumnMapping, roles: Sequence[str] = ROLES) -> None:
    """Raises a ConfigError where a column mapping has an unknown role or a wrong type."""
    for role, value in mapping.items():
        if role not in roles:
            raise ConfigError(
                f"columns: unknown role {role!r}; expected some of {', '.join(roles)}. "
                "A mapping reads {text: <column of the text>, id: <column of the id>}."
            )
        if role != "text" and not isinstance(value, str):
            raise ConfigError(f"columns.{role}: expected one column name, found {value!r}.")
        names = [value] if isinstance(value, str) else list(value)
        if not names or not all(isinstance(name, str) and name for name in names):
            raise ConfigError(
                f"columns.{role}: expected a column name{' or a list of them' * (role == 'text')}, "
                f"found {value!r}."
            )


def resolve_columns(
    found: Sequence[str], mapping: ColumnMapping, *, where: str, text_like: Sequence[str] = ()
) -> ResolvedColumns:
    """Decides which columns to read.

    Without a mapping the text is the column ``text`` and the id the column ``id`` where there is
    one.

    Args:
        found: Columns of the table.
        mapping: Role -> column (for ``text`` also a list of columns, joined by an empty line).
        where: File (and line) for messages.
        text_like: Columns that hold strings, best candidate first, for the proposed mapping.

    Raises:
        DataError: A needed column is missing; the message shows columns found and needed and a
            mapping that can be pasted.
    """
    value = mapping.get("text", "text")
    text = (value,) if isinstance(value, str) else tuple(value)
    id_column = mapping.get("id", "id" if "id" in found else None)
    group = mapping.get("group")
    needed = [*text, *(str(column) for column in (id_column, group) if column is not None)]
    missing = [column for column in needed if column not in found]
    if missing:
        candidates = [c for c in text_like if c not in ("id",)] or [
            c for c in found if c not in ("id",)
        ]
        identifier = next((c for c in found if c == "id" or c.endswith(("_id", "key"))), None)
        proposal = f"text: {_quote(candidates[0] if candidates else '<column>')}"
        if identifier is not None and identifier != (candidates[0] if candidates else None):
            proposal += f", id: {_quote(identifier)}"
        raise DataError(
            f"{where}: column {', '.join(map(repr, missing))} not found.\n"
            f"  columns found:  {', '.join(found) if found else '(none)'}\n"
            f"  columns needed: {', '.join(needed)}\n"
            f"  paste this and adapt it: columns: {{{proposal}}}"
        )
    return ResolvedColumns(text, id_column, group)  # type: ignore[arg-type]


class RowReader(Protocol[T_co]):
    """Makes the rows of a table items of one kind; the readers of files know nothing else of it."""

    def resolve(
        self, found: Sequence[str], *, where: str, text_like: Sequence[str] = ()
    ) -> list[str]:
        """Decides which columns of a table to read and returns them. Called once a file.

        Raises:
            DataError: A needed column is missing.
        """
        ...

    def make(
        self, row: Mapping[str, object], *, where: str, default_id: str, id_prefix: str
    ) -> T_co | None:
        """Makes one row an item; None where it was left out and counted.

        Raises:
            DataError: The row cannot be used.
        """
        ...


@dataclass(frozen=True)
class ChangedRows(Generic[Made, T_co]):
    """Reads rows as another reader does, and changes what it makes of them.

    Attributes:
        rows: The other reader.
        change: From what it made of a row (None where it left the row out), and file and line.
    """

    rows: RowReader[Made]
    change: Callable[[Made | None, str], T_co | None]

    def resolve(
        self, found: Sequence[str], *, where: str, text_like: Sequence[str] = ()
    ) -> list[str]:
        """As the other reader."""
        return self.rows.resolve(found, where=where, text_like=text_like)

    def make(
        self, row: Mapping[str, object], *, where: str, default_id: str, id_prefix: str
    ) -> T_co | None:
        """As the other reader, changed."""
        made = self.rows.make(row, where=where, default_id=default_id, id_prefix=id_prefix)
        return self.change(made, where)


@dataclass
class DocumentRows:
    """Makes rows documents.

    Attributes:
        columns: Role -> column, as given by the user.
        report: Counts documents and drops.
    """

    columns: ColumnMapping
    report: ReadReport
    _resolved: ResolvedColumns | None = None

    def resolve(
        self, found: Sequence[str], *, where: str, text_like: Sequence[str] = ()
    ) -> list[str]:
        """See `resolve_columns`."""
        resolved = resolve_columns(found, self.columns, where=where, text_like=text_like)
        self._resolved = resolved
        read = [*resolved.text, *(c for c in (resolved.id, resolved.group) if c is not None)]
        return list(dict.fromkeys(read))

    def make(
        self, row: Mapping[str, object], *, where: str, default_id: str, id_prefix: str
    ) -> Document | None:
        """See `row_document`."""
        assert self._resolved is not None, "resolve comes first"
        return row_document(
            row,
            self._resolved,
            where=where,
            default_id=default_id,
            id_prefix=id_prefix,
            report=self.report,
        )


def row_document(
    row: Mapping[str, object],
    columns: ResolvedColumns,
    *,
    where: str,
    default_id: str,
    id_prefix: str,
    report: ReadReport,
) -> Document | None:
    """Makes one row of a table a document.

    Args:
        row: Column -> value.
        columns: Which columns to read.
        where: File and line or row, for messages.
        default_id: Id of the document where no id column is read.
        id_prefix: Put before ids from a column, to keep them unique over several files.
        report: See ``make_document``.

    Raises:
        DataError: A column is missing in this row, or a value has the wrong type.
    """
    if not report.columns:
        report.columns = columns.as_mapping()
    parts: list[str] = []
    for column in columns.text:
        value = _value(row, column, where, columns)
        if not isinstance(value, str):
            raise DataError(
                f"{where}: column {column!r} holds {describe(value)}; expected a string. Correct "
                "the row, or map another column: columns: {text: <column of strings>}."
            )
        if value.strip():
            parts.append(value)
    id_value = default_id
    if columns.id is not None:
        id_value = id_prefix + id_of(_value(row, columns.id, where, columns), columns.id, where)
    group: str | None = None
    if columns.group is not None:
        group = group_of(_value(row, columns.group, where, columns), columns.group, where)
    return make_document("\n\n".join(parts), id=id_value, where=where, report=report, group=group)


def id_of(value: object, column: str, where: str) -> str:
    """Returns the id that a column holds.

    Raises:
        DataError: It holds none.
    """
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(
            f"{where}: id column {column!r} holds {describe(value)}; expected a "
            "non-empty string or an integer."
        )
    return str(value)


def group_of(value: object, column: str, where: str) -> str:
    """Returns the split group that a column holds.

    Raises:
        DataError: It holds none.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(
            f"{where}: group column {column!r} holds {describe(value)}; expected "
            "a string or an integer."
        )
    return str(value)


def _value(row: Mapping[str, object], column: str, where: str, columns: ResolvedColumns) -> object:
    if column not in row:
        resolve_columns(list(row), columns.as_mapping(), where=where)  # type: ignore[arg-type]
    return row[column]


def describe(value: object) -> str:
    """Names a value of the wrong kind, for messages."""
    if value is None:
        return "null"
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _quote(name: str) -> str:
    plain = name.replace("_", "").replace("-", "").isalnum() and not name[0].isdigit()
    return name if plain or name.startswith("<") else f'"{name}"'
