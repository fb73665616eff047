"""Asking once, keeping every reply, going on after a kill, and staying inside of a budget."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.errors import DataError, JaxrecipesError
from jaxrecipes.generate.ask import AskProgress, ask
from jaxrecipes.generate.budget import Budget, most_tokens
from jaxrecipes.generate.program_teacher import ProgramTeacher
from jaxrecipes.generate.reply_store import ReplyStore
from jaxrecipes.generate.teacher import Reply, Request


def asked(number: int, text: str | None = None) -> Request:
    return Request(f"r{number}", prompt=text or f"prompt {number}", max_new_tokens=4)


class Writer:
    """Repeats the prompt and remembers what it was asked; kills or fails where it is told."""

    def __init__(self, dies_at: int | None = None, fails: frozenset[str] = frozenset()):
        self.asked: list[str] = []
        self._dies_at, self._fails = dies_at, fails

    def __call__(self, request: Request) -> str | Reply:
        if len(self.asked) == self._dies_at:
            raise KeyboardInterrupt
        self.asked.append(str(request.prompt))
        if request.prompt in self._fails:
            return Reply(request.id, "", "failed", error="no luck")
        return Reply(request.id, f"<{request.prompt}>", "stop", prompt_tokens=3, new_tokens=2)


@settings(deadline=None, max_examples=20)
@given(
    prompts=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12),
    deaths=st.lists(st.integers(0, 4), max_size=4),
)
def test_killed_anywhere_and_asked_again_nothing_is_asked_for_twice(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str], deaths: list[int]
):
    path = tmp_path_factory.mktemp("store") / "replies.sqlite"
    requests = [asked(number, text) for number, text in enumerate(prompts)]
    history: list[str] = []
    for dies_at in [*deaths, None]:
        writer = Writer(dies_at)
        with ReplyStore(path) as store:
            try:
                replies = ask(ProgramTeacher(writer, {}), requests, store=store)
            except KeyboardInterrupt:
                replies = {}
        history += writer.asked
        if replies:
            break
    assert [(key, reply.text) for key, reply in replies.items()] == [
        (f"r{number}", f"<{text}>") for number, text in enumerate(prompts)
    ]
    # Each distinct prompt once, over all calls together.
    assert sorted(history) == sorted(set(prompts))


def test_failed_replies_are_returned_and_asked_for_again(tmp_path: Path):
    requests = [asked(number) for number in range(3)]
    seen: list[AskProgress] = []
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        failing = Writer(fails=frozenset({"prompt 1"}))
        first = ask(ProgramTeacher(failing, {}), requests, store=store, progress=seen.append)
        writer = Writer()
        second = ask(ProgramTeacher(writer, {}), requests, store=store)
    assert (first["r1"].finish, first["r1"].error) == ("failed", "no luck")
    assert writer.asked == ["prompt 1"]
    assert second["r1"].text == "<prompt 1>"
    assert seen[0] == AskProgress(total=3, found=0)
    assert seen[-1] == AskProgress(total=3, found=0, answered=2, failed=1, new_tokens=4)


def test_another_teacher_or_another_request_never_meets_an_old_reply(tmp_path: Path):
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        ask(ProgramTeacher(Writer(), {"weights": "a"}), [asked(1)], store=store)
        same, other, colder = Writer(), Writer(), Writer()
        ask(ProgramTeacher(same, {"weights": "a"}), [asked(1)], store=store)
        ask(ProgramTeacher(other, {"weights": "b"}), [asked(1)], store=store)
        reseeded = dataclasses.replace(asked(1), seed=1)
        ask(ProgramTeacher(colder, {"weights": "a"}), [reseeded], store=store)
    assert (len(same.asked), len(other.asked), len(colder.asked)) == (0, 1, 1)


@settings(deadline=None, max_examples=15)
@given(text=st.text(st.characters(), max_size=40))
def test_any_text_comes_back_from_disk_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, text: str
):
    path = tmp_path_factory.mktemp("store") / "replies.sqlite"
    reply = Reply("a", text + "\0\ud800", "length", prompt_tokens=None, new_tokens=7)
    with ReplyStore(path) as store:
        store.put({"teacher": "t"}, "key", reply)
        # What is there first stays.
        store.put({"teacher": "t"}, "key", Reply("a", "else", "stop"))
    with ReplyStore(path) as store:
        assert store.get({"teacher": "t"}, ["key", "none"]) == {
            "key": dataclasses.replace(reply, id="key")
        }


@settings(deadline=None, max_examples=20)
@given(
    number=st.integers(1, 8),
    requests=st.none() | st.integers(0, 8),
    tokens=st.none() | st.integers(0, 500),
)
def test_a_budget_is_kept_over_calls_and_what_it_forbids_fails_by_name(
    tmp_path_factory: pytest.TempPathFactory,
    number: int,
    requests: int | None,
    tokens: int | None,
):
    path = tmp_path_factory.mktemp("store") / "replies.sqlite"
    wanted = [asked(index) for index in range(number)]
    budget = Budget(requests, tokens)
    writer = Writer()
    teacher = ProgramTeacher(writer, {})
    for _ in range(2):
        with ReplyStore(path) as store:
            replies = ask(teacher, wanted, store=store, budget=budget)
            spent = store.spent(teacher.identity)
    answered = [reply for reply in replies.values() if reply.finish == "stop"]
    assert spent == (len(writer.asked), 5 * len(writer.asked))
    assert len(writer.asked) == len(answered)
    assert requests is None or len(answered) <= requests
    assert tokens is None or spent[1] <= tokens
    # And no less than it allows: every request costs 5, and needs room for the most it could cost.
    left = [request for request in wanted if replies[request.id].finish == "failed"]
    if left:
        assert "the budget is spent" in replies[left[0].id].error
        no_request = requests is not None and len(answered) == requests
        no_room = tokens is not None and spent[1] + most_tokens(left[0]) > tokens
        assert no_request or no_room
    else:
        assert len(answered) == number


def test_two_requests_with_one_id_are_refused(tmp_path: Path):
    with (
        ReplyStore(tmp_path / "replies.sqlite") as store,
        pytest.raises(DataError, match="two requests have the id 'r1'"),
    ):
        ask(ProgramTeacher(Writer(), {}), [asked(1), asked(1, "other")], store=store)


class Careless:
    """Answers only what it is made with, whatever it is asked."""

    identity = {"teacher": "careless"}

    def __init__(self, *ids: str):
        self._ids = ids

    def answer(self, requests, on_reply):
        for id_ in self._ids:
            on_reply(Reply(id_, "text", "stop"))


def test_a_request_without_a_reply_fails_and_a_second_reply_is_an_error(tmp_path: Path):
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        replies = ask(Careless("r1"), [asked(1), asked(2)], store=store)
        assert replies["r1"].text == "text"
        assert (replies["r2"].finish, replies["r2"].error) == (
            "failed",
            "the teacher gave no reply",
        )
        with pytest.raises(JaxrecipesError, match="answered 'r3'"):
            ask(Careless("r3", "r3"), [asked(3)], store=store)
        with pytest.raises(JaxrecipesError, match="answered 'r9'"):
            ask(Careless("r9"), [asked(4)], store=store)


def test_a_file_that_is_no_store_is_refused(tmp_path: Path):
    path = tmp_path / "replies.sqlite"
    path.write_bytes(b"something else, long enough to be taken for a database header" * 20)
    with pytest.raises(DataError, match="no store of replies"):
        ReplyStore(path)


SLOW_TEACHER = """
import sys, time
from pathlib import Path
from jaxrecipes.generate.ask import ask
from jaxrecipes.generate.program_teacher import ProgramTeacher
from jaxrecipes.generate.reply_store import ReplyStore
from jaxrecipes.generate.teacher import Request

folder = Path(sys.argv[1])

def write(request):
    with (folder / "asked.txt").open("a") as file:
        file.write(request.prompt + "\\n")
    time.sleep(0.01)
    return "<" + request.prompt + ">"

requests = [Request(f"r{n}", prompt=f"prompt {n}") for n in range(200)]
with ReplyStore(folder / "replies.sqlite") as store:
    replies = ask(ProgramTeacher(write, {}), requests, store=store)
assert [reply.text for reply in replies.values()] == [f"<prompt {n}>" for n in range(200)]
"""


@pytest.mark.slow
def test_a_process_that_is_killed_loses_at_most_the_request_it_was_at(tmp_path: Path):
    command = [sys.executable, "-c", SLOW_TEACHER, str(tmp_path)]
    process = subprocess.Popen(command, env=dict(os.environ))
    log = tmp_path / "asked.txt"
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < 20):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = log.read_text().splitlines()
    assert 20 <= len(before) < 200
    subprocess.run(command, check=True)
    after = log.read_text().splitlines()[len(before) :]
    assert set(before) & set(after) <= {before[-1]}
    assert {*before, *after} == {f"prompt {number}" for number in range(200)}
