"""Embeddings on disk: slices across shards, and damage."""

import json

import numpy as np
import pytest

from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.embeddings import (
    finish_growing,
    open_embeddings,
    open_growing,
    partial_folder,
    shard_entry,
    shard_folder,
    write_shard,
)
from jaxrecipes.neighbors.pieces import make_piece

VECTORS = np.random.default_rng(0).normal(size=(11, 4)).astype(np.float32)
IDS = [f"döc {number}\n\u2028" for number in range(11)]


@pytest.fixture
def folder(tmp_path):
    """Eleven vectors in shards of four."""
    partial, parts, entries = partial_folder(tmp_path / "e"), {"a": {"b": "c"}}, []
    open_growing(partial, parts, print)
    for number, start in enumerate(range(0, 11, 4)):
        part = slice(start, start + 4)

        def build(target, part=part):
            write_shard(target, IDS[part], VECTORS[part])
            return {"documents": len(IDS[part]), "tokens": 3, "digest": "x"}

        entries.append(shard_entry(make_piece(shard_folder(partial, number), "k", build)))
    finish_growing(partial, tmp_path / "e", parts, entries, width=4, dtype="float32")
    return tmp_path / "e"


def test_every_slice_is_the_slice_of_the_whole(folder):
    found = open_embeddings(folder, verify=True)
    assert found.ids() == IDS
    assert [len(shard) for shard in found.shards] == [4, 4, 3]
    for start in range(12):
        for stop in range(start, 12):
            np.testing.assert_array_equal(found.vectors(start, stop), VECTORS[start:stop])
            np.testing.assert_array_equal(found[start:stop], VECTORS[start:stop])
    np.testing.assert_array_equal(found[:], VECTORS)
    np.testing.assert_array_equal(found[-3:], VECTORS[-3:])
    assert found[5:2].shape == (0, 4)
    rows = np.array([9, 0, 4, 3, 4, 10])
    np.testing.assert_array_equal(found.take_rows(rows), VECTORS[rows])
    with pytest.raises(IndexError, match="of 11"):
        found.vectors(0, 12)
    with pytest.raises(IndexError, match="step"):
        found[::2]


def test_shards_are_mapped_not_read(folder):
    assert all(isinstance(shard, np.memmap) for shard in open_embeddings(folder).shards)


def test_damage_is_named(folder):
    path = folder / "00001/vectors.npy"
    good = path.read_bytes()
    path.write_bytes(good[:-4])
    with pytest.raises(DataError, match="00001/vectors.npy: the file is truncated"):
        open_embeddings(folder)
    path.write_bytes(good[:-4] + b"abcd")
    open_embeddings(folder)  # the size is right
    with pytest.raises(DataError, match="00001/vectors.npy: the file is corrupt"):
        open_embeddings(folder, verify=True)
    path.unlink()
    with pytest.raises(DataError, match="00001/vectors.npy: the file is missing"):
        open_embeddings(folder)


def test_a_wrong_manifest_is_named(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "documents": 12}))
    with pytest.raises(DataError, match="do not add up"):
        open_embeddings(folder)
    path.write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(DataError, match="schema version 99"):
        open_embeddings(folder)
    path.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        open_embeddings(folder)
