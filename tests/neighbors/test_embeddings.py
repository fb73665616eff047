"""Embeddings on disk: slices across shards, and damage."""

import json

import numpy as np
import pytest

from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.embeddings import GrowingEmbeddings, open_embeddings

VECTORS = np.random.default_rng(0).normal(size=(11, 4)).astype(np.float32)
IDS = [f"döc {number}\n\u2028" for number in range(11)]


@pytest.fixture
def folder(tmp_path):
    """Eleven vectors in shards of four."""
    work = GrowingEmbeddings.open(tmp_path / ".e.partial", {"a": {"b": "c"}}, print)
    for start in range(0, 11, 4):
        part = slice(start, start + 4)
        work.commit(IDS[part], VECTORS[part], tokens=3, digest="x")
    work.finish(tmp_path / "e", width=4, dtype="float32")
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
    with pytest.raises(IndexError, match="of 11"):
        found.vectors(0, 12)
    with pytest.raises(IndexError, match="step"):
        found[::2]


def test_shards_are_mapped_not_read(folder):
    assert all(isinstance(shard, np.memmap) for shard in open_embeddings(folder).shards)


def test_damage_is_named(folder):
    path = folder / "vectors-00001.npy"
    good = path.read_bytes()
    path.write_bytes(good[:-4])
    with pytest.raises(DataError, match="vectors-00001.npy: the file is truncated"):
        open_embeddings(folder)
    path.write_bytes(good[:-4] + b"abcd")
    open_embeddings(folder)  # the size is right
    with pytest.raises(DataError, match="vectors-00001.npy: the file is corrupt"):
        open_embeddings(folder, verify=True)
    path.unlink()
    with pytest.raises(DataError, match="vectors-00001.npy: the file is missing"):
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
