"""Files that are either there completely or not at all, and folders that one process writes."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxrecipes.data.sources import hash_file
from jaxrecipes.errors import JaxrecipesError


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replaces a JSON file in one step and waits until it is on disk."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        json.dump(value, file, indent=1, sort_keys=True, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)


def file_entry(path: Path) -> dict[str, Any]:
    """Returns what a manifest says of a file: name, bytes, sha256."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": hash_file(path)}


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
def write_errors(folder: Path, what: str) -> Iterator[None]:
    """Turns the operating system's errors into one that says what to do.

    Args:
        folder: What is written.
        what: What it is, for the message.

    Raises:
        JaxrecipesError: Instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise JaxrecipesError(
            f"{folder}: {what} cannot be written ({error.strerror or error}). Check the rights and "
            "the free space (df -h), then run the same command again: what is finished is kept."
        ) from None
