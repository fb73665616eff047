"""Neighbour lists: self left out, shards merged, recall measured, bad rows refused before ScaNN."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.errors import ConfigError, DataError
from jaxrecipes.neighbors import exact, scann_index, search
from jaxrecipes.neighbors.search import build_index, choose_index, find_neighbors, search_queries
from tests.neighbors.vectors import brute_force, exact_unit_vectors, unit_vectors

needs_scann = pytest.mark.skipif(bool(scann_index.missing_scann()), reason="ScaNN is not installed")


@settings(deadline=None, max_examples=20)
@given(
    count=st.integers(1, 60),
    k=st.sampled_from([1, 4, 70]),
    copies=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_lists_equal_brute_force_without_self(count: int, k: int, copies: bool, seed: int) -> None:
    vectors = exact_unit_vectors(count, seed)
    if copies:
        vectors[count // 2 :] = vectors[-1]
    found = find_neighbors(vectors, k)
    ids, values = brute_force(vectors, vectors, k, own=np.arange(count))
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_array_equal(found.similarities, values)
    assert (found.index, found.recall) == ("exact", 1.0)


def test_self_is_left_out_by_id_where_copies_stand_before_it() -> None:
    vectors = np.repeat(unit_vectors(1, 0), 30, axis=0)
    found = find_neighbors(vectors, 5)
    assert found.ids[29].tolist() == [0, 1, 2, 3, 4]
    assert found.ids[2].tolist() == [0, 1, 3, 4, 5]


def test_shards_give_the_lists_of_one_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "ROW_BLOCK", 256)
    monkeypatch.setattr(search, "QUERY_ROWS", 100)
    monkeypatch.setattr(exact.ExactIndex.__init__, "__kwdefaults__", _blocks(256))
    vectors = unit_vectors(1000, 1, width=48)
    vectors[500:520] = vectors[3]
    whole = find_neighbors(vectors, 12)
    lines: list[str] = []
    parts = find_neighbors(vectors, 12, shard_rows=200, log=lines.append)
    np.testing.assert_array_equal(parts.ids, whole.ids)
    np.testing.assert_array_equal(parts.similarities, whole.similarities)
    assert sum("index of rows" in line for line in lines) == 4


def _blocks(rows: int) -> dict[str, int]:
    return {"query_block": 64, "row_block": rows}


def test_reads_slices_only(tmp_path: Any) -> None:
    class Slices:
        def __len__(self) -> int:
            return 300

        def __getitem__(self, rows: slice) -> np.ndarray:
            assert isinstance(rows, slice)
            return mapped[rows]

    vectors = unit_vectors(300, 2).astype(np.float16)
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    found = find_neighbors(Slices(), 3)
    np.testing.assert_array_equal(found.ids, find_neighbors(vectors.astype(np.float32), 3).ids)


@pytest.mark.parametrize("index", ["exact", "scann"])
def test_refuses_bad_rows_before_any_index_is_built(
    index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "require_scann", lambda: None)
    monkeypatch.setattr(search, "build_over", lambda *_: pytest.fail("an index was built"))
    vectors = unit_vectors(50, 3)
    vectors[41, 2] = np.nan
    with pytest.raises(DataError, match="row 41 holds a NaN"):
        find_neighbors(vectors, 3, index=index)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 1, "index": "faiss"}, "expected auto, exact, scann"),
        ({"k": 1, "recall_floor": 1.5}, "recall_floor"),
        ({"k": 1, "recall_sample": 0}, "recall_sample"),
        ({"k": 1, "shard_rows": 0}, "shard_rows"),
        ({"k": 1, "scann": {"leafs": 3}}, "leafs unknown"),
    ],
)
def test_refuses_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_neighbors(unit_vectors(4, 0), **options)


def test_without_scann_auto_is_exact_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "missing_scann", lambda: "ScaNN is made for Linux only")
    lines: list[str] = []
    assert choose_index("auto", search.SCANN_FROM, lines.append) == "exact"
    assert "made for Linux only" in lines[0] and "pip install scann" in lines[0]


def test_auto_goes_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "missing_scann", lambda: "")
    assert choose_index("auto", search.SCANN_FROM - 1, print) == "exact"
    assert choose_index("auto", search.SCANN_FROM, print) == "scann"


def test_asking_for_a_missing_scann_says_how_to_install_it() -> None:
    program = (
        "import sys; sys.modules['scann'] = None\n"
        "import numpy as np\n"
        "from jaxrecipes.errors import ConfigError\n"
        "from jaxrecipes.neighbors.search import find_neighbors\n"
        "try: find_neighbors(np.eye(4, dtype=np.float32), 1, index='scann')\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "`pip install scann`" in done.stdout, done.stderr


@needs_scann
def test_scann_finds_what_exact_finds() -> None:
    vectors = unit_vectors(6000, 4, width=32, clusters=100)
    lines: list[str] = []
    found = find_neighbors(vectors, 10, index="scann", recall_sample=300, log=lines.append)
    whole = find_neighbors(vectors, 10, index="exact")
    true_recall = search.recall(found.similarities, whole.similarities)
    assert found.recall >= 0.95 and abs(found.recall - true_recall) < 0.02
    assert (found.ids != np.arange(6000)[:, None]).all()
    assert found.index == "scann" and found.options["leaves"] == 77
    assert any("recall@10 of ScaNN on 300 documents" in line for line in lines)
    # What both found has one similarity.
    same = found.ids == whole.ids
    np.testing.assert_array_equal(found.similarities[same], whole.similarities[same])


@needs_scann
def test_scann_shards_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "ROW_BLOCK", 1024)
    vectors = unit_vectors(11_000, 5, width=16, clusters=100)
    found = find_neighbors(vectors, 5, index="scann", shard_rows=6000, recall_sample=200)
    whole = find_neighbors(vectors, 5, index="exact")
    assert search.recall(found.similarities, whole.similarities) >= 0.95


@needs_scann
def test_a_recall_below_the_floor_stops_before_the_search() -> None:
    vectors = unit_vectors(6000, 6, width=64)
    lines: list[str] = []
    with pytest.raises(DataError, match="below the floor of 0.95. Raise leaves_to_search .it is 1"):
        find_neighbors(vectors, 10, index="scann", scann={"leaves_to_search": 1}, log=lines.append)
    assert not lines


@pytest.mark.parametrize("index", ["exact", pytest.param("scann", marks=needs_scann)])
def test_queries_from_elsewhere(index: Any) -> None:
    pool, asked = unit_vectors(400, 7), unit_vectors(30, 8)
    ids, values = search_queries(build_index(pool, 6, index=index), asked, 6)
    expected, expected_values = brute_force(asked, pool, 6)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(values, expected_values, atol=1e-6)


def test_queries_of_another_width_are_refused() -> None:
    index = build_index(unit_vectors(10, 0), 2)
    with pytest.raises(DataError, match="queries: row 0 has 8 numbers, expected 16"):
        search_queries(index, unit_vectors(3, 1, width=8), 2)
