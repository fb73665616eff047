"""Embeddings on disk: a folder of shards that grows shard by shard and is complete or not there.

A folder holds ``manifest.json`` and for each shard a piece (``pieces``): ``00000/vectors.npy``
(float16 or float32 [documents, width]), ``00000/ids.jsonl`` (one JSON string a document) and so on.
The manifest is the commit mark: it is written last, and the folder is renamed into place complete.
Until then the shards are in ``.<name>.partial``; any process can add one, in any order.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxrecipes.data.store import explain_miss, set_key
from jaxrecipes.durable import hash_file, read_manifest, replace_folder, write_json
from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.pieces import PIECE, Piece

SCHEMA_VERSION = 2
MANIFEST, PARTS = "manifest.json", "key_parts.json"
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
        self._opened: dict[int, np.ndarray] = {}

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
        return [self._shard(number) for number in range(len(self._ends))]

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
        number = int(np.searchsorted(self._ends, start, side="right"))
        low = start
        while low < stop:
            end = int(self._ends[number])
            first = end - int(self.manifest["shards"][number]["documents"])
            high = min(stop, end)
            rows[low - start : high - start] = self._shard(number)[low - first : high - first]
            low, number = high, number + 1
        return rows

    def take_rows(self, rows: np.ndarray) -> np.ndarray:
        """Returns the vectors of single documents, float32 [m, width]; only they are read.

        Args:
            rows: [m] int64, in any order, each 0 to count - 1.
        """
        found = np.empty((len(rows), self.width), np.float32)
        numbers = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(rows, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
            if len(places):
                number = int(numbers[places[0]])
                shard = self._shard(number)
                found[places] = shard[rows[places] - (self._ends[number] - len(shard))]
        return found

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Returns float32 [rows, width] of a slice without a step."""
        start, stop, step = rows.indices(self.count)
        if step != 1:
            raise IndexError(f"slices of embeddings have no step, got {step}")
        return self.vectors(start, max(start, stop))

    def _shard(self, number: int) -> np.ndarray:
        if number not in self._opened:
            path = self.folder / self.manifest["shards"][number]["vectors"]["name"]
            self._opened[number] = np.load(path, mmap_mode="r")
        return self._opened[number]


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


def map_embeddings(folder: str | Path) -> Embeddings:
    """Opens embeddings without a look at their files, which another process has checked.

    Raises:
        DataError: There is no manifest.
    """
    return Embeddings(Path(folder), _read_manifest(Path(folder)))


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


def open_growing(folder: Path, parts: KeyParts, say: Callable[[str], None]) -> None:
    """Prepares the folder that shards grow in; those of a killed run stay if their key is the same.

    Args:
        folder: From ``partial_folder``.
        parts: What shapes the vectors.
        say: Called with what is found.
    """
    finished = sum(1 for _ in folder.glob(f"[0-9]*/{PIECE}"))
    try:
        old = json.loads((folder / PARTS).read_bytes())
        reasons = [] if set_key(old) == set_key(parts) else explain_miss(old, parts)
    except FileNotFoundError:
        reasons = ["nothing says what they are made of"]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reasons = [f"{PARTS} is damaged ({error!r})"]
    if reasons:
        if finished:
            say(f"{folder}: {finished} finished shards are not used, because {'; '.join(reasons)}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(folder / PARTS, {name: dict(part) for name, part in parts.items()})
    elif finished:
        say(f"going on after {finished} finished shards in {folder}")


def shard_folder(partial: Path, number: int) -> Path:
    """Returns where a shard grows."""
    return partial / f"{number:05d}"


def write_shard(folder: Path, ids: Sequence[str], vectors: np.ndarray) -> None:
    """Writes the files of a shard.

    Args:
        folder: The folder of a piece in the making.
        ids: Ids of its documents.
        vectors: [documents, width], of the dtype that is stored.
    """
    np.save(folder / "vectors.npy", vectors, allow_pickle=False)
    with (folder / "ids.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(name) + "\n" for name in ids)


def shard_entry(piece: Piece) -> dict[str, Any]:
    """Returns what the manifest says of a shard: its files, and the facts of its piece."""
    files = {
        part: {"name": f"{piece.folder.name}/{name}", **piece.files[name]}
        for part, name in (("vectors", "vectors.npy"), ("ids", "ids.jsonl"))
    }
    return {**files, **piece.facts}


def finish_growing(
    partial: Path,
    target: Path,
    parts: KeyParts,
    shards: Sequence[Mapping[str, Any]],
    *,
    width: int,
    dtype: str,
) -> Embeddings:
    """Writes the manifest and moves the folder into place.

    Args:
        partial: From ``partial_folder``.
        target: Where the embeddings are to be.
        parts: What shapes them.
        shards: From ``shard_entry``, in order; each tells its ``documents`` and ``tokens``.
        width: Numbers in a vector.
        dtype: Of the stored vectors.
    """
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "key": set_key(parts),
        "key_parts": {name: dict(part) for name, part in parts.items()},
        "documents": sum(int(shard["documents"]) for shard in shards),
        "tokens": sum(int(shard["tokens"]) for shard in shards),
        "width": width,
        "dtype": dtype,
        "shards": list(shards),
    }
    # What an earlier run with more documents, or a killed worker, left.
    wanted = {shard_folder(partial, number).name for number in range(len(shards))}
    for path in partial.iterdir():
        if path.is_dir() and path.name not in wanted:
            shutil.rmtree(path, ignore_errors=True)
    write_json(partial / MANIFEST, manifest)
    _move_into_place(partial, target)
    return Embeddings(target, manifest)


def _move_into_place(partial: Path, target: Path) -> None:
    (partial / PARTS).unlink(missing_ok=True)
    replace_folder(partial, target)


def _read_manifest(folder: Path) -> dict[str, Any]:
    return read_manifest(
        folder / MANIFEST,
        version=SCHEMA_VERSION,
        missing=f"no embeddings (there is no {MANIFEST}); expected a folder that embed_documents "
        "wrote. Embedding may not have ended: run it again.",
        again="Embed again.",
    )


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
