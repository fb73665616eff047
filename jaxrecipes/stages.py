"""A stage: inputs and options in, a finished folder with a manifest out, or nothing at all.

A stage writes into a folder beside its target and renames it when everything is on disk, so a kill
leaves either the finished artifact or a partial folder that the next run throws away. The manifest
holds the hash of everything that shaped the artifact, and of every file in it: the same command
again finds it and does nothing, another option or another input makes a new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxrecipes.errors import JaxrecipesError

MANIFEST = "stage.json"


@dataclass(frozen=True)
class StageResult:
    """What a stage left.

    Attributes:
        folder: The finished artifact.
        reused: Whether it was there before.
        reason: Why it was made, in words; empty when it was reused.
    """

    folder: Path
    reused: bool
    reason: str


def stage_key(inputs: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a mapping of JSON values, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def run_stage(
    folder: Path, inputs: Mapping[str, Any], build: Callable[[Path], None]
) -> StageResult:
    """Makes an artifact unless a verified one with the same inputs is there.

    Args:
        folder: Where the artifact belongs.
        inputs: JSON values that determine it: hashes of input files, options, code versions.
        build: Writes the artifact into the empty folder that it is given.

    Returns:
        The finished artifact.
    """
    reason = why_stale(folder, inputs)
    if not reason:
        return StageResult(folder, True, "")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    build(partial)
    files = {
        str(path.relative_to(partial)): {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        for path in sorted(partial.rglob("*"))
        if path.is_file()
    }
    manifest = {"key": stage_key(inputs), "inputs": inputs, "files": files}
    write_json(partial / MANIFEST, manifest)
    for path in partial.rglob("*"):
        if path.is_file():
            _synchronise(path)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    _synchronise(folder.parent)
    return StageResult(folder, False, reason)


def why_stale(folder: Path, inputs: Mapping[str, Any]) -> str:
    """Says why an artifact cannot be used as it is; empty when it can.

    Every file is compared with the hash in the manifest, so damage is found here and not in the
    middle of a run.
    """
    path = folder / MANIFEST
    if not path.exists():
        return "it has not been made yet"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        recorded, files = manifest["inputs"], manifest["files"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
        return f"{path} is damaged"
    if manifest["key"] != stage_key(inputs):
        changed = sorted(
            key for key in {*recorded, *inputs} if recorded.get(key) != inputs.get(key)
        )
        return "changed since it was made: " + ", ".join(changed)
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != expected["bytes"] or file_sha256(file) != expected["sha256"]:
            return f"{file} is not the file that was written"
    return ""


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON to a file in one step: the file is either the old or the new one.

    Raises:
        JaxrecipesError: The folder cannot be written, for example because the disk is full.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        _synchronise(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise JaxrecipesError(f"cannot write {path}: {error.strerror or error}") from error


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
