"""Invariants of SSR: what is asked, kept, chosen and labelled, with teachers that are functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.generate.ask import ask
from jaxrecipes.generate.instances import Cues, Instance
from jaxrecipes.generate.memorised import same_text
from jaxrecipes.generate.reply_store import ReplyStore
from jaxrecipes.generate.sampling import Sampling
from jaxrecipes.generate.teacher import Reply, Request
from jaxrecipes.neighbors.quotas import rank_at_random
from jaxrecipes.recipes.self_synthesized_rehearsal import (
    WAVE,
    Synthesis,
    Task,
    choose_set,
    stage_rows,
    synthesis_requests,
    synthesise,
    wanted_count,
)

SHOWN = tuple(Instance(f"sum of {n} and {n + 3} please", str(2 * n + 3)) for n in range(5))
TASK = Task("add", "Add.", SHOWN, SHOWN[:1], Cues())
OPTIONS = Synthesis(Sampling(temperature=0.9, top_p=0.6, repetition_penalty=1.2), samples=2)


def replies(answers: dict[str, str] | str, finish: str = "stop"):
    def answer(requests: Sequence[Request]) -> dict[str, Reply]:
        return {
            one.id: Reply(one.id, answers if isinstance(answers, str) else answers[one.id], finish)
            for one in requests
        }

    return answer


def made(answer, **changes):
    options = {"seed": 0, "needs_output": False, "count_tokens": lambda text: len(text.split())}
    return synthesise(TASK, SHOWN, OPTIONS, answer, **{**options, **changes})


def test_every_ordered_pair_is_asked_with_its_own_seeds_and_stops_before_another():
    requests = synthesis_requests(TASK, SHOWN, OPTIONS, seed=0)
    assert len(requests) == 2 * 5 * 4 == len({one.id for one in requests})
    assert len({one.key for one in requests}) == 40
    assert all(one.stop == ("\nInput:",) for one in requests)
    assert all(one.prompt and one.prompt.endswith("\n\nInput:") for one in requests)
    assert all(one.sampling.repetition_penalty == 1.2 for one in requests)


written = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *(one.input for one in SHOWN),
                "SUM of 1 and  4 please",
                "sum of 1 and 4 please, and more",
                "multiply two by nine",
                "Multiply two by nine",
                "divide ten by three",
                "",
                "long " * 600,
                "one\nInput: two",
            ]
        ),
        st.sampled_from(["7", "", "x " * 200]),
    ),
    min_size=40,
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(written)
def test_demonstrations_are_never_among_what_is_kept_and_nothing_is_twice(written):
    requests = synthesis_requests(TASK, SHOWN, OPTIONS, seed=0)
    answers = {
        one.id: f" {given}\nOutput: {wanted}"
        for one, (given, wanted) in zip(requests, written, strict=True)
    }
    found = made(replies(answers))
    kept = [same_text(one.input) for one in found.instances]
    assert len(kept) == len(set(kept))
    assert not set(kept) & {same_text(one.input) for one in SHOWN}
    assert set(kept) <= {"multiply two by nine", "divide ten by three", "one", "two"}
    counts = found.counts
    assert counts["pieces"] == counts["usable"] + sum(counts["rejected"].values())
    assert counts["requests"] == 40 and counts["failed"] == 0


def test_why_pieces_are_rejected_is_counted():
    requests = synthesis_requests(TASK, SHOWN, OPTIONS, seed=0)
    texts = [
        " sum of 1 and 4 please\nOutput: 5",
        " the sum of 1 and 4 please\nOutput: 5",
        " multiply two by nine\nOutput: 18",
        " multiply two by nine\nOutput: 18",
        " a" * 600 + "\nOutput: 1",
    ]
    answers = {one.id: texts[min(n, 4)] for n, one in enumerate(requests)}
    rejected = made(replies(answers)).counts["rejected"]
    assert rejected == {
        "duplicate": 1,
        "input too long": 36,
        "is a demonstration": 1,
        "memorised": 1,
    }
    failing = made(replies("", finish="failed"))
    assert failing.instances == () and failing.counts["failed"] == 40


def test_it_stops_asking_when_there_is_enough():
    task = Task("add", "Add.", SHOWN * 4, SHOWN, Cues())
    shown = [Instance(f"number {n} of these", "x") for n in range(12)]
    asked: list[Request] = []

    def answer(requests):
        asked.extend(requests)
        return {one.id: Reply(one.id, f" fresh {one.id}\nOutput: 1", "stop") for one in requests}

    options = {"seed": 0, "needs_output": True, "count_tokens": lambda text: 1}
    found = synthesise(task, shown, OPTIONS, answer, enough=30, **options)
    assert len(asked) == WAVE == found.counts["requests"]
    assert len(synthesise(task, shown, OPTIONS, answer, **options).instances) == 2 * 12 * 11


candidates = st.integers(0, 30)


@settings(max_examples=100, deadline=None)
@given(
    candidates,
    st.integers(1, 20),
    st.sampled_from(["after_selection", "before_selection", "never"]),
    st.data(),
)
def test_labels_are_the_latest_models_and_the_size_is_exact(count, wanted, refine, data):
    pool = [Instance(f"input {n}", f"base {n}") for n in range(count)]
    bad = data.draw(st.sets(st.integers(0, max(count - 1, 0))))
    calls: list[list[str]] = []

    def relabel(requests):
        calls.append([one.id for one in requests])
        assert all(one.sampling.temperature == 0 for one in requests)
        found = {}
        for one in requests:
            number = int(one.id.split("/")[1])
            assert one.prompt == TASK.prompt(pool[number].input)
            finish = "length" if number in bad else "stop"
            found[one.id] = Reply(one.id, f" latest {number}\n", finish)
        return found

    result = choose_set(
        TASK,
        pool,
        wanted,
        lambda texts: rank_at_random(len(texts), seed=0),
        refine=refine,
        relabel=relabel,
        longest_output=8,
    )
    usable = count if refine == "never" else count - len(bad & set(range(count)))
    assert len(result.instances) == min(wanted, usable) == result.counts["chosen"]
    asked = [name for call in calls for name in call]
    assert len(asked) == len(set(asked))  # nothing is written twice
    for one in result.instances:
        number = one.input.removeprefix("input ")
        assert one.output == (f"base {number}" if refine == "never" else f"latest {number}")
    if refine == "before_selection":
        assert len(asked) == count
    elif refine == "after_selection" and not bad:
        assert len(asked) == min(wanted, count)  # only the chosen ones
    else:
        assert refine == "after_selection" or not asked


def test_an_answer_that_cannot_be_used_is_refilled_and_counted():
    pool = [Instance(f"input {n}", "") for n in range(6)]
    texts = {0: "", 1: "fine", 2: "a\nOutput: b", 3: "fine", 4: "fine", 5: "fine"}

    def relabel(requests):
        return {one.id: Reply(one.id, texts[int(one.id.split("/")[1])], "stop") for one in requests}

    result = choose_set(
        TASK,
        pool,
        3,
        lambda texts: [list(range(6))],
        refine="after_selection",
        relabel=relabel,
        longest_output=8,
    )
    assert [one.input for one in result.instances] == ["input 1", "input 3", "input 4"]
    assert result.counts["rejected"] == {"empty output": 1, "holds a cue": 1}
    assert result.counts["refined"] == 5


def test_a_kill_costs_no_request_twice(tmp_path: Path):
    class Teacher:
        identity = {"teacher": "function"}
        asked: list[str] = []

        def answer(self, requests, on_reply):
            for one in requests:
                if len(self.asked) == 7 and "died" not in self.identity_seen:
                    self.identity_seen.add("died")
                    raise KeyboardInterrupt
                self.asked.append(one.id)
                on_reply(Reply(one.id, f" new {len(self.asked)} thing\nOutput: 1", "stop"))

        identity_seen: set[str] = set()

    teacher = Teacher()
    store = ReplyStore(tmp_path / "replies.sqlite")

    def answer(requests):
        return ask(teacher, requests, store=store)

    with pytest.raises(KeyboardInterrupt):
        made(answer)
    found = made(answer)
    assert len(teacher.asked) == len(set(teacher.asked)) == 40
    again = made(answer)
    assert again == found and len(teacher.asked) == 40


@given(st.floats(0.001, 1), st.integers(2, 3000))
def test_a_share_is_at_least_one_row(share, rows):
    assert 1 <= wanted_count(share, rows) <= rows
    assert wanted_count(0.1, 2000) == 200


def test_a_stage_learns_its_task_and_every_earlier_set_as_it_was():
    sets = [[TASK.row("a", SHOWN[0])], [TASK.row("b", SHOWN[1])]]
    rows = stage_rows([TASK.row("c", SHOWN[2])], sets)
    assert [row["id"] for row in rows] == ["c", "a", "b"]
    assert rows[1]["prompt"] == "Add.\n\nInput: sum of 0 and 3 please\nOutput:"
    assert rows[1]["completion"] == " 3"
