"""Files and folders that are either there completely or not at all, and manifests that prove it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxrecipes.errors import DataError, JaxrecipesError


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes in hexadecimal.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None


def hash_values(values: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of JSON values, independent of the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def synchronise(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes a JSON file in one step and waits until it is on disk.

    Raises:
        JaxrecipesError: It cannot be written, for example because the disk is full.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with write_errors(path, "the file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8", newline="\n")
        synchronise(temporary)
        temporary.rename(path)
        synchronise(path.parent)


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSONL file in one step and waits until it is on disk.

    Raises:
        JaxrecipesError: It cannot be written, for example because the disk is full.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with write_errors(path, "the file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            # Escaped: some readers end a line at U+2028, too.
            file.writelines(json.dumps(record) + "\n" for record in records)
        synchronise(temporary)
        temporary.rename(path)
        synchronise(path.parent)


def replace_folder(partial: Path, folder: Path) -> None:
    """Puts a finished folder in the place of what is there, durably.

    Renaming over a folder that is not empty is impossible, so what is there is moved aside first; a
    kill between the two renames leaves no folder, and nobody takes a half one for whole.
    """
    earlier = folder.with_name(f".{folder.name}.earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if folder.exists():
        folder.rename(earlier)
    partial.rename(folder)
    synchronise(folder.parent)
    shutil.rmtree(earlier, ignore_errors=True)


def file_entry(path: Path) -> dict[str, Any]:
    """Returns what a manifest says of a file: name, bytes, sha256."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": hash_file(path)}


def folder_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns bytes and sha256 of every file below a folder, by its path in the folder."""
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def find_damage(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Returns which file is not as ``folder_entries`` saw it, and how; None if all are.

    Raises:
        KeyError: An entry lacks ``bytes`` or ``sha256``.
    """
    for name, expected in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != expected["bytes"] or hash_file(path) != expected["sha256"]:
            return f"{path} is not the file that was written"
    return None


def read_manifest(path: Path, *, version: int, missing: str, again: str) -> dict[str, Any]:
    """Reads a manifest with a ``schema_version``.

    Args:
        path: The JSON file.
        version: The schema version that this code reads.
        missing: What to say where there is none; the folder is put before it.
        again: What to do where it cannot be used, a sentence.

    Raises:
        DataError: There is none, it is no JSON, or of another schema version.
    """
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path.parent}: {missing}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except ValueError as error:
        raise DataError(f"{path}: this is not JSON ({error}). {again}") from None
    found = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if found != version:
        raise DataError(
            f"{path}: schema version {found!r}; this version of jaxrecipes reads {version}. {again}"
        )
    return manifest


@contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Lets one process at a time write a folder; the kernel drops the lock of a killed one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{folder}: another process writes this folder; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def write_errors(place: Path, what: str) -> Iterator[None]:
    """Turns the operating system's errors into one that says what to do.

    Args:
        place: What is written.
        what: What it is, for the message.

    Raises:
        JaxrecipesError: Instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise JaxrecipesError(
            f"{place}: {what} cannot be written ({error.strerror or error}). Check the rights and "
            "the free space (df -h), then run the same command again: what is finished is kept."
        ) from None
