"""Every reply is an answer or a reject, and rejects are kept with their reason."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.generate.parse import RejectedAnswerError, parse_replies, write_rejects
from jaxrecipes.generate.teacher import Reply

replies = st.dictionaries(
    st.text(max_size=4),
    st.builds(
        lambda text, finish: Reply("", text, finish, error="why" if finish == "failed" else ""),
        st.text(max_size=6),
        st.sampled_from(["stop", "length", "failed"]),
    ),
    max_size=8,
)


def number(id_: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise RejectedAnswerError("no number") from None


@settings(deadline=None)
@given(replies=replies, keep_cut=st.booleans())
def test_each_reply_is_one_or_the_other(replies: dict[str, Reply], keep_cut: bool):
    parsed = parse_replies(replies, number, keep_cut=keep_cut)
    rejected = [reject.id for reject in parsed.rejects]
    assert sorted([*parsed.answers, *rejected]) == sorted(replies)
    assert sum(parsed.reasons.values()) == len(rejected)
    for id_, answer in parsed.answers.items():
        assert int(replies[id_].text) == answer
        assert replies[id_].finish == "stop" or (keep_cut and replies[id_].finish == "length")


def test_rejects_are_written_with_reason_and_text(tmp_path: Path):
    given_replies = {
        "a": Reply("a", "1", "stop"),
        "b": Reply("b", "\ud800 two\u2028", "stop"),
        "c": Reply("c", "3", "length"),
        "d": Reply("d", "", "failed", "the server is gone"),
    }
    parsed = parse_replies(given_replies, number)
    write_rejects(tmp_path / "rejects.jsonl", parsed.rejects)
    lines = (tmp_path / "rejects.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == [
        {"id": "b", "reason": "no number", "text": "\ud800 two\u2028"},
        {"id": "c", "reason": "cut off", "text": "3"},
        {"id": "d", "reason": "no answer", "text": "the server is gone"},
    ]
    assert parsed.reasons == {"no number": 1, "cut off": 1, "no answer": 1}
