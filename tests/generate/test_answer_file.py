"""Answers on disk: whole lines or none, and never the answer to something else."""

from __future__ import annotations

import json

import pytest

from jaxrecipes.errors import DataError
from jaxrecipes.generate.answer_file import AnswerFile
from jaxrecipes.generate.teacher import Message, Reply, Request

ASKED = [
    Request("a", prompt="one"),
    Request("b", messages=(Message("user", "two"),), seed=4),
]
REPLIES = [Reply("a", "un\ud800\u2028\x00", "stop", new_tokens=3), Reply("b", "deux", "length")]


def test_a_file_cut_anywhere_goes_on_and_ends_the_same(tmp_path):
    path = tmp_path / "folder" / "answers.jsonl"
    for request, reply in zip(ASKED, REPLIES, strict=True):
        AnswerFile(path, {"weights": "x"}).append(request, reply)
    whole = path.read_bytes()
    rows = [json.loads(line) for line in whole.decode().splitlines()]
    assert [(row["id"], row["text"], row["finish"]) for row in rows] == [
        (reply.id, reply.text, reply.finish) for reply in REPLIES
    ]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        file = AnswerFile(path, {"weights": "x"})
        for request, reply in zip(ASKED, REPLIES, strict=True):
            if file.text(request) is None:
                file.append(request, reply)
        assert path.read_bytes() == whole
    assert [AnswerFile(path, {"weights": "x"}).text(one) for one in ASKED] == [
        reply.text for reply in REPLIES
    ]
    assert AnswerFile(path, {"weights": "y"}).text(ASKED[0]) is None


def test_another_file_is_not_taken_for_answers(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"key": "k", "text": "t"}\n{"prompt": "mine"}\n')
    with pytest.raises(DataError, match=r"answers.jsonl:2: .*no answer"):
        AnswerFile(path, {})
    assert "mine" in path.read_text()
