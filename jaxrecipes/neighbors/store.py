"""Neighbour lists: what a search found, in memory and on disk.

A folder holds ``ids.npy``, ``similarities.npy`` and ``neighbors.json``, the manifest with the hash
of both. It is written beside its place and renamed into it complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxrecipes.data.durable import write_json
from jaxrecipes.data.sources import hash_file
from jaxrecipes.errors import DataError, JaxrecipesError

MANIFEST = "neighbors.json"
_SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The most similar documents of every document, itself left out.

    Attributes:
        ids: [documents, k] int64, by similarity (largest first), then by id; -1 where there are
            fewer than k others.
        similarities: [documents, k] float32, cosines; -inf where the id is -1.
        index: What searched: ``exact`` or ``scann``.
        recall: Share of the exact neighbours that were found, on a sample; 1 for ``exact``.
        recall_sample: Documents of that sample; 0 for ``exact``, which it would compare with
            itself.
        seconds: Time of the search; ``build_seconds`` of it for building the index.
        build_seconds: Time of building the index.
        options: Parameters of the index.
    """

    ids: np.ndarray
    similarities: np.ndarray
    index: str
    recall: float
    recall_sample: int
    seconds: float
    build_seconds: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Returns the number of documents."""
        return len(self.ids)


def save_neighbors(folder: str | Path, neighbors: Neighbors) -> None:
    """Writes neighbour lists; lists that are there already are replaced in one step.

    Raises:
        JaxrecipesError: The folder cannot be written.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files = {}
        for name in ("ids", "similarities"):
            path = partial / f"{name}.npy"
            with path.open("wb") as file:
                np.save(file, getattr(neighbors, name), allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            files[path.name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        manifest = {
            "schema_version": _SCHEMA_VERSION,
            "documents": len(neighbors.ids),
            "k": neighbors.ids.shape[1],
            "index": neighbors.index,
            "recall": neighbors.recall,
            "recall_sample": neighbors.recall_sample,
            "seconds": neighbors.seconds,
            "build_seconds": neighbors.build_seconds,
            "options": dict(neighbors.options),
            "files": files,
        }
        write_json(partial / MANIFEST, manifest)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    except OSError as error:
        raise JaxrecipesError(
            f"cannot write the neighbours to {folder}: {error.strerror or error}"
        ) from error


def load_neighbors(folder: str | Path, *, in_memory: bool = True) -> Neighbors:
    """Reads what ``save_neighbors`` wrote, and checks it.

    Args:
        folder: Where it is.
        in_memory: Read the arrays; otherwise they are mapped from the files, read-only.

    Raises:
        DataError: There are none, they are damaged, or of another version of jaxrecipes.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        version, shape = manifest["schema_version"], (manifest["documents"], manifest["k"])
        files = manifest["files"]
        facts = {
            name: manifest[name]
            for name in ("index", "recall", "recall_sample", "seconds", "build_seconds", "options")
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: no neighbours ({error!r}); expected a folder that a search wrote, with "
            f"{MANIFEST}. Search again."
        ) from None
    if version != _SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema version {version!r}; this version of jaxrecipes reads "
            f"{_SCHEMA_VERSION}. Search again."
        )
    arrays = {}
    for name, dtype in (("ids", np.int64), ("similarities", np.float32)):
        file = folder / f"{name}.npy"
        if not file.is_file() or hash_file(file) != files.get(file.name, {}).get("sha256"):
            raise DataError(f"{file}: missing or damaged; {MANIFEST} lists it. Search again.")
        array = np.load(file, mmap_mode=None if in_memory else "r", allow_pickle=False)
        if array.shape != shape or array.dtype != dtype:
            raise DataError(
                f"{file}: {array.dtype} {list(array.shape)}, expected {np.dtype(dtype)} "
                f"{list(shape)}. Search again."
            )
        arrays[name] = array
    return Neighbors(**arrays, **facts)
