"""Pieces: made once, whole or not at all, whoever makes them."""

from __future__ import annotations

import numpy as np
import pytest

from jaxrecipes.durable import hash_values
from jaxrecipes.neighbors.pieces import (
    PIECE,
    Piece,
    load_array,
    make_piece,
    open_piece,
    save_arrays,
)


def build(target):
    save_arrays(target, numbers=np.arange(5), nothing=np.empty((0, 3), np.float32))
    return {"count": 5}


def never(target):
    raise AssertionError("it is there already")


def test_a_piece_is_made_once_and_read_as_it_was_written(tmp_path):
    made = make_piece(tmp_path / "p", "k", build)
    again = make_piece(tmp_path / "p", "k", never)
    assert (made.reused, again.reused) == (False, True)
    assert made.facts == again.facts == {"count": 5}
    assert made.files == again.files
    assert set(made.files) == {"numbers.npy", "nothing.npy"}
    np.testing.assert_array_equal(load_array(made.folder, "numbers"), np.arange(5))
    assert load_array(made.folder, "nothing").shape == (0, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_damage_and_another_key_are_noticed_and_said(tmp_path):
    lines = []
    make_piece(tmp_path / "p", "k", build, lines.append)
    file = tmp_path / "p" / "numbers.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert open_piece(tmp_path / "p", "k") == f"{file} is not the file that was written"
    assert not make_piece(tmp_path / "p", "k", build, lines.append).reused
    assert isinstance(open_piece(tmp_path / "p", "k"), Piece)
    assert not make_piece(tmp_path / "p", "other", build, lines.append).reused
    (tmp_path / "p" / PIECE).write_text("{")
    assert not make_piece(tmp_path / "p", "other", build, lines.append).reused
    assert [line.split(": made again, because ")[1].split(" (")[0] for line in lines] == [
        f"{file} is not the file that was written",
        "it was made of something else",
        "piece.json is damaged",
    ]


def test_a_failed_attempt_leaves_nothing_and_the_old_piece(tmp_path):
    make_piece(tmp_path / "p", "k", build)

    def fails(target):
        (target / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_piece(tmp_path / "p", "other", fails)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    assert make_piece(tmp_path / "p", "k", never).reused


def test_of_two_at_once_the_first_to_finish_counts(tmp_path):
    def slower(target):
        # Another worker finishes the same piece meanwhile.
        make_piece(tmp_path / "p", "k", build)
        save_arrays(target, numbers=np.arange(9))
        return {"count": 9}

    found = make_piece(tmp_path / "p", "k", slower)
    assert found.reused and found.facts == {"count": 5}
    np.testing.assert_array_equal(load_array(tmp_path / "p", "numbers"), np.arange(5))
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_keys_do_not_depend_on_the_order_of_inputs():
    assert hash_values({"a": 1, "b": 2}) == hash_values({"b": 2, "a": 1})
    assert hash_values({"a": 1}) != hash_values({"a": 2})
