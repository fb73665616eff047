from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrecipes.errors import DataError
from jaxrecipes.evaluate.rows import pack_scored, rows_from_prepared


@given(
    st.lists(
        st.integers(2, 12).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size - 1))),
        min_size=1,
        max_size=20,
    )
)
def test_every_sequence_is_packed_once_and_scored_where_asked(shapes):
    sequences = [
        (f"d{i}", [100 * i + place for place in range(size)], first)
        for i, (size, first) in enumerate(shapes)
    ]
    rows = pack_scored(sequences, length=13)
    row, position = rows.scored()
    targets = rows.token_ids[row, position + 1]
    assert sorted(targets.tolist()) == sorted(
        token for _, tokens, first in sequences for token in tokens[first:]
    )
    for number, (_, tokens, _) in enumerate(sequences):
        here = rows.document_index == number
        assert rows.token_ids[here].tolist() == tokens
        assert rows.positions[here].tolist() == list(range(len(tokens)))
        assert len(set(zip(np.nonzero(here)[0], rows.segment_ids[here], strict=True))) == 1


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (("d", [1] * 9, 1), "9 tokens, a row holds 8"),
        (("d", [1, 2], 0), "token 0 of 2"),
        (("d", [1, 2], 2), "token 2 of 2"),
    ],
)
def test_impossible_sequences_are_refused(sequence, message):
    with pytest.raises(DataError, match=message):
        pack_scored([sequence], length=8)


def prepared_row(**changes):
    row = {
        "token_ids": np.array([5, 6, 7, 8, 0]),
        "segment_ids": np.array([1, 1, 2, 2, 0]),
        "positions": np.array([0, 1, 0, 1, 0]),
        "loss_mask": np.array([False, True, False, True, False]),
        "document_index": np.array([4, 4, 9, 9, -1]),
    }
    return {**row, **changes}


def test_prepared_rows_keep_the_names_of_their_documents():
    names = [f"n{i}" for i in range(10)]
    split = prepared_row(document_index=np.array([2, 2, 4, 4, -1]))
    rows = rows_from_prepared([prepared_row(), split], document_ids=names)
    assert rows.document_ids == ("n2", "n4", "n9")
    assert rows.document_index.tolist() == [[1, 1, 2, 2, -1], [0, 0, 1, 1, -1]]
    assert rows_from_prepared([prepared_row()]).document_ids == ("4", "9")
    assert rows_from_prepared([prepared_row(), split], max_rows=1).token_ids.shape == (1, 5)
    full = prepared_row(document_index=np.array([4, 4, 9, 9, 9]))
    assert rows_from_prepared([full]).document_index.tolist() == [[0, 0, 1, 1, 1]]


def test_wrong_prepared_rows_are_refused():
    with pytest.raises(DataError, match="no rows"):
        rows_from_prepared([])
    with pytest.raises(DataError, match="refers to document 9"):
        rows_from_prepared([prepared_row()], document_ids=["only"])
    broken = prepared_row()
    del broken["positions"]
    with pytest.raises(DataError, match="row 1 .* no positions"):
        rows_from_prepared([prepared_row(), broken])


def test_the_fingerprint_sees_every_field():
    base = prepared_row()
    first = rows_from_prepared([base]).fingerprint()
    assert first == rows_from_prepared([prepared_row()]).fingerprint()
    for name in base:
        changed = np.array(base[name])
        changed[1] = changed[1] + 1 if changed.dtype != bool else not changed[1]
        other = rows_from_prepared([prepared_row(**{name: changed})], document_ids=None)
        assert other.fingerprint() != first, name
    assert rows_from_prepared([base], document_ids=list("abcdefghij")).fingerprint() != first
