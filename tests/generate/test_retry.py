"""How long a client waits before it asks again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.generate.retry import Retries, asked_wait, is_passing


@settings(deadline=None)
@given(failed=st.integers(1, 2000), asked=st.none() | st.floats(0, 1e4), seed=st.integers(0, 9))
def test_waits_grow_to_a_minute_and_are_never_shorter_than_asked(failed, asked, seed):
    wait = Retries(first_wait=0.5).wait(failed, asked, random.Random(seed))
    step = min(0.5 * 2 ** min(failed - 1, 20), 60.0)
    least = asked or 0.0
    assert least + step / 2 <= wait <= least + step


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 60.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
    ],
)
def test_what_a_server_asks_for_in_seconds_or_as_a_date(headers, seconds):
    assert asked_wait(headers, now=40.0) == seconds


def test_which_statuses_pass():
    assert [status for status in range(400, 600) if is_passing(status)] == [
        408,
        409,
        425,
        429,
        *range(500, 600),
    ]
