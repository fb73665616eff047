"""Embeddings on disk: a folder of shards that grows shard by shard and is complete or not there.

A folder holds ``manifest.json``, ``vectors-00000.npy`` (float16 or float32 [documents, width]) and
``ids-00000.jsonl`` (one JSON string a document) and so on. The manifest is the commit mark: it is
written last, and the folder is renamed into place complete. Until then the shards are in
``.<name>.partial``, where ``progress.json`` counts those that are whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxrecipes.data.durable import file_entry, sync_folder, write_json
from jaxrecipes.data.sources import hash_file
from jaxrecipes.data.store import explain_miss, set_key
from jaxrecipes.errors import DataError

SCHEMA_VERSION = 1
MANIFEST, PROGRESS = "manifest.json", "progress.json"
KeyParts = Mapping[str, Mapping[str, str]]


class Embeddings:
    """Vectors of documents, in the documents' order; made by ``open_embeddings``.

    A length and slices make it what searches read: ``embeddings[10:20]`` is float32 [10, width].

    Attributes:
        folder: Where they are.
        manifest: The manifest.
        reused: True where ``embed_documents`` found them complete and did nothing.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], *, reused: bool = False) -> None:
        """Wraps a folder whose files were checked against ``manifest``."""
        self.folder = folder
        self.manifest = manifest
        self.reused = reused
        sizes = [int(shard["documents"]) for shard in manifest["shards"]]
        self._ends = np.cumsum(sizes, dtype=np.int64)

    @property
    def count(self) -> int:
        """Number of documents."""
        return int(self.manifest["documents"])

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return int(self.manifest["width"])

    @property
    def key(self) -> str:
        """Hash of everything that shaped the vectors."""
        return str(self.manifest["key"])

    def __len__(self) -> int:
        """Returns the number of documents."""
        return self.count

    def ids(self) -> list[str]:
        """Returns the documents' ids, in order."""
        found: list[str] = []
        for shard in self.manifest["shards"]:
            path = self.folder / shard["ids"]["name"]
            found.extend(json.loads(line) for line in path.read_bytes().splitlines())
        return found

    @cached_property
    def shards(self) -> list[np.ndarray]:
        """Memory-mapped arrays [documents, width] of the stored dtype, one a shard."""
        return [
            np.load(self.folder / shard["vectors"]["name"], mmap_mode="r")
            for shard in self.manifest["shards"]
        ]

    def vectors(self, start: int, stop: int) -> np.ndarray:
        """Returns the vectors of some documents.

        Args:
            start: First document.
            stop: One past the last one.

        Returns:
            float32 [stop - start, width]. As they are stored: with float16 of length 1 within 1e-3.

        Raises:
            IndexError: There are no such documents.
        """
        if not 0 <= start <= stop <= self.count:
            raise IndexError(f"documents {start} to {stop} of {self.count} in {self.folder}")
        rows = np.empty((stop - start, self.width), np.float32)
        first = 0
        for shard, end in zip(self.shards, self._ends.tolist(), strict=True):
            low, high = max(start, first), min(stop, end)
            if low < high:
                rows[low - start : high - start] = shard[low - first : high - first]
            first = end
        return rows

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Returns float32 [rows, width] of a slice without a step."""
        start, stop, step = rows.indices(self.count)
        if step != 1:
            raise IndexError(f"slices of embeddings have no step, got {step}")
        return self.vectors(start, max(start, stop))


def open_embeddings(folder: str | Path, *, verify: bool = False) -> Embeddings:
    """Opens embeddings.

    Args:
        folder: Where they are.
        verify: Hash every file; otherwise only sizes are compared.

    Raises:
        DataError: They are missing, incomplete or damaged; the message names the file.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    damage = _find_damage(folder, manifest, verify=verify)
    if damage is not None:
        raise DataError(f"{damage} Embed the documents again (the same command does it).")
    return Embeddings(folder, manifest)


def find_finished(folder: Path, parts: KeyParts, say: Callable[[str], None]) -> Embeddings | None:
    """Returns the embeddings that are there already with the same key, after hashing them.

    Args:
        folder: Where they are to be.
        parts: What shapes them.
        say: Called with the reason where what is there cannot be used.

    Raises:
        DataError: The folder holds something else, which is left as it is.
    """
    if folder.exists() and not (folder / MANIFEST).exists() and any(folder.iterdir()):
        raise DataError(
            f"{folder}: the folder is not empty and holds no embeddings; it is left as it is. Give "
            "another folder, or empty it."
        )
    for place in (folder, partial_folder(folder)):
        if not (place / MANIFEST).exists():
            continue
        try:
            manifest = _read_manifest(place)
            problem = _find_damage(place, manifest, verify=True)
        except DataError as error:
            manifest, problem = {}, str(error)
        if problem is None and manifest["key"] != set_key(parts):
            problem = "; ".join(explain_miss(manifest.get("key_parts", {}), parts))
        if problem is not None:
            if place == folder:
                say(f"{folder}: embedded again, because {problem}")
            continue
        if place != folder:  # a run was killed between its last write and the move
            _move_into_place(place, folder)
        return Embeddings(folder, manifest, reused=True)
    return None


def partial_folder(folder: Path) -> Path:
    """Returns where embeddings grow until they are complete."""
    return folder.with_name(f".{folder.name}.partial")


class GrowingEmbeddings:
    """Embeddings in the making.

    Attributes:
        folder: Where they grow.
        parts: What shapes them.
        shards: What is known of each finished shard: its files, ``documents``, ``tokens`` and the
            ``digest`` of its documents.
    """

    def __init__(self, folder: Path, parts: KeyParts, shards: list[dict[str, Any]]) -> None:
        """Starts with the given finished shards; use ``open``."""
        self.folder = folder
        self.parts = parts
        self.shards = shards

    @classmethod
    def open(cls, folder: Path, parts: KeyParts, say: Callable[[str], None]) -> GrowingEmbeddings:
        """Goes on with the shards that a killed run left, if their key is the same."""
        shards: list[dict[str, Any]] = []
        try:
            progress = json.loads((folder / PROGRESS).read_bytes())
            old, listed = progress["key_parts"], list(progress["shards"])
            if set_key(old) == set_key(parts):
                for shard in listed:
                    if _shard_damage(folder, shard, verify=True) is not None:
                        say(f"{folder}: shard {len(shards)} is damaged; it is made again")
                        break
                    shards.append(shard)
            elif listed:
                reasons = "; ".join(explain_miss(old, parts))
                say(f"{folder}: {len(listed)} finished shards are not used, because {reasons}")
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            say(f"{folder / PROGRESS}: not used, it is damaged ({error!r})")
            shards = []
        if shards:
            say(f"going on after {len(shards)} finished shards in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, parts, shards)

    def total(self, name: str) -> int:
        """Returns the sum of a count over the finished shards."""
        return sum(int(shard[name]) for shard in self.shards)

    def keep(self, shards: int) -> None:
        """Forgets the finished shards after the first few."""
        self.shards = self.shards[:shards]
        self._write_progress()

    def commit(self, ids: Sequence[str], vectors: np.ndarray, *, tokens: int, digest: str) -> None:
        """Writes a shard, then the progress file that counts it.

        Args:
            ids: Ids of its documents.
            vectors: [documents, width], of the dtype that is stored.
            tokens: Tokens that were embedded.
            digest: Hash of its documents.
        """
        number = len(self.shards)
        path = self.folder / f"vectors-{number:05d}.npy"
        with path.open("wb") as file:
            np.save(file, vectors, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        listing = self.folder / f"ids-{number:05d}.jsonl"
        with listing.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(name) + "\n" for name in ids)
            file.flush()
            os.fsync(file.fileno())
        self.shards.append(
            {
                "vectors": file_entry(path),
                "ids": file_entry(listing),
                "documents": len(ids),
                "tokens": tokens,
                "digest": digest,
            }
        )
        self._write_progress()

    def finish(self, target: Path, *, width: int, dtype: str) -> Embeddings:
        """Writes the manifest and moves the folder into place."""
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "key": set_key(self.parts),
            "key_parts": {name: dict(part) for name, part in self.parts.items()},
            "documents": self.total("documents"),
            "tokens": self.total("tokens"),
            "width": width,
            "dtype": dtype,
            "shards": self.shards,
        }
        write_json(self.folder / MANIFEST, manifest)
        _move_into_place(self.folder, target)
        return Embeddings(target, manifest)

    def _write_progress(self) -> None:
        parts = {name: dict(part) for name, part in self.parts.items()}
        write_json(self.folder / PROGRESS, {"key_parts": parts, "shards": self.shards})


def _move_into_place(partial: Path, target: Path) -> None:
    (partial / PROGRESS).unlink(missing_ok=True)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{folder}: no embeddings (there is no {MANIFEST}); expected a folder that "
            "embed_documents wrote. Embedding may not have ended: run it again."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except ValueError as error:
        raise DataError(f"{path}: this is not JSON ({error}). Embed again.") from None
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema version {version!r}; this version of jaxrecipes reads "
            f"{SCHEMA_VERSION}. Embed again."
        )
    return manifest


def _find_damage(folder: Path, manifest: Mapping[str, Any], *, verify: bool) -> str | None:
    try:
        shards = list(manifest["shards"])
        if sum(int(shard["documents"]) for shard in shards) != manifest["documents"]:
            return f"{folder / MANIFEST}: the documents of the shards do not add up."
        for shard in shards:
            problem = _shard_damage(folder, shard, verify=verify)
            if problem is not None:
                return problem
    except (KeyError, TypeError, ValueError) as error:
        return f"{folder / MANIFEST}: an entry is missing or wrong ({error!r})."
    return None


def _shard_damage(folder: Path, shard: Mapping[str, Any], *, verify: bool) -> str | None:
    for part in ("vectors", "ids"):
        entry = shard[part]
        path = folder / str(entry["name"])
        if not path.is_file():
            return f"{path}: the file is missing; the manifest lists it."
        found = path.stat().st_size
        if found != entry["bytes"]:
            state = "truncated" if found < entry["bytes"] else "too long"
            return f"{path}: the file is {state}: {found} bytes, expected {entry['bytes']}."
        if verify and hash_file(path) != entry["sha256"]:
            return f"{path}: the file is corrupt: its SHA-256 is not the manifest's."
    return None
