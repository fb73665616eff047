from __future__ import annotations

import json
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest

from jaxrecipes.evaluate.choices import read_choice_items, read_last_word_items
from jaxrecipes.evaluate.probes import general_prompts

FOLDER = Path(str(resources.files("jaxrecipes.evaluate.probes")))


def subject(name: str) -> str:
    return name.rsplit("-", 1)[0]


def test_prompts_are_many_and_distinct():
    prompts = general_prompts()
    assert len(prompts) == len(set(prompts.values())) == 64
    assert set(Counter(map(subject, prompts)).values()) == {8}


def test_the_first_prompts_are_a_fair_sample():
    assert len({subject(name) for name in list(general_prompts())[:8]}) == 8


@pytest.fixture(scope="module")
def choices():
    return read_choice_items(FOLDER / "general_choices.jsonl")


def test_choices_are_well_formed(choices):
    assert len({item.id for item in choices}) == len(choices) == 164
    assert len({item.contexts[0] for item in choices}) == len(choices)
    for item in choices:
        assert len(item.choices) == len({choice.lower() for choice in item.choices}) == 4
        assert item.contexts[0].endswith("?\nAnswer:")


def test_no_place_of_the_answer_is_better_than_another(choices):
    assert Counter(item.answer for item in choices) == {0: 41, 1: 41, 2: 41, 3: 41}


def test_the_length_of_a_choice_does_not_tell_the_answer(choices):
    # Else a model could score without knowing anything.
    for extreme in (max, min):
        hits = sum(
            extreme(range(4), key=lambda place: len(item.choices[place])) == item.answer
            for item in choices
        )
        assert 0.15 < hits / len(choices) < 0.40


def test_last_words_are_single_words():
    items = read_last_word_items(FOLDER / "general_last_words.jsonl")
    assert len({item.context for item in items}) == len({item.id for item in items}) == 40
    assert all(item.target[1:].isalpha() for item in items)


def test_files_hold_the_documented_fields_only():
    fields = {
        "general_prompts.jsonl": {"id", "prompt"},
        "general_choices.jsonl": {"id", "question", "choices", "answer"},
        "general_last_words.jsonl": {"id", "context", "target"},
    }
    for name, expected in fields.items():
        for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
            assert set(json.loads(line)) == expected
