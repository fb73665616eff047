"""From replies to what was asked for; what cannot be used is kept with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from jaxrecipes.durable import write_json_lines
from jaxrecipes.generate.teacher import Reply

Answer = TypeVar("Answer")
CUT_OFF, NO_ANSWER = "cut off", "no answer"


class RejectedAnswerError(Exception):
    """An answer that cannot be used; the message is a short reason, and reasons are counted."""


@dataclass(frozen=True)
class Reject:
    """A reply that was not used.

    Attributes:
        id: The request's.
        reason: Why, in a few words that other rejects share.
        text: What the teacher wrote; for a failed reply, how it failed.
    """

    id: str
    reason: str
    text: str


@dataclass(frozen=True)
class Parsed(Generic[Answer]):
    """Replies, each either an answer or a reject.

    Attributes:
        answers: Request id -> answer.
        rejects: The others.
    """

    answers: Mapping[str, Answer]
    rejects: Sequence[Reject]

    @property
    def reasons(self) -> dict[str, int]:
        """How many were rejected for which reason, the most frequent first."""
        return dict(Counter(reject.reason for reject in self.rejects).most_common())


def parse_replies(
    replies: Mapping[str, Reply],
    parse: Callable[[str, str], Answer],
    *,
    keep_cut: bool = False,
) -> Parsed[Answer]:
    """Reads every reply with a parser.

    Args:
        replies: Request id -> reply.
        parse: From a request's id and a text to the answer; raises RejectedAnswerError where the
            text is none.
        keep_cut: Parse texts, too, that ended only because they were at their longest.

    Returns:
        Each reply once: its answer or the reason why there is none.
    """
    answers: dict[str, Answer] = {}
    rejects = []
    for id_, reply in replies.items():
        if reply.finish == "failed":
            rejects.append(Reject(id_, NO_ANSWER, reply.error))
        elif reply.finish == "length" and not keep_cut:
            rejects.append(Reject(id_, CUT_OFF, reply.text))
        else:
            try:
                answers[id_] = parse(id_, reply.text)
            except RejectedAnswerError as error:
                rejects.append(Reject(id_, str(error), reply.text))
    return Parsed(answers, rejects)


def write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    """Writes rejects as JSONL, to be looked at.

    Raises:
        JaxrecipesError: The file cannot be written.
    """
    rows = [{"id": one.id, "reason": one.reason, "text": one.text} for one in rejects]
    write_json_lines(path, rows)
