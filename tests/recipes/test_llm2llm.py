"""The invariants of LLM2LLM's rounds, whatever student and teacher do."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrecipes.data.task_items import TaskItem
from jaxrecipes.errors import DataError
from jaxrecipes.recipes.llm2llm import (
    LAST_ROUND,
    NO_GAIN,
    NO_NEW_ITEM,
    NOTHING_WRONG,
    Record,
    choose_targets,
    chosen_round,
    draw_evenly,
    extend,
    seed_records,
    why_stop,
)

ITEMS = [TaskItem(f"s{n}", f"question {n}", f"answer {n}") for n in range(6)]


def written(parent: Record, number: int, attempt: int) -> Record:
    return Record(
        f"r{number}-{parent.id}-{attempt}",
        f"like {parent.question}",
        parent.answer,
        parent.seed_id,
        parent.id,
        parent.depth + 1,
        number,
    )


@given(st.integers(0, 10**6), st.sampled_from(["wrong_seeds", "all_wrong"]), st.integers(1, 5))
def test_rounds_keep_everything_and_write_after_wrong_items_only(seed, targets, rounds):
    draw = random.Random(seed)
    seeds = seed_records(ITEMS)
    records, sets, wrongs = seeds, [seeds], []
    for number in range(1, rounds + 1):
        asked = [one for one in records if targets == "all_wrong" or one.depth == 0]
        right = {one.id: draw.random() < 0.5 for one in asked}
        chosen = choose_targets(records, right, targets)
        assert [one.id for one in chosen] == [one.id for one in asked if not right[one.id]]
        new = [written(one, number, 0) for one in chosen if draw.random() < 0.8]
        records = extend(records, new, {key for key, good in right.items() if not good})
        assert Counter(records) == Counter(sets[-1]) + Counter(new)
        sets.append(records)
        wrongs.append({key for key, good in right.items() if not good})
    ids = {one.id for one in seeds}
    for records in sets:
        assert set(seeds) <= set(records)
        for record in records:
            assert record.seed_id in ids
            if record.depth:
                assert record.parent_id in wrongs[record.round - 1]
            if targets == "wrong_seeds":
                assert record.depth <= 1 and (record.depth == 0 or record.parent_id in ids)


def test_records_that_do_not_belong_together_are_refused():
    seeds = seed_records(ITEMS)
    good = written(seeds[0], 1, 0)
    assert extend(seeds, [good], {"s0"})[-1] == good
    for wrong, match in (
        (dataclasses.replace(good, parent_id="nobody"), "does not belong"),
        (dataclasses.replace(good, id="s3"), "does not belong"),
        (dataclasses.replace(good, seed_id="s1"), "another seed"),
        (dataclasses.replace(good, depth=2), "another seed or depth"),
    ):
        with pytest.raises(DataError, match=match):
            extend(seeds, [wrong], {"s0"})
    with pytest.raises(DataError, match="which was right"):
        extend(seeds, [good], {"s1"})
    with pytest.raises(DataError, match="does not belong"):
        extend(seeds, [good, good], {"s0"})


@given(st.integers(0, 40), st.integers(0, 5))
def test_draws_are_even_and_follow_their_seed(count, seed):
    records = seed_records(ITEMS)
    drawn = draw_evenly(records, count, seed)
    assert len(drawn) == count and drawn == draw_evenly(records, count, seed)
    counted = Counter(one.id for one in drawn)
    assert max(counted.values(), default=0) - min(counted[one.id] for one in records) <= 1
    uniform = choose_targets(records, {}, "uniform", count=count, seed=seed)
    assert uniform == drawn


def test_every_run_ends_with_its_reason():
    given = {"rounds": 3, "targets": 2, "kept": None, "dev": [], "patience": None}
    assert why_stop(round_number=0, **given) == ""
    assert why_stop(round_number=3, **given) == LAST_ROUND
    assert why_stop(round_number=0, **{**given, "targets": 0}) == NOTHING_WRONG
    assert why_stop(round_number=0, **{**given, "kept": 0}) == NO_NEW_ITEM
    with_dev = {**given, "dev": [0.2, 0.5, 0.5], "patience": 1}
    assert why_stop(round_number=2, **with_dev) == NO_GAIN
    assert why_stop(round_number=2, **{**with_dev, "dev": [0.2, 0.5, 0.6]}) == ""
    assert why_stop(round_number=2, **{**with_dev, "patience": 2}) == ""
    assert chosen_round([0.2, 0.5, 0.5], 3) == 1 and chosen_round([], 3) == 2
