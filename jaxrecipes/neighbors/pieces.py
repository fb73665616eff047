"""Pieces of a stage: each is made once, by whichever process, and is there whole or not at all.

A piece is a folder with ``piece.json``, which holds the hash of what shaped it, what is to be known
of it, and the hash of every file. It is written beside its place and renamed into it, so a process
that is killed leaves nothing that counts, and two that make the same piece (a worker that was
thought dead, and the one in its place) do not disturb each other. Nothing else says what is done:
who asks for a piece that is there gets it as it is.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxrecipes.durable import find_damage, folder_entries, synchronise, write_json

PIECE = "piece.json"


@dataclass(frozen=True)
class Piece:
    """A finished piece.

    Attributes:
        folder: Where it is.
        facts: JSON values that its maker told of it.
        files: Its files by name, each with ``bytes`` and ``sha256``.
        reused: Whether it was there before.
    """

    folder: Path
    facts: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    reused: bool


def make_piece(
    folder: Path,
    key: str,
    build: Callable[[Path], Mapping[str, Any]],
    say: Callable[[str], None] | None = None,
) -> Piece:
    """Makes a piece unless a whole one with the same key is there.

    Args:
        folder: Where it belongs.
        key: Hash of everything that shapes it.
        build: Writes its files into the empty folder that it is given; returns its facts.
        say: Called with the reason where something is there that cannot be used.

    Returns:
        The piece. Its files were hashed, also where it was there before.

    Raises:
        OSError: The folder cannot be written.
    """
    found = open_piece(folder, key)
    if isinstance(found, Piece):
        return found
    if found and say is not None:
        say(f"{folder}: made again, because {found}")
    scratch = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    scratch.mkdir(parents=True)
    try:
        facts = dict(build(scratch))
        files = folder_entries(scratch)
        for name in files:
            synchronise(scratch / name)
        write_json(scratch / PIECE, {"key": key, "facts": facts, "files": files})
        quicker = open_piece(folder, key)
        if isinstance(quicker, Piece):
            return quicker
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
        synchronise(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Piece(folder, facts, files, reused=False)


def piece_facts(
    folder: Path, key: str, build: Callable[[Path], Mapping[str, Any]]
) -> dict[str, Any]:
    """Makes a piece as ``make_piece`` does, and returns its facts."""
    return dict(make_piece(folder, key, build).facts)


def open_piece(folder: Path, key: str) -> Piece | str:
    """Returns the piece that is there, or says why there is none; empty if nothing is there."""
    try:
        entry = json.loads((folder / PIECE).read_bytes())
        found, facts, files = entry["key"], entry["facts"], entry["files"]
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{PIECE} is damaged ({error!r})"
    if found != key:
        return "it was made of something else"
    damage = find_damage(folder, files)
    if damage is not None:
        return damage
    return Piece(folder, facts, files, reused=True)


def save_arrays(folder: Path, **arrays: np.ndarray) -> None:
    """Writes arrays into a folder, each as ``<name>.npy``."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def load_array(folder: Path, name: str) -> np.ndarray:
    """Maps an array that ``save_arrays`` wrote, read-only."""
    path = folder / f"{name}.npy"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an empty array cannot be mapped
        return np.load(path, allow_pickle=False)
