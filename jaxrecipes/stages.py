"""A stage: inputs and options in, a finished folder with a manifest out, or nothing at all.

A stage writes into a folder beside its target and renames it when everything is on disk, so a kill
leaves either the finished artifact or a partial folder that the next run throws away. The manifest
holds the hash of everything that shaped the artifact, and of every file in it: the same command
again finds it and does nothing, another option or another input makes a new one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxrecipes.durable import (
    find_damage,
    folder_entries,
    hash_values,
    replace_folder,
    synchronise,
    write_json,
)

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
    files = folder_entries(partial)
    manifest = {"key": hash_values(inputs), "inputs": inputs, "files": files}
    write_json(partial / MANIFEST, manifest)
    for name in files:
        synchronise(partial / name)
    replace_folder(partial, folder)
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
    if manifest["key"] != hash_values(inputs):
        changed = sorted(
            key for key in {*recorded, *inputs} if recorded.get(key) != inputs.get(key)
        )
        return "changed since it was made: " + ", ".join(changed)
    return find_damage(folder, files) or ""
