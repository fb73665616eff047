"""New items from a teacher: asked for in waves, read, refused with a reason or kept."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from rich.console import Console

from jaxrecipes.config.llm2llm import AugmentSection
from jaxrecipes.durable import hash_values
from jaxrecipes.evaluate.answer_tasks import AnswerTask
from jaxrecipes.evaluate.duplicates import NearDuplicates
from jaxrecipes.experiment.ask_progress import asking
from jaxrecipes.generate.ask import ask
from jaxrecipes.generate.budget import Budget
from jaxrecipes.generate.new_items import Example, ItemWriter, read_answer
from jaxrecipes.generate.reply_store import ReplyStore
from jaxrecipes.generate.sampling import GREEDY, Sampling
from jaxrecipes.generate.teacher import Reply, Request, Teacher
from jaxrecipes.recipes.llm2llm import Record

Manner = Literal["similar", "rephrased"]
# float32 [texts, width], of length one.
Embed = Callable[[Sequence[str]], np.ndarray]
FAILED, UNREADABLE, NEAR, ALIKE, DISAGREES, OTHER_ANSWER = (
    "the teacher gave no answer",
    "its answer cannot be read",
    "near duplicate (ROUGE-L)",
    "near duplicate (embedding)",
    "the teacher's own answer differs",
    "another answer than the item rephrased",
)
# Earlier new items for a target that the teacher is shown; more would only lengthen the prompt.
_SHOWN = 4


@dataclass(frozen=True)
class Reject:
    """An answer that did not become an item.

    Attributes:
        parent_id: The item that it was to be like.
        request: Key of the request.
        attempt: Number of the request among those for its parent in its round.
        reason: Why not.
        text: What the teacher said; the error where it said nothing.
    """

    parent_id: str
    request: str
    attempt: int
    reason: str
    text: str


@dataclass
class Written:
    """What a round of new items brought.

    Attributes:
        records: New items.
        rejects: What was refused.
        wanted: Items that were asked for.
    """

    records: list[Record] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    wanted: int = 0


@dataclass(frozen=True)
class Augmenter:
    """Lets a teacher write new items.

    Attributes:
        teacher: Who writes.
        store: Where its answers are kept.
        budget: The most that may be spent; None: anything.
        task: How answers are read.
        writer: How the teacher is asked.
        section: How often, and what is kept.
        embed: Finds duplicates, too; None: ROUGE-L alone does.
        console: For the progress line.
    """

    teacher: Teacher
    store: ReplyStore
    budget: Budget | None
    task: AnswerTask
    writer: ItemWriter
    section: AugmentSection
    embed: Embed | None
    console: Console

    @property
    def identity(self) -> str:
        """Hash of who writes."""
        return hash_values({"teacher": dict(self.teacher.identity)})

    def write(
        self,
        records: Sequence[Record],
        targets: Sequence[Record],
        *,
        round_number: int,
        seed: int,
        title: str,
        manner: Manner = "similar",
        wrong: Mapping[str, str] | None = None,
    ) -> Written:
        """Writes one new item for each target.

        Every request has a seed of its own from run, round, target and attempt: a run that was
        killed asks the same again, and finds the answers that were there.

        Args:
            records: The training set; no new question may repeat one of it.
            targets: Items to write new ones after; one that occurs twice gets two.
            round_number: The round, from 1.
            seed: The run's seed.
            title: What the progress line says.
            manner: similar: another item of the same skill. rephrased: the same one in other words.
            wrong: Item -> what the student answered, where the teacher is to see it.

        Returns:
            The new items, at most one for each target, and what was refused.
        """
        quota = Counter(record.id for record in targets)
        by_id = {record.id: record for record in targets}
        found = Written(wanted=len(targets))
        kept: dict[str, list[Record]] = {key: [] for key in by_id}
        tried = Counter[str]()
        texts = [record.question for record in records]
        seen = NearDuplicates(1.0 if manner == "rephrased" else self.section.rouge_l, texts)
        vectors = _Vectors(self.embed, self.section.similarity, texts, manner)
        earlier = {key: [one for one in records if one.parent_id == key] for key in by_id}
        while True:
            wave: list[tuple[Record, int, Request]] = []
            for key, target in by_id.items():
                left = quota[key] * self.section.attempts - tried[key]
                for _ in range(min(quota[key] - len(kept[key]), left)):
                    others = [*earlier[key], *kept[key]][-_SHOWN:]
                    attempt = tried[key]
                    request = self._request(
                        target, others, round_number, seed, attempt, manner, wrong or {}
                    )
                    wave.append((target, attempt, request))
                    tried[key] += 1
            if not wave:
                return found
            with asking(self.console, title) as show:
                replies = ask(
                    self.teacher,
                    [request for _, _, request in wave],
                    store=self.store,
                    budget=self.budget,
                    progress=show,
                )
            self._judge(
                wave, replies, found, kept, seen, vectors, round_number=round_number, manner=manner
            )
            if all(reply.finish == "failed" for reply in replies.values()):
                return found  # a server that is gone, or a budget that is spent

    def _request(
        self,
        target: Record,
        others: Sequence[Record],
        round_number: int,
        seed: int,
        attempt: int,
        manner: Manner,
        wrong: Mapping[str, str],
    ) -> Request:
        place = f"{seed}/{round_number}/{target.id}/{attempt}"
        shown = wrong.get(target.id) if self.section.show_wrong_answer else None
        example = Example(target.question, target.answer, shown)
        ask_for = self.writer.similar if manner == "similar" else self.writer.rephrased
        examples = [Example(one.question, one.answer) for one in others]
        return ask_for(place, example, examples, seed=_seed(place))

    def _judge(
        self,
        wave: Sequence[tuple[Record, int, Request]],
        replies: Mapping[str, Reply],
        found: Written,
        kept: dict[str, list[Record]],
        seen: NearDuplicates,
        vectors: _Vectors,
        *,
        round_number: int,
        manner: Manner,
    ) -> None:
        """Keeps the good answers of a wave, in the order of its requests."""
        read: dict[str, Example] = {}

        def refuse(target: Record, attempt: int, request: Request, reason: str) -> None:
            reply = replies[request.id]
            text = reply.error if reply.finish == "failed" else reply.text
            found.rejects.append(Reject(target.id, request.key, attempt, reason, text))

        candidates = []
        for target, attempt, request in wave:
            item = self._read(replies[request.id], target, manner)
            if isinstance(item, Example) and seen.find(item.question) is not None:
                item = NEAR
            if isinstance(item, str):
                refuse(target, attempt, request, item)
            else:
                read[request.id] = item
                candidates.append((target, attempt, request))
        agreed = self._verified(read)
        for target, attempt, request in candidates:
            item = read[request.id]
            reason = "" if agreed[request.id] else DISAGREES
            # Once more: what was kept a moment ago is there now, too.
            if not reason and seen.find(item.question) is not None:
                reason = NEAR
            if not reason and vectors.repeats(item.question):
                reason = ALIKE
            if reason:
                refuse(target, attempt, request, reason)
                continue
            seen.add(item.question)
            vectors.add(item.question)
            record = Record(
                id=f"r{round_number}-{target.id}-{attempt}",
                question=item.question,
                answer=target.answer if manner == "rephrased" else item.answer,
                seed_id=target.seed_id,
                parent_id=target.id,
                depth=target.depth + 1,
                round=round_number,
                teacher=self.identity,
                request=request.key,
                attempt=attempt,
            )
            kept[target.id].append(record)
            found.records.append(record)

    def _read(self, reply: Reply, target: Record, manner: Manner) -> Example | str:
        if reply.finish == "failed":
            return FAILED
        finished = reply.finish == "stop"
        item = self.writer.read(reply.text, finished=finished)
        if isinstance(item, str):
            return item
        said = self.task.read(item.answer)
        if said is None or not self.task.fits(item.question, said):
            return UNREADABLE
        if manner == "rephrased" and not self.task.is_right(said, target.answer):
            return OTHER_ANSWER
        return item

    def _verified(self, items: Mapping[str, Example]) -> dict[str, bool]:
        """Asks the teacher for the answers of new questions, without showing theirs."""
        samples = self.section.verify_samples
        if samples == 0 or not items:
            return dict.fromkeys(items, True)
        sampling = GREEDY if samples == 1 else Sampling(self.section.verify_temperature)
        requests = [
            self.writer.answered(
                f"{key}/{number}", item.question, sampling=sampling, seed=_seed(f"{key}/{number}")
            )
            for key, item in items.items()
            for number in range(samples)
        ]
        with asking(self.console, "answers to new questions") as show:
            replies = ask(
                self.teacher, requests, store=self.store, budget=self.budget, progress=show
            )
        return {
            key: self.task.majority_is_right(
                [read_answer(replies[f"{key}/{number}"].text) for number in range(samples)],
                item.answer,
            )
            for key, item in items.items()
        }


class _Vectors:
    """Questions as vectors, where an encoder finds duplicates."""

    def __init__(
        self, embed: Embed | None, similarity: float, texts: Sequence[str], manner: Manner
    ) -> None:
        # Another wording of a question is like it, on purpose.
        self._embed = embed if manner == "similar" else None
        self._similarity = similarity
        self._known: Any = None if self._embed is None else self._embed(texts)
        self._latest: tuple[str, Any] = ("", None)

    def repeats(self, text: str) -> bool:
        if self._embed is None:
            return False
        vector = self._embed([text])
        self._latest = (text, vector)
        return bool((self._known @ vector[0]).max() >= self._similarity)

    def add(self, text: str) -> None:
        if self._embed is None:
            return
        vector = self._latest[1] if self._latest[0] == text else self._embed([text])
        self._known = np.concatenate([self._known, vector])


def _seed(place: str) -> int:
    return int.from_bytes(hashlib.sha256(place.encode()).digest()[:4], "big")
