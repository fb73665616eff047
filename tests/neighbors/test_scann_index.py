"""ScaNN: options from the size, its traps, and an index that survives a move."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxrecipes.errors import ConfigError, DataError
from jaxrecipes.neighbors.scann_index import (
    TREE_FROM,
    ScannIndex,
    ScannOptions,
    choose_options,
    make_options,
    missing_scann,
)
from tests.neighbors.vectors import brute_force, unit_vectors

needs_scann = pytest.mark.skipif(bool(missing_scann()), reason="ScaNN is not installed")


def test_options_come_from_the_size() -> None:
    chosen = choose_options(ScannOptions(), rows=1_000_000, count=11)
    assert (chosen.leaves, chosen.leaves_to_search, chosen.rescore) == (1000, 200, 110)
    chosen = choose_options(ScannOptions(leaves=7, leaves_to_search=3), rows=50, count=1)
    assert (chosen.leaves, chosen.leaves_to_search, chosen.training_rows) == (7, 3, 50)
    # ScaNN raises where there are more leaves than rows.
    assert choose_options(ScannOptions(leaves=99), rows=50, count=1).leaves == 50


@pytest.mark.parametrize(
    "wrong",
    [{"leaves": -1}, {"rescore": -5}, {"training_rows": 0}, {"soar_lambda": -1.0}, {"trees": 1}],
)
def test_refuses_wrong_options(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        make_options(wrong)


@needs_scann
def test_small_corpora_are_compared_with_every_row() -> None:
    rows = unit_vectors(200, 0)
    found = ScannIndex.build(rows, count=5).search(rows, 5)
    np.testing.assert_array_equal(found, brute_force(rows, rows, 5)[0])


@needs_scann
@pytest.mark.parametrize("rows", [1, 2, 17])
def test_too_few_rows_are_padded_with_minus_one(rows: int) -> None:
    vectors = unit_vectors(rows, 1)
    found = ScannIndex.build(vectors, count=30).search(vectors, 30)
    assert found.shape == (rows, 30)
    assert (np.sort(found[:, :rows], axis=1) == np.arange(rows)).all()
    assert (found[:, rows:] == -1).all()


@needs_scann
def test_too_few_candidates_are_not_reported_as_row_0() -> None:
    # One leaf of 80 cannot hold 300 candidates; ScaNN fills up with row 0 and NaN.
    vectors = unit_vectors(TREE_FROM, 2)
    options = ScannOptions(leaves=80, leaves_to_search=1, soar_lambda=None)
    found = ScannIndex.build(vectors, count=300, options=options).search(vectors[:50], 300)
    assert (found == -1).any()
    assert ((found == 0).sum(axis=1) <= 1).all()


@needs_scann
def test_widening_stops_at_the_first_that_is_good_enough() -> None:
    index = ScannIndex.build(unit_vectors(TREE_FROM, 3), count=5)
    seen: list[int] = []
    wide = index.widen(lambda one: bool(seen.append(one.options.leaves_to_search)) or len(seen) > 2)
    assert seen == sorted(set(seen)) and wide.options.leaves_to_search == seen[-1]
    assert len(seen) == 3
    assert index.widen(lambda _: False).options.leaves_to_search == index.options.leaves


@needs_scann
def test_a_saved_index_loads_after_its_folder_was_moved(tmp_path: Path) -> None:
    vectors = unit_vectors(TREE_FROM, 4, clusters=50)
    index = ScannIndex.build(vectors, count=5)
    index.save(tmp_path / "first" / "index")
    shutil.move(tmp_path / "first", tmp_path / "second")
    loaded = ScannIndex.load(tmp_path / "second" / "index")
    np.testing.assert_array_equal(loaded.search(vectors[:500], 5), index.search(vectors[:500], 5))
    np.testing.assert_array_equal(loaded.rows, vectors)
    assert loaded.options == index.options


@needs_scann
def test_a_damaged_or_strange_index_is_refused(tmp_path: Path) -> None:
    ScannIndex.build(unit_vectors(100, 5), count=5).save(tmp_path)
    pickled = tmp_path / "scann_docids.pkl"
    pickled.write_bytes(b"x")
    with pytest.raises(DataError, match=r"scann_docids.pkl is not of this index"):
        ScannIndex.load(tmp_path)
    pickled.unlink()
    with (tmp_path / "dataset.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"\1\2\3")
    with pytest.raises(DataError, match="dataset.npy is not the file that was written"):
        ScannIndex.load(tmp_path)
    with pytest.raises(DataError, match="no ScaNN index"):
        ScannIndex.load(tmp_path / "nowhere")


@needs_scann
def test_scanns_own_refusal_names_the_options() -> None:
    with pytest.raises(ConfigError, match="cannot build an index of 5000 rows"):
        ScannIndex.build(unit_vectors(TREE_FROM, 6), count=5, options=ScannOptions(training_rows=3))
