"""Where documents come from: one reference string, its kind found by looking, one reader a kind."""

from __future__ import annotations

import difflib
import glob
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from jaxrecipes.data import files, installed, libraries
from jaxrecipes.data.documents import (
    ROLES,
    ColumnMapping,
    Document,
    DocumentRows,
    ReadReport,
    RowReader,
    T_co,
    check_mapping,
    check_unique_ids,
)
from jaxrecipes.durable import hash_file
from jaxrecipes.errors import ConfigError, DataError

FILE_KINDS = ("text", "jsonl", "csv", "parquet")
TABLE_KINDS = ("jsonl", "csv", "parquet", "saved_dataset", "hub", "tfds")
KINDS = (*FILE_KINDS, "saved_dataset", "hub", "tfds", "docstrings", "topics")


@dataclass(frozen=True)
class SourceSpec:
    """One source of documents.

    Attributes:
        reference: A file (``.gz`` allowed for text, JSONL and CSV), a folder, a glob such as
            ``corpus/**/*.jsonl``, a folder written by ``Dataset.save_to_disk``, ``hub:<dataset>``,
            ``tfds:<name or folder>``, ``docstrings`` (or ``docstrings:numpy,scipy``), or
            ``topics``.
        kind: One of ``KINDS``; found from ``reference`` where None.
        columns: Role -> column: ``text`` (a column, or a list joined by an empty line), ``id``,
            ``group`` (documents of one group stay on one side of a held-out split). Default:
            ``text``, and ``id`` where there is such a column.
        split: Split of a hub, TFDS or saved dataset.
        subset: Configuration name of a hub dataset.
        unit: What one document of a text file is: ``file``, ``line`` or ``paragraph``.
        modules: Packages whose docstrings are read.
        minimum_characters: Shorter docstrings are left out.
    """

    reference: str
    kind: str | None = None
    columns: ColumnMapping = field(default_factory=dict)
    split: str = "train"
    subset: str | None = None
    unit: files.TextUnit = "file"
    modules: tuple[str, ...] = installed.DEFAULT_MODULES
    minimum_characters: int = 300


@dataclass(frozen=True)
class ResolvedSource:
    """A source whose kind is known and whose files were found.

    Attributes:
        spec: The specification, with ``kind`` and ``modules`` filled in.
        kind: One of ``KINDS``.
        name: The reference without its prefix (``hub:``, ``tfds:``).
        paths: The files of a file kind, sorted; the folder of a saved dataset.
        root: Folder against which file names are made relative.
    """

    spec: SourceSpec
    kind: str
    name: str
    paths: tuple[Path, ...] = ()
    root: Path = Path()


def resolve_source(spec: SourceSpec, *, roles: Sequence[str] = ROLES) -> ResolvedSource:
    """Finds the kind and the files of a source without reading them.

    Args:
        spec: The source.
        roles: Roles that its column mapping may name; those of documents by default.

    Raises:
        ConfigError: Unknown kind, unit or column role.
        DataError: Nothing is there, or files of more than one kind are.
    """
    check_mapping(spec.columns, roles)
    if spec.kind is not None and spec.kind not in KINDS:
        raise ConfigError(f"kind: unknown source kind {spec.kind!r}; expected {', '.join(KINDS)}.")
    if spec.unit not in get_args(files.TextUnit):
        raise ConfigError(f"unit: unknown {spec.unit!r}; expected file, line or paragraph.")
    prefix, _, rest = spec.reference.partition(":")
    kind = spec.kind or (prefix if prefix in ("hub", "tfds", "docstrings", "topics") else None)
    if kind in ("hub", "tfds"):
        name = rest if prefix == kind else spec.reference
        return ResolvedSource(replace(spec, kind=kind), kind, name)
    if kind == "docstrings":
        modules = tuple(part.strip() for part in rest.split(",") if part.strip()) or spec.modules
        return ResolvedSource(replace(spec, kind=kind, modules=modules), kind, ",".join(modules))
    if kind == "topics":
        return ResolvedSource(replace(spec, kind=kind), kind, kind)
    return _resolve_files(spec)


def read_documents(
    spec: SourceSpec | ResolvedSource, report: ReadReport | None = None
) -> Iterator[Document]:
    """Reads the documents of a source, in an order that depends on nothing but its content.

    Args:
        spec: The source.
        report: Filled with counts while reading.

    Yields:
        Documents with unique ids. Empty ones are left out and counted.

    Raises:
        ConfigError: The specification is wrong.
        DataError: The input is missing, damaged, or lacks a column; the message names file and
            line.
    """
    source = spec if isinstance(spec, ResolvedSource) else resolve_source(spec)
    report = report if report is not None else ReadReport()
    yield from check_unique_ids(_READERS[source.kind](source, report), source.spec.reference)
    if report.documents == 0:
        dropped = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
        raise DataError(
            f"{source.spec.reference}: no document was found ({dropped or 'nothing read'}); "
            "expected at least one text that is not empty. Check the file and the mapped text "
            "column."
        )


def source_fingerprint(spec: SourceSpec | ResolvedSource) -> dict[str, str]:
    """Hashes everything in a source that shapes its documents.

    Files are hashed byte by byte, together with their names below the common folder; not with that
    folder's place, so that a copied corpus is the same corpus. Docstrings are keyed by the versions
    of the packages, other sources by their documents.

    Returns:
        Name -> hash (or version), to be compared entry by entry when a cache missed.
    """
    source = spec if isinstance(spec, ResolvedSource) else resolve_source(spec)
    result = {"kind": source.kind, "columns": repr(sorted(_plain(source.spec.columns).items()))}
    if source.kind == "text":
        result["unit"] = source.spec.unit
    if source.kind in FILE_KINDS:
        for path in source.paths:
            result[f"file {_relative(path, source)}"] = hash_file(path)
        return result
    if source.kind == "docstrings":
        result["modules"] = ",".join(source.spec.modules)
        result["minimum_characters"] = str(source.spec.minimum_characters)
        for module in source.spec.modules:
            result[f"version {module}"] = _version(module)
    digest = hashlib.sha256()
    for document in read_documents(source):
        for part in (document.id, document.text, document.group or ""):
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
    result["documents"] = digest.hexdigest()
    return result


def _resolve_files(spec: SourceSpec) -> ResolvedSource:
    path = Path(spec.reference).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return ResolvedSource(
                replace(spec, kind="saved_dataset"), "saved_dataset", path.name, (path,), path
            )
        found = [p for p in sorted(path.rglob("*")) if p.is_file() and not _hidden(p, path)]
        root = path
    elif path.is_file():
        found, root = [path], path.parent
    elif any(character in spec.reference for character in "*?["):
        matches = glob.glob(str(path), recursive=True)
        found = sorted(Path(match) for match in matches if Path(match).is_file())
        root = Path(str(path).split("*")[0].split("?")[0].split("[")[0])
        root = root if root.is_dir() else root.parent
    else:
        raise DataError(_missing_message(spec.reference, path))
    if spec.kind == "saved_dataset":
        raise DataError(
            f"{path}: no saved dataset; expected a folder that holds state.json or "
            f"dataset_dict.json."
        )
    kinds = {p: spec.kind or files.kind_of_file(p) for p in found}
    chosen = [p for p in found if kinds[p] is not None]
    if len(found) == 1 and not chosen:
        # A single file of an unknown suffix that the user named himself: look into it.
        kinds[found[0]] = _sniff(found[0])
        chosen = found
    if not chosen:
        raise DataError(
            f"{spec.reference}: no file of a known kind ({len(found)} other files); expected "
            f"{', '.join(files.KIND_BY_SUFFIX)} or one of them with .gz. Set kind: to read other "
            f"names."
        )
    different = sorted({str(kinds[p]) for p in chosen})
    if len(different) > 1:
        raise DataError(
            f"{spec.reference}: files of several kinds ({', '.join(different)}); expected one "
            "kind. Give a glob such as 'folder/**/*.jsonl', or one source a kind."
        )
    kind = different[0]
    return ResolvedSource(replace(spec, kind=kind), kind, path.name, tuple(chosen), root)


def read_rows(source: ResolvedSource, rows: RowReader[T_co]) -> Iterator[T_co]:
    """Reads the rows of a table (every kind but text, docstrings and topics), file after file.

    Args:
        source: The source; its kind is one of `TABLE_KINDS`.
        rows: Makes each row an item.

    Raises:
        DataError: The input is missing, damaged, or a row cannot be used.
    """
    spec = source.spec
    if source.kind == "saved_dataset":
        yield from libraries.read_saved_dataset(source.paths[0], rows, split=spec.split)
    elif source.kind == "hub":
        yield from libraries.read_hub_dataset(
            source.name, rows, subset=spec.subset, split=spec.split
        )
    elif source.kind == "tfds":
        yield from libraries.read_tfds(source.name, rows, split=spec.split)
    else:
        reader = {"jsonl": files.read_jsonl, "csv": files.read_csv, "parquet": files.read_parquet}
        many = len(source.paths) > 1
        for path in source.paths:
            prefix = _relative(path, source) if many else ""
            yield from reader[source.kind](path, rows, id_prefix=prefix)


def _read_text(source: ResolvedSource, report: ReadReport) -> Iterator[Document]:
    many = len(source.paths) > 1
    for path in source.paths:
        prefix = _relative(path, source) if many else ""
        yield from files.read_text(path, unit=source.spec.unit, id_prefix=prefix, report=report)


def _read_table(source: ResolvedSource, report: ReadReport) -> Iterator[Document]:
    return read_rows(source, DocumentRows(source.spec.columns, report))


_READERS: Mapping[str, Callable[[ResolvedSource, ReadReport], Iterator[Document]]] = {
    **dict.fromkeys(TABLE_KINDS, _read_table),
    "text": _read_text,
    "docstrings": lambda source, report: installed.read_docstrings(
        source.spec.modules, minimum_characters=source.spec.minimum_characters, report=report
    ),
    "topics": lambda source, report: installed.read_topics(report=report),
}


def _sniff(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PAR1":
        return "parquet"
    return "jsonl" if start.lstrip().startswith(b"{") else "text"


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _relative(path: Path, source: ResolvedSource) -> str:
    return path.relative_to(source.root).as_posix()


def _plain(columns: ColumnMapping) -> dict[str, str | list[str]]:
    return {role: v if isinstance(v, str) else list(v) for role, v in columns.items()}


def _version(module: str) -> str:
    try:
        return importlib.metadata.version(module.split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _missing_message(reference: str, path: Path) -> str:
    message = f"{reference}: no such file or folder"
    parent = path.parent
    if not parent.is_dir():
        return f"{message} (the folder {parent} does not exist either). Check the path."
    near = difflib.get_close_matches(path.name, sorted(p.name for p in parent.iterdir()), n=3)
    if near:
        return f"{message}; did you mean {' or '.join(near)}?"
    return (
        f"{message}. Expected a path, a glob, docstrings, topics, tfds:<name>, or, for a dataset "
        f"of the Hugging Face hub, hub:{reference}."
    )
