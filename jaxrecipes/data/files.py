"""Readers of text, JSONL, CSV and Parquet files: one generator of documents (or rows) each."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Literal

from jaxrecipes.data.documents import Document, ReadReport, RowReader, T_co, make_document
from jaxrecipes.errors import DataError

TextUnit = Literal["file", "line", "paragraph"]
MAX_LINE_BYTES = 256 * 2**20
"""A longer line is refused: nearly always it is a JSON array or a binary file."""

KIND_BY_SUFFIX: dict[str, str] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}


def kind_of_file(path: Path) -> str | None:
    """Returns the kind of a file by its suffix (``.gz`` taken off), or None if unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return KIND_BY_SUFFIX.get(suffixes[-1]) if suffixes else None


def read_text(
    path: Path, *, unit: TextUnit, id_prefix: str, report: ReadReport
) -> Iterator[Document]:
    """Reads a text file as one document, or one a line, or one a paragraph (split at empty lines).

    Args:
        path: UTF-8 text, ``.gz`` allowed.
        unit: What one document is.
        id_prefix: Put before the id; the id is ``<file name>`` or ``<file name>:<line>``.
        report: Counts documents and drops.

    Raises:
        DataError: The file is empty, unreadable, not UTF-8, or holds NUL bytes.
    """
    name = id_prefix or path.name
    pending: list[str] = []
    first_line = 1
    for number, line in _decoded_lines(path):
        if unit == "line" or (unit == "paragraph" and not line.strip()):
            text = line if unit == "line" else "".join(pending)
            start = number if unit == "line" else first_line
            if unit == "line" or pending:
                where = f"{path}:{start}"
                document = make_document(
                    text.strip("\r\n"), id=f"{name}:{start}", where=where, report=report
                )
                if document is not None:
                    yield document
            pending = []
            continue
        if not pending:
            first_line = number
        pending.append(line)
    if pending:
        where = f"{path}:{first_line}"
        identifier = name if unit == "file" else f"{name}:{first_line}"
        text = "".join(pending) if unit == "file" else "".join(pending).strip("\r\n")
        document = make_document(text, id=identifier, where=where, report=report)
        if document is not None:
            yield document


def read_jsonl(path: Path, rows: RowReader[T_co], *, id_prefix: str) -> Iterator[T_co]:
    """Reads one JSON object a line. Empty lines are skipped.

    Raises:
        DataError: Broken JSON, a line that is no object, a missing column, a wrong type, wrong
            UTF-8.
    """
    count = 0
    for number, line in _decoded_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(_json_message(path, number, line, error)) from None
        if not isinstance(row, dict):
            raise DataError(
                f"{where}: the line holds a JSON {_json_type(row)}; expected one JSON object a "
                f"line, "
                'such as {"text": "..."}.'
                + (" To convert an array: jq -c '.[]' in.json > out.jsonl" * isinstance(row, list))
            )
        count += 1
        if count == 1:
            strings = sorted(
                (key for key, value in row.items() if isinstance(value, str)),
                key=lambda key: -len(row[key]),
            )
            rows.resolve(list(row), where=where, text_like=strings)
        item = rows.make(
            row,
            where=where,
            default_id=f"{id_prefix or path.name}:{number}",
            id_prefix=f"{id_prefix}#" if id_prefix else "",
        )
        if item is not None:
            yield item
    if count == 0:
        raise DataError(
            f"{path}: the file holds only empty lines; expected one JSON object a line."
        )


def read_csv(path: Path, rows: RowReader[T_co], *, id_prefix: str) -> Iterator[T_co]:
    """Reads a CSV (or ``.tsv``) file with a header line, RFC 4180 quoting, UTF-8.

    Raises:
        DataError: No header, a row of another width than the header, broken quoting, missing
            column.
    """
    tabs = ".tsv" in (suffix.lower() for suffix in path.suffixes)
    line_number = 0

    def lines() -> Iterator[str]:
        nonlocal line_number
        for number, line in _decoded_lines(path):
            line_number = number
            yield line

    # The csv module's own limit (131,072 characters a field) would refuse long documents.
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(lines(), delimiter="\t" if tabs else ",", strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            where, start = f"{path}:{start}", line_number + 1
            if not cells:
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if len(set(header)) != len(header):
                    raise DataError(
                        f"{where}: the header names a column twice: {', '.join(header)}."
                    )
                rows.resolve(header, where=where)
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: the row has {len(cells)} cells; expected {len(header)} as in the "
                    f"header ({', '.join(header)}). Quote cells that hold a separator or a line "
                    "break."
                )
            item = rows.make(
                dict(zip(header, cells, strict=True)),
                where=where,
                default_id=f"{id_prefix or path.name}:{where.rsplit(':', 1)[1]}",
                id_prefix=f"{id_prefix}#" if id_prefix else "",
            )
            if item is not None:
                yield item
    except csv.Error as error:
        raise DataError(
            f"{path}:{start}: this is not valid CSV ({error}); expected RFC 4180 quoting: cells "
            f"with "
            'separators, quotes or line breaks in "...", quotes doubled.'
        ) from None


def read_parquet(path: Path, rows: RowReader[T_co], *, id_prefix: str) -> Iterator[T_co]:
    """Reads a Parquet file, a thousand rows at a time.

    Raises:
        DataError: Not a Parquet file, truncated, a missing column or a wrong type.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            strings = [
                field.name
                for field in schema
                if pyarrow.types.is_string(field.type) or pyarrow.types.is_large_string(field.type)
            ]
            read = rows.resolve(schema.names, where=str(path), text_like=strings)
            number = 0
            for batch in file.iter_batches(batch_size=1000, columns=read):
                for row in batch.to_pylist():
                    number += 1
                    item = rows.make(
                        row,
                        where=f"{path}: row {number}",
                        default_id=f"{id_prefix or path.name}:{number}",
                        id_prefix=f"{id_prefix}#" if id_prefix else "",
                    )
                    if item is not None:
                        yield item
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{path}: cannot be read as Parquet ({reason}); expected a complete Parquet file. "
            "Copy or download it again."
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a string is not UTF-8 ({error.reason}).") from None


def _decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line with its end) of a UTF-8 file, without a byte order mark."""
    number = 0
    try:
        with _open(path) as file:
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(raw) > MAX_LINE_BYTES:
                    raise DataError(
                        f"{path}:{number}: the line is longer than {MAX_LINE_BYTES // 2**20} MiB; "
                        "expected one document or one JSON object a line. A JSON array is "
                        "converted by: jq -c '.[]' in.json > out.jsonl"
                    )
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if b"\x00" in raw:
                    raise DataError(
                        f"{path}:{number}: the line holds a NUL byte (byte {raw.index(0)}); "
                        "expected UTF-8 text. UTF-16 is converted by: iconv -f UTF-16 -t UTF-8 "
                        "in > out; a damaged file by: tr -d '\\000' < in > out"
                    )
                try:
                    yield number, raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}:{number}: byte {error.start} of the line "
                        f"(0x{raw[error.start]:02x}) is "
                        "not UTF-8; expected UTF-8 text. Convert the file, for instance: "
                        "iconv -f LATIN1 -t UTF-8 in > out"
                    ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}:{number + 1}: the gzip data end or break here ({error}); expected a complete "
            ".gz file. Copy or download it again (gzip -t tests it)."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if number == 0:
        raise DataError(f"{path}: the file is empty; expected at least one document.")


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def _json_message(path: Path, number: int, line: str, error: Exception) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return f"{path}:{number}: the JSON value is nested too deeply to be read."
    column = error.colno
    message = f"{path}:{number}: this is not valid JSON at character {column} ({error.msg})"
    if not line.endswith("\n"):
        message += "; it is the last line and has no line end, so the file is probably truncated"
    elif line.strip() in ("[", "{"):
        message += (
            "; the file seems to hold one large JSON value. Convert it: jq -c '.[]' in > out.jsonl"
        )
    excerpt = line[max(0, column - 30) : column + 10].strip()
    return f"{message}. Expected one JSON object a line; near: {excerpt!r}"


def _json_type(value: object) -> str:
    names: Mapping[type, str] = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
