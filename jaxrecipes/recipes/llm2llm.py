"""LLM2LLM (arXiv 2403.15042): a teacher writes new items like those that the student gets wrong.

Each round trains the student anew from the base on everything there is, asks it the seeds, and lets
the teacher write new items like the seeds that it got wrong. Seeds and new items stay for ever; new
items are never teachers' examples themselves, so that nothing is further than one step from a seed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from jaxrecipes.data.task_items import TaskItem
from jaxrecipes.errors import DataError

Targets = Literal["wrong_seeds", "all_wrong", "uniform"]
NOTHING_WRONG, NO_NEW_ITEM, NO_GAIN, LAST_ROUND = (
    "the student gets no seed wrong",
    "no new item was kept",
    "no gain on the dev items",
    "all rounds are done",
)


@dataclass(frozen=True)
class Record:
    """An item to learn from, and where it comes from.

    Attributes:
        id: Unique in a training set.
        question: What is asked.
        answer: What is learned.
        seed_id: The seed that it goes back to; its own id for a seed.
        parent_id: The item that it was written after; None for a seed.
        depth: Steps from a seed.
        round: Round in which it was written; 0 for seeds, 1 for those after the first student.
        teacher: Hash of who wrote it; empty for a seed.
        request: Key of the request that it answers; empty where nobody was asked.
        attempt: Number of that request among those for its parent in its round, from 0.
    """

    id: str
    question: str
    answer: str
    seed_id: str
    parent_id: str | None = None
    depth: int = 0
    round: int = 0
    teacher: str = ""
    request: str = ""
    attempt: int = 0

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values, from which `Record(**values)` is the record again."""
        return asdict(self)


def seed_records(items: Sequence[TaskItem]) -> list[Record]:
    """Makes items the first training set."""
    return [Record(item.id, item.question, item.answer, item.id) for item in items]


def choose_targets(
    records: Sequence[Record],
    right: Mapping[str, bool],
    targets: Targets,
    *,
    count: int | None = None,
    seed: int = 0,
) -> list[Record]:
    """Chooses the items after which new ones are written.

    Args:
        records: The training set.
        right: For each item that was asked (all seeds, and all others for `all_wrong`), whether the
            student got it right.
        targets: wrong_seeds: the method's. all_wrong: wrong new items, too; the ablation in which
            errors of the teacher are passed on. uniform: seeds drawn at random, the wrong ones no
            more often than others.
        count: uniform: how many.
        seed: uniform: of the draw.

    Returns:
        The items in the order of the set; drawn ones as often as they were drawn.
    """
    seeds = [record for record in records if record.depth == 0]
    if targets == "uniform":
        return draw_evenly(seeds, count or 0, seed)
    asked = seeds if targets == "wrong_seeds" else list(records)
    return [record for record in asked if not right[record.id]]


def draw_evenly(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Draws items at random, none twice before all were drawn once; in the order of the set."""
    generator, drawn = random.Random(seed), Counter[str]()
    while drawn.total() < count:
        order = list(records)
        generator.shuffle(order)
        drawn.update(record.id for record in order[: count - drawn.total()])
    return [record for record in records for _ in range(drawn[record.id])]


def extend(
    records: Sequence[Record], new: Sequence[Record], wrong: Collection[str] | None
) -> list[Record]:
    """Returns the next training set: everything there was, and the new items.

    Args:
        records: The training set.
        new: The new items.
        wrong: Ids of the items that were wrong in this round; None where that did not matter.

    Raises:
        DataError: An item has no parent in the set, its parent was not wrong, or its id is taken:
            the records do not belong together.
    """
    known = {record.id: record for record in records}
    for record in new:
        parent = known.get(record.parent_id or "")
        if parent is None or record.id in known:
            raise DataError(
                f"new item {record.id!r} of parent {record.parent_id!r} does not belong to this "
                "training set; remove the run folder and run the same command again"
            )
        if wrong is not None and parent.id not in wrong:
            raise DataError(
                f"new item {record.id!r} was written after {parent.id!r}, which was right"
            )
        if (record.seed_id, record.depth) != (parent.seed_id, parent.depth + 1):
            raise DataError(f"new item {record.id!r} names another seed or depth than its parent")
        known[record.id] = record
    return list(known.values())


def why_stop(
    *,
    round_number: int,
    rounds: int,
    targets: int,
    kept: int | None,
    dev: Sequence[float],
    patience: int | None,
) -> str:
    """Says why a recipe ends after a round; empty where it goes on.

    Args:
        round_number: Rounds done before this one.
        rounds: Rounds of new items in all.
        targets: Items after which new ones would be written.
        kept: New items of this round; None where none were asked for yet.
        dev: Dev score of each student so far; empty without dev items.
        patience: Rounds in a row without a better dev score after which to stop; None: never.
    """
    if round_number >= rounds:
        return LAST_ROUND
    if patience is not None and dev:
        best_at = max(range(len(dev)), key=lambda place: (dev[place], -place))
        if len(dev) - 1 - best_at >= patience:
            return NO_GAIN
    if targets == 0:
        return NOTHING_WRONG
    return NO_NEW_ITEM if kept == 0 else ""


def chosen_round(dev: Sequence[float], rounds: int) -> int:
    """Returns which student a run ends with: the first of the best ones, else the last."""
    return max(range(len(dev)), key=lambda place: (dev[place], -place)) if dev else rounds - 1
