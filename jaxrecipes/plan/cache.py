"""Measurements on disk, by content: the same program for the same chips is compiled once.

An entry is one JSON file below the user's cache folder, `$XDG_CACHE_HOME/jaxrecipes/plan` or
`~/.cache/jaxrecipes/plan`. It can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxrecipes.plan.measurement import Measurement, from_json, to_json

# Raised where what is measured, or how, changes: older entries are then not found.
_VERSION = 1
# Compilers read options from these.
_OPTION_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


def cache_folder() -> Path:
    """Returns the folder of measurements; it need not exist."""
    home = os.environ.get("XDG_CACHE_HOME")
    base = Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache"
    return base / "jaxrecipes" / "plan"


def content_key(program: str, target: str, mesh: Mapping[str, int] | None) -> str:
    """Identifies a compilation by everything that its result depends on.

    Args:
        program: StableHLO text of the lowered program.
        target: Name of the topology, or kind and number of local devices.
        mesh: Axis sizes, which name the axes of collectives.

    Returns:
        A SHA-256 in hexadecimal.
    """
    parts = {
        "version": _VERSION,
        "program": hashlib.sha256(program.encode()).hexdigest(),
        "target": target,
        "mesh": dict(mesh or {}),
        "compilers": {name: _version(name) for name in ("jax", "jaxlib", "libtpu")},
        "options": {name: os.environ.get(name, "") for name in _OPTION_VARIABLES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cached(folder: Path | None, key: str, measure: Callable[[], Measurement]) -> Measurement:
    """Reads a measurement, or makes and keeps it.

    Args:
        folder: Folder of entries; None keeps nothing.
        key: From `content_key`.
        measure: Makes the measurement.

    Returns:
        The measurement. A damaged entry is made again; a folder that cannot be written is no error:
        nothing is kept then.
    """
    if folder is None:
        return measure()
    file = folder / f"{key}.json"
    found = _read(file)
    if found is not None:
        return found
    made = measure()
    _write(file, to_json(made))
    return made


def is_cached(folder: Path, key: str) -> bool:
    """Tells whether `cached` would find a measurement and make none."""
    return _read(folder / f"{key}.json") is not None


def _read(file: Path) -> Measurement | None:
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))
        if entry["sha256"] != _digest(entry["measurement"]):
            return None
        return from_json(entry["measurement"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _write(file: Path, measurement: dict[str, Any]) -> None:
    text = json.dumps({"sha256": _digest(measurement), "measurement": measurement}, indent=1)
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=file.parent, prefix=".", suffix=".tmp", delete=False, encoding="utf-8"
        ) as target:
            temporary = Path(target.name)
            target.write(text)
        # Another process that reads or writes the same entry sees the whole of one or the other.
        temporary.replace(file)
    except OSError:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _digest(measurement: Any) -> str:
    return hashlib.sha256(json.dumps(measurement, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
