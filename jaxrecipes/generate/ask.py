"""Asking a teacher for many answers: each once, none lost, none asked for again after a kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from jaxrecipes.errors import DataError, JaxrecipesError
from jaxrecipes.generate.budget import UNLIMITED, Budget, Grant, Ledger
from jaxrecipes.generate.reply_store import ReplyStore
from jaxrecipes.generate.teacher import Reply, Request, Teacher


@runtime_checkable
class MeteredTeacher(Teacher, Protocol):
    """A teacher that asks somebody else, perhaps more than once, and each time costs."""

    def answer_metered(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None], ledger: Ledger
    ) -> None:
        """Like `answer`, with a grant of the ledger for each attempt; without one, it failed."""
        ...


@dataclass(frozen=True)
class AskProgress:
    """How far an `ask` is.

    Attributes:
        total: Distinct requests.
        found: Of these, answered earlier.
        answered: Answered in this call.
        failed: Failed in this call.
        new_tokens: Tokens written in this call, as far as the teacher counts them.
    """

    total: int
    found: int
    answered: int = 0
    failed: int = 0
    new_tokens: int = 0

    @property
    def done(self) -> int:
        """Requests about which nothing remains to be done."""
        return self.found + self.answered + self.failed


def ask(
    teacher: Teacher,
    requests: Sequence[Request],
    *,
    store: ReplyStore,
    budget: Budget | None = None,
    progress: Callable[[AskProgress], None] | None = None,
) -> dict[str, Reply]:
    """Gets a reply for each request: from the store where there is one, else from the teacher.

    Each reply is on disk before the next is taken, so a killed call that is made again asks for
    what is missing and for nothing else. Requests with the same key are asked for once. Failed
    replies are returned and not kept: the next call asks for them again.

    Args:
        teacher: Who answers.
        requests: With distinct ids.
        store: Where replies are kept.
        budget: The most that may be spent on this teacher in this store, over all calls; what it
            does not allow fails.
        progress: Called at the start and after each reply.

    Returns:
        Id -> reply, one for each request, in their order.

    Raises:
        DataError: Two requests have the same id.
        JaxrecipesError: The teacher answers what it was not asked, or the same twice.
    """
    _check_ids(requests)
    by_key: dict[str, list[Request]] = {}
    for request in requests:
        by_key.setdefault(request.key, []).append(request)
    identity = teacher.identity
    replies = store.get(identity, by_key)
    # The first request of a key is asked for on behalf of all.
    missing = {same[0].id: key for key, same in by_key.items() if key not in replies}
    state = AskProgress(total=len(by_key), found=len(replies))
    if progress is not None:
        progress(state)

    def keep(reply: Reply) -> None:
        nonlocal state
        key = missing.pop(reply.id, None)
        if key is None:
            raise JaxrecipesError(
                f"the teacher answered {reply.id!r}, which it was not asked or had answered "
                "already; expected one reply for each request"
            )
        failed = reply.finish == "failed"
        if not failed:
            store.put(identity, key, reply)
        replies[key] = reply
        state = replace(
            state,
            answered=state.answered + (not failed),
            failed=state.failed + failed,
            new_tokens=state.new_tokens + (reply.new_tokens or 0),
        )
        if progress is not None:
            progress(state)

    if missing:
        left = [by_key[key][0] for key in missing.values()]
        if isinstance(teacher, MeteredTeacher):
            teacher.answer_metered(left, keep, Ledger(budget or UNLIMITED, store, identity))
        elif budget is not None:
            _answer_in_waves(teacher, left, keep, Ledger(budget, store, identity))
        else:
            teacher.answer(left, keep)
    for id_ in list(missing):
        keep(Reply(id_, "", "failed", error="the teacher gave no reply"))
    return {
        request.id: replace(replies[key], id=request.id)
        for request in requests
        for key in (request.key,)
    }


def _check_ids(requests: Sequence[Request]) -> None:
    seen: set[str] = set()
    for request in requests:
        if request.id in seen:
            raise DataError(
                f"two requests have the id {request.id!r}; expected each once, because replies are "
                "found by it"
            )
        seen.add(request.id)


def _answer_in_waves(
    teacher: Teacher, requests: Sequence[Request], keep: Callable[[Reply], None], ledger: Ledger
) -> None:
    """Asks for as many as the budget allows if each costs the most it can; then for more.

    Each wave frees what its requests did not use.
    """
    waiting = list(requests)
    while waiting:
        grants: dict[str, Grant] = {}
        for request in waiting:
            grant = ledger.take(request, written=False)
            if grant is None:
                break
            grants[request.id] = grant
        if not grants:
            break
        wave, waiting = waiting[: len(grants)], waiting[len(grants) :]

        def keep_and_settle(reply: Reply, grants: dict[str, Grant] = grants) -> None:
            keep(reply)
            counted = reply.prompt_tokens is not None and reply.new_tokens is not None
            used = (reply.prompt_tokens or 0) + (reply.new_tokens or 0) if counted else None
            ledger.settle(grants[reply.id], used)

        teacher.answer(wave, keep_and_settle)
    for request in waiting:
        keep(Reply(request.id, "", "failed", error=ledger.explain()))
