"""Neighbour lists on disk: the same again, replaced whole, damage named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.search import find_neighbors
from jaxrecipes.neighbors.store import MANIFEST, load_neighbors, save_neighbors
from tests.neighbors.vectors import unit_vectors


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_is_saved_is_loaded(tmp_path: Path, in_memory: bool) -> None:
    found = find_neighbors(unit_vectors(20, 0), 30)
    save_neighbors(tmp_path / "lists", find_neighbors(unit_vectors(9, 1), 2))
    save_neighbors(tmp_path / "lists", found)
    loaded = load_neighbors(tmp_path / "lists", in_memory=in_memory)
    np.testing.assert_array_equal(loaded.ids, found.ids)
    np.testing.assert_array_equal(loaded.similarities, found.similarities)
    for name in ("index", "recall", "recall_sample", "seconds", "build_seconds", "options"):
        assert getattr(loaded, name) == getattr(found, name)
    assert [path.name for path in tmp_path.iterdir()] == ["lists"]


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no neighbours"):
        load_neighbors(tmp_path)
    save_neighbors(tmp_path / "lists", find_neighbors(unit_vectors(20, 0), 3))
    manifest = tmp_path / "lists" / MANIFEST
    good = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**good, "schema_version": 99}))
    with pytest.raises(DataError, match="schema version 99"):
        load_neighbors(tmp_path / "lists")
    manifest.write_text(json.dumps({**good, "documents": 21}))
    with pytest.raises(DataError, match=r"ids.npy: int64 \[20, 3\], expected int64 \[21, 3\]"):
        load_neighbors(tmp_path / "lists")
    manifest.write_text(json.dumps(good))
    with (tmp_path / "lists" / "similarities.npy").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    with pytest.raises(DataError, match="similarities.npy: missing or damaged"):
        load_neighbors(tmp_path / "lists")
