"""The condition under which masking by row index is masking by segment and position."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.data.rows import Row, row_arrays
from jaxrecipes.models.attention import Places, visible
from jaxrecipes.models.row_order import in_row_order, poison
from tests.models.test_attention import packed


def visible_by_index(segment_ids, window):
    """What a kernel shows: same segment, not a later row, inside the window of rows."""
    rows = np.arange(segment_ids.shape[1])
    distance = rows[:, None] - rows[None, :]
    mask = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (distance >= 0)
    return mask if window is None else mask & (distance < window)


def differs(segment_ids, positions):
    """Whether any real token sees other keys by row index than by position, in any window."""
    real = (segment_ids != 0)[:, :, None]
    return any(
        (
            real
            & (
                np.asarray(visible(Places.of_rows(segment_ids, positions), window))
                != visible_by_index(segment_ids, window)
            )
        ).any()
        for window in (None, *range(1, 8))
    )


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    # Which of the two arrays, where, and what it becomes there.
    changes=st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 4)), max_size=2
    ),
)
def test_a_row_that_passes_is_masked_alike(seed, changes):
    row = packed(np.random.default_rng(seed), 1, 7)
    for array, place, value in changes:
        row[array][0, place] = value
    if np.asarray(in_row_order(*row))[0]:
        assert not differs(*row)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), first=st.integers(0, 9))
def test_packed_rows_pass_wherever_their_positions_start(seed, first):
    segment_ids, positions = packed(np.random.default_rng(seed), 2, 11)
    assert np.asarray(in_row_order(segment_ids, positions + first)).all()


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    padding=st.integers(0, 3),
    attend=st.sampled_from(["document", "context"]),
)
def test_prepared_rows_pass(sizes, padding, attend):
    segments = np.array([(index, 0, size) for index, size in enumerate(sizes)])
    row = Row(np.arange(sum(sizes), dtype=np.uint16), segments)
    arrays = row_arrays(row, length=sum(sizes) + padding, attend=attend)
    assert np.asarray(in_row_order(arrays["segment_ids"][None], arrays["positions"][None])).all()


def test_rows_that_a_kernel_would_mask_wrongly_do_not_pass():
    wrong = {
        "a segment that returns": ([1, 2, 1], [0, 0, 1]),
        "positions that jump": ([1, 1, 1], [0, 1, 3]),
        "positions that fall": ([1, 1, 1], [2, 1, 0]),
        "padding inside a segment": ([1, 0, 1], [0, 0, 1]),
    }
    for name, row in wrong.items():
        segment_ids, positions = np.array(row, np.int32)[:, None]
        assert differs(segment_ids, positions), name
        assert not np.asarray(in_row_order(segment_ids, positions))[0], name


def test_poison_keeps_the_factor_of_good_rows_only():
    factor = np.asarray(poison(0.25, np.array([True, False])))
    assert factor[0] == 0.25
    assert np.isnan(factor[1])
