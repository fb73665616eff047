"""Where texts end, against cutting after each single token."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jaxrecipes.generate.stop import first_stop, tokens_to_stop

PIECES = ["a", "b", "ab", "ba", "c", "abc"]  # a vocabulary in which stop texts cross tokens


def decode(token_ids):
    return "".join(PIECES[token] for token in token_ids)


@given(
    token_ids=st.lists(st.integers(0, len(PIECES) - 1), max_size=12),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    chunks=st.lists(st.integers(1, 5), min_size=12, max_size=12),
)
def test_the_end_is_the_first_token_that_completes_a_stop_text(token_ids, stop, chunks):
    expected = next(
        (
            count
            for count in range(1, len(token_ids) + 1)
            if any(one in decode(token_ids[:count]) for one in stop)
        ),
        None,
    )
    found, checked = None, 0  # as the engine does: some more tokens at a time
    for chunk in chunks:
        known = token_ids[: checked + chunk]
        found = tokens_to_stop(known, checked, stop, decode)
        if found is not None:
            break
        checked = len(known)
    assert found == expected
    if found is not None:
        text = decode(token_ids[:found])
        cut = text[: first_stop(text, stop)]
        assert not any(one in cut for one in stop)
