"""A teacher that writes new items: whatever it says, the rules hold and the asking ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from jaxrecipes.config.llm2llm import AugmentSection
from jaxrecipes.data.task_items import TaskItem
from jaxrecipes.evaluate.answer_tasks import task_of
from jaxrecipes.evaluate.rouge import rouge_l
from jaxrecipes.experiment import augmenting
from jaxrecipes.experiment.augmenting import Augmenter
from jaxrecipes.generate.budget import Budget
from jaxrecipes.generate.fence import Fence
from jaxrecipes.generate.new_items import ANSWER, LAYOUT, QUESTION, ItemWriter
from jaxrecipes.generate.program_teacher import ProgramTeacher
from jaxrecipes.generate.reply_store import ReplyStore
from jaxrecipes.generate.sampling import Sampling
from jaxrecipes.generate.teacher import Reply, Request
from jaxrecipes.recipes.llm2llm import seed_records

WORDS = [
    "red",
    "blue",
    "green",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
ITEMS = [TaskItem(f"s{n}", f"add the numbers {n} and {n + 1}", str(2 * n + 1)) for n in range(5)]
SEEDS = seed_records(ITEMS)


def augmenter(tmp_path: Path, function: Any, *, budget: Any = None, embed: Any = None, **options):
    writer = ItemWriter(Fence(headings=(QUESTION, ANSWER)), (), Sampling(1.0), 64)
    teacher = ProgramTeacher(function, {"name": "test"})
    section = AugmentSection.model_validate(options)
    store = ReplyStore(tmp_path / "t.sqlite")
    task = task_of("plain", ITEMS)
    return Augmenter(teacher, store, budget, task, writer, section, embed, Console(quiet=True))


def write(made: Augmenter, targets: Any = SEEDS, **options: Any) -> augmenting.Written:
    return made.write(SEEDS, targets, round_number=1, seed=0, title="t", **options)


def random_item(request: Request) -> str:
    draw = np.random.default_rng(request.seed)
    return f"Question: {' '.join(draw.choice(WORDS, 6))}\nAnswer: {draw.integers(100)}"


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.floats(0.2, 0.95), st.integers(0, 99))
def test_kept_questions_are_apart_from_all_data_and_quotas_hold(tmp_path_factory, many, most, salt):
    def teacher(request: Request) -> str:
        draw = np.random.default_rng(request.seed + salt)
        if draw.random() < 0.3:
            return f"Question: {draw.choice([one.question for one in SEEDS])}\nAnswer: 1"
        return random_item(request)

    made = augmenter(tmp_path_factory.mktemp("a"), teacher, rouge_l=most, attempts=3)
    found = write(made, [*SEEDS] * many)
    kept = [record.question for record in found.records]
    for place, question in enumerate(kept):
        others = [*(record.question for record in SEEDS), *kept[:place]]
        assert max(rouge_l(question, other).f1 for other in others) <= most
    for seed in SEEDS:
        own = [one for one in found.records if one.parent_id == seed.id]
        tried = len(own) + sum(one.parent_id == seed.id for one in found.rejects)
        assert len(own) <= many and tried <= 3 * many
        assert len(own) == many or tried == 3 * many
        assert all((one.seed_id, one.depth, one.round) == (seed.id, 1, 1) for one in own)
    keys = [one.request for one in (*found.records, *found.rejects)]
    assert all(keys) and len({one.id for one in found.records}) == len(found.records)


@pytest.mark.parametrize(
    "text", ["", "nonsense", "Question: x", "Question: add the numbers 0 and 1\nAnswer: 1"]
)
def test_a_broken_teacher_ends(tmp_path, text):
    asked = []

    def teacher(request: Request) -> str:
        asked.append(request.id)
        return text

    found = write(augmenter(tmp_path, teacher, attempts=4))
    assert found.records == [] and len(found.rejects) == len(asked) == 4 * len(SEEDS)
    assert {one.reason for one in found.rejects} <= {LAYOUT, augmenting.NEAR}


def test_a_teacher_that_fails_ends_at_once_and_keeps_why(tmp_path):
    def teacher(request: Request) -> Reply:
        return Reply(request.id, "", "failed", error="gone")

    found = write(augmenter(tmp_path, teacher, attempts=9))
    assert [one.reason for one in found.rejects] == [augmenting.FAILED] * len(SEEDS)
    assert {one.text for one in found.rejects} == {"gone"}
    spent = write(augmenter(tmp_path / "b", random_item, budget=Budget(requests=2)))
    assert len(spent.records) + sum(one.reason != augmenting.FAILED for one in spent.rejects) == 2


def test_after_a_kill_nothing_is_asked_twice_and_the_same_is_kept(tmp_path):
    asked: list[str] = []

    def teacher(request: Request) -> str:
        if len(asked) == 3 and "stop" not in asked:
            asked.append("stop")
            raise KeyboardInterrupt
        asked.append(request.key)
        return random_item(request)

    with pytest.raises(KeyboardInterrupt):
        write(augmenter(tmp_path, teacher))
    found = write(augmenter(tmp_path, teacher))
    keys = [key for key in asked if key != "stop"]
    assert len(keys) == len(set(keys)) == len(found.records) + len(found.rejects)
    whole = write(augmenter(tmp_path / "whole", random_item))
    assert found.records == whole.records


def test_answers_are_verified_by_the_teachers_own(tmp_path):
    def teacher(request: Request) -> str:
        text = request.messages[0].content
        if "Write one item" in text:
            return random_item(request)
        # Agrees with itself about questions that begin with a word of three letters.
        question = text.split("[question ")[1].split("\n")[1]
        known = questions[question]
        return f"Answer: {known}" if len(question.split()[0]) == 3 else "Answer: -1"

    questions: dict[str, str] = {}

    def remember(request: Request) -> str:
        said = teacher(request)
        if said.startswith("Question:"):
            question, answer = said.removeprefix("Question: ").split("\nAnswer: ")
            questions[question] = answer
        return said

    for samples in (1, 3):
        found = write(augmenter(tmp_path / str(samples), remember, verify_samples=samples))
        assert found.records and {one.reason for one in found.rejects} == {augmenting.DISAGREES}
        assert all(len(one.question.split()[0]) == 3 for one in found.records)


def test_other_wordings_keep_the_answer(tmp_path):
    def teacher(request: Request) -> str:
        draw = np.random.default_rng(request.seed)
        text = request.messages[0].content
        answer = text.split("[its right answer ")[1].split("\n")[1]
        wrong = draw.random() < 0.3
        return f"Question: sum {draw.integers(10**6)}\nAnswer: {-1 if wrong else answer}"

    found = write(augmenter(tmp_path, teacher, attempts=8), manner="rephrased")
    by_id = {one.id: one for one in SEEDS}
    assert len(found.records) == len(SEEDS)
    assert all(one.answer == by_id[str(one.parent_id)].answer for one in found.records)
    assert {one.reason for one in found.rejects} <= {augmenting.OTHER_ANSWER, augmenting.NEAR}


def test_the_wrong_answer_is_shown_where_it_is_wanted_and_earlier_items_are(tmp_path):
    seen: list[str] = []

    def teacher(request: Request) -> str:
        seen.append(request.messages[0].content)
        return "no" if len(seen) == 1 else random_item(request)

    wrong = {"s0": "forty-two"}
    write(augmenter(tmp_path / "a", teacher, show_wrong_answer=True), SEEDS[:1] * 2, wrong=wrong)
    assert all("forty-two" in text for text in seen) and len(seen) == 3
    assert "earlier exercise" in seen[2] and "earlier exercise" not in seen[0]
    seen.clear()
    write(augmenter(tmp_path / "b", teacher), SEEDS[:1], wrong=wrong)
    assert not any("forty-two" in text for text in seen)


def test_an_encoder_finds_duplicates_too(tmp_path):
    def embed(texts: Any) -> np.ndarray:
        # Alike are questions with the same first word.
        firsts = [text.split()[0] for text in texts]
        width = ["add", *WORDS]
        return np.eye(len(width), dtype=np.float32)[[width.index(first) for first in firsts]]

    found = write(augmenter(tmp_path, random_item, embed=embed, attempts=6))
    firsts = [one.question.split()[0] for one in found.records]
    assert len(firsts) == len(set(firsts))
    assert {one.reason for one in found.rejects} == {augmenting.ALIKE}
