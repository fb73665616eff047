"""A server that misbehaves: nothing lost, nothing twice, the budget kept, and always an end."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from pathlib import Path

import pytest

from jaxrecipes.errors import ConfigError, DataError, JaxrecipesError
from jaxrecipes.generate.ask import AskProgress, ask
from jaxrecipes.generate.budget import Budget, most_tokens
from jaxrecipes.generate.openai_call import Dialect
from jaxrecipes.generate.openai_teacher import OpenAITeacher, Server
from jaxrecipes.generate.reply_store import ReplyStore
from jaxrecipes.generate.retry import Retries
from jaxrecipes.generate.sampling import Sampling
from jaxrecipes.generate.teacher import Message, Reply, Request
from tests.generate.servers import Chaos, serving

pytest.importorskip("openai")
QUICK = Retries(attempts=8, first_wait=0.002)
PASSING = ("429", "500", "503-html", "garbage", "empty", "no-choices", "odd-types", "cut", "close")


class Killed(Exception):
    """Ends a process as a signal would."""


def requests_of(number: int) -> list[Request]:
    """Half chats, half plain prompts."""
    return [
        Request(f"r{at}", messages=(Message("user", f"item {at}"),), max_new_tokens=8)
        if at % 2
        else Request(f"r{at}", prompt=f"item {at}", max_new_tokens=8)
        for at in range(number)
    ]


def teacher_at(chaos: Chaos, **changes) -> OpenAITeacher:
    values = {"timeout": 20.0, "retries": QUICK, "concurrency": 16, **changes}
    return OpenAITeacher(Server(chaos.url, "m", **values))


def mood(text: str, number: int) -> int:
    """A number below 1000 that is always the same for a text."""
    return int.from_bytes(hashlib.sha256(f"{text}/{number}".encode()).digest()[:4]) % 1000


def unreliable(asked: str, before: int) -> str:
    """Three of ten calls fail, each in one of many ways; nobody fails more than four times."""
    if before >= 4 or mood(asked, before) >= 300:
        return "fine"
    return PASSING[mood(asked, before) % len(PASSING)]


@pytest.mark.parametrize("stream", ["off", "with_usage"])
def test_a_thousand_requests_and_none_is_lost_or_doubled(tmp_path: Path, stream):
    number = 1000 if stream == "off" else 100
    requests, progress = requests_of(number), []
    with serving(unreliable) as chaos, ReplyStore(tmp_path / "replies.sqlite") as store:
        teacher = teacher_at(chaos, dialect=Dialect(stream=stream))
        replies = ask(teacher, requests, store=store, progress=progress.append)
        asked = chaos.asked
        again = ask(teacher, requests, store=store)
    assert [(id_, reply.text) for id_, reply in replies.items()] == [
        (f"r{at}", f"<item {at}>") for at in range(number)
    ]
    assert again == replies
    assert chaos.asked == asked > number
    assert set(chaos.times_answered.values()) == {1}
    assert chaos.most_at_once <= 16
    assert progress[-1] == AskProgress(number, 0, number, 0, 2 * number)
    assert len(progress) == number + 1


def test_killed_in_the_middle_and_run_again_only_what_is_missing_is_asked(tmp_path: Path):
    requests = requests_of(150)
    with serving(unreliable) as chaos:
        for stops_at in (30, 70, None):
            with ReplyStore(tmp_path / "replies.sqlite") as store:

                def stop(progress: AskProgress, stops_at: int | None = stops_at) -> None:
                    if progress.answered == stops_at:
                        raise Killed

                if stops_at is None:
                    replies = ask(teacher_at(chaos), requests, store=store, progress=stop)
                else:
                    with pytest.raises(Killed):
                        ask(teacher_at(chaos), requests, store=store, progress=stop)
        assert {reply.text for reply in replies.values()} == {f"<item {at}>" for at in range(150)}
        # What was on its way when the process ended was answered to nobody: asked again, once.
        twice = [text for text, times in chaos.times_answered.items() if times > 1]
        assert len(twice) <= 2 * 16
        assert sum(chaos.times_answered.values()) == 150 + len(twice)


@pytest.mark.parametrize("budget", [Budget(requests=70), Budget(tokens=900), Budget(0, 0)])
def test_the_budget_is_kept_whatever_the_server_does(tmp_path: Path, budget: Budget):
    requests = requests_of(120)
    with serving(unreliable) as chaos:
        for _ in range(2):
            with ReplyStore(tmp_path / "replies.sqlite") as store:
                teacher = teacher_at(chaos)
                replies = ask(teacher, requests, store=store, budget=budget)
                calls, tokens = store.spent(teacher.identity)
    answered = [reply for reply in replies.values() if reply.finish == "stop"]
    failed = [reply for reply in replies.values() if reply.finish == "failed"]
    assert calls == chaos.asked
    # The server's own account: seven tokens an answer.
    assert 7 * sum(chaos.times_answered.values()) <= tokens
    if budget.requests is not None:
        assert calls == budget.requests
    if budget.tokens is not None:
        assert tokens <= budget.tokens
        assert tokens > budget.tokens - max(map(most_tokens, requests)) or not budget.tokens
    assert len(answered) + len(failed) == 120
    assert bool(answered) == (budget != Budget(0, 0))
    assert all("the budget is spent" in reply.error for reply in failed)


@pytest.mark.parametrize("behaviour", ["never", "drip"])
def test_a_teacher_that_never_answers_ends(tmp_path: Path, behaviour: str):
    with (
        serving(lambda asked, before: behaviour) as chaos,
        ReplyStore(tmp_path / "replies.sqlite") as store,
    ):
        retries = Retries(attempts=2, first_wait=0.01)
        dialect = Dialect(stream="plain")
        teacher = teacher_at(
            chaos, timeout=0.2, retries=retries, give_up_after=3, concurrency=4, dialect=dialect
        )
        began = time.monotonic()
        replies = ask(teacher, requests_of(500), store=store)
        assert time.monotonic() - began < 10
    assert {reply.finish for reply in replies.values()} == {"failed"}
    # A few were tried and the rest was not: each would have taken as long.
    assert chaos.asked <= 16
    assert "no whole answer in 0.2 s (tried 2 times)" in replies["r0"].error
    assert "not asked: " in replies["r499"].error and "in a row failed" in replies["r499"].error


def test_a_server_that_is_not_there_ends(tmp_path: Path):
    with serving(unreliable) as chaos:
        url = chaos.url
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        server = Server(url, "m", retries=Retries(2, 0.01), give_up_after=2, concurrency=1)
        teacher = OpenAITeacher(server)
        replies = ask(teacher, requests_of(50), store=store, budget=Budget(tokens=10_000))
        # Nobody was reached, so nothing was spent but tries.
        assert store.spent(teacher.identity) == (4, 0)
    assert {reply.finish for reply in replies.values()} == {"failed"}
    assert "no connection" in replies["r0"].error


def test_what_cannot_pass_is_not_tried_again(tmp_path: Path):
    behaviours = {"item 0": "400", "item 1": "filter", "item 2": "429-later", "item 3": "long"}
    with (
        serving(lambda asked, before: behaviours.get(asked, "fine")) as chaos,
        ReplyStore(tmp_path / "replies.sqlite") as store,
    ):
        teacher = teacher_at(chaos, concurrency=1, retries=Retries(2, 0.01))
        replies = ask(teacher, requests_of(5), store=store)
    assert {text: chaos.times_asked[text] for text in behaviours} == {
        "item 0": 1,
        "item 1": 1,
        "item 2": 1,
        "item 3": 2,
    }
    assert "HTTP 400" in replies["r0"].error
    assert "'content_filter'" in replies["r1"].error
    assert "wants to be left alone for 86400 s" in replies["r2"].error
    assert "an answer of more than 1,000,000 characters" in replies["r3"].error
    assert replies["r4"].text == "<item 4>"


@pytest.mark.parametrize(
    ("behaviour", "kind", "said"),
    [
        ("401", ConfigError, "refuses the key .*check the environment variable TEACHER_KEY"),
        ("404", ConfigError, "has no model 'm', or no such address"),
        ("quota", JaxrecipesError, "wants to be paid first"),
    ],
)
def test_what_is_wrong_for_all_ends_the_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, kind: type, said: str
):
    monkeypatch.setenv("TEACHER_KEY", "sk-secret-123")
    with (
        serving(lambda asked, before: behaviour) as chaos,
        ReplyStore(tmp_path / "replies.sqlite") as store,
        pytest.raises(kind, match=said) as raised,
    ):
        ask(teacher_at(chaos, key_variable="TEACHER_KEY"), requests_of(200), store=store)
    assert chaos.asked <= 32
    assert "sk-secret" not in str(raised.value)


def test_the_key_is_sent_and_neither_written_nor_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("TEACHER_KEY", "sk-secret-123")
    caplog.set_level("DEBUG")
    with (
        serving(lambda asked, before: "400" if asked == "item 3" else "fine") as chaos,
        ReplyStore(tmp_path / "replies.sqlite") as store,
    ):
        teacher = teacher_at(chaos, key_variable="TEACHER_KEY")
        replies = ask(teacher, requests_of(8), store=store)
    assert {headers["authorization"] for headers in chaos.headers} == {"Bearer sk-secret-123"}
    # The server repeated it in its refusal.
    assert "bad Bearer ***" in replies["r3"].error
    assert "sk-secret" not in caplog.text + str(teacher.identity)
    for path in tmp_path.rglob("*"):
        assert b"sk-secret" not in path.read_bytes()


def test_a_key_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(ConfigError, match="environment variable TEACHER_KEY is not set"):
        OpenAITeacher(Server("http://127.0.0.1:1/v1", "m", key_variable="TEACHER_KEY"))


def test_what_is_asked_arrives_and_stop_texts_end_the_answer(tmp_path: Path):
    sampling = Sampling(temperature=0.5, top_k=7, top_p=0.9, min_p=0.1)
    request = Request(
        "a",
        messages=(Message("user", "one END two"), Message("assistant", "So: END")),
        max_new_tokens=9,
        sampling=sampling,
        stop=("END",),
        seed=3,
    )
    dialect = Dialect(last_turn="continue_final_message", token_limit="max_completion_tokens")
    with (
        serving(lambda asked, before: "fine") as chaos,
        ReplyStore(tmp_path / "replies.sqlite") as store,
    ):
        reply = ask(teacher_at(chaos, dialect=dialect), [request], store=store)["a"]
        with pytest.raises(DataError, match="request 'a' begins the assistant's answer"):
            ask(teacher_at(chaos), [request], store=store)
    assert reply == Reply("a", "<So: ", "stop", prompt_tokens=5, new_tokens=2)
    assert chaos.bodies == [
        {
            "model": "m",
            "messages": [
                {"role": "user", "content": "one END two"},
                {"role": "assistant", "content": "So: END"},
            ],
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 7,
            "min_p": 0.1,
            "seed": 3,
            "stop": ["END"],
            "max_completion_tokens": 9,
            "continue_final_message": True,
            "add_generation_prompt": False,
        }
    ]


def test_halves_of_characters_fail_by_name_and_hurt_nobody_else(tmp_path: Path):
    requests = [Request("half", prompt="\ud800"), Request("nul", prompt="a\0b")]
    with (
        serving(lambda asked, before: "fine") as chaos,
        ReplyStore(tmp_path / "replies.sqlite") as store,
    ):
        replies = ask(teacher_at(chaos), requests, store=store)
    assert "half of a surrogate pair" in replies["half"].error
    assert replies["nul"].text == "<a\0b>"


def test_spending_that_a_kill_left_open_stays_on_the_books(tmp_path: Path):
    path = tmp_path / "replies.sqlite"
    with serving(lambda asked, before: "fine") as chaos:
        with ReplyStore(path) as store:
            identity = teacher_at(chaos).identity
            store.begin_spending(identity, 990)
        with ReplyStore(path) as store:
            replies = ask(
                teacher_at(chaos), requests_of(1), store=store, budget=Budget(tokens=1000)
            )
    assert "990 of 1,000 tokens" in replies["r0"].error
    assert chaos.asked == 0
    assert sqlite3.connect(path).execute("SELECT COUNT(*) FROM replies").fetchone() == (0,)
