"""What may be spent on a teacher, and a ledger that keeps to it, also after a kill."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxrecipes.errors import ConfigError
from jaxrecipes.generate.reply_store import ReplyStore
from jaxrecipes.generate.teacher import Request

# What a chat template puts around a turn: names of roles, control tokens, a default system line.
_TOKENS_AROUND_A_TURN = 32


@dataclass(frozen=True)
class Budget:
    """The most that may be spent on one teacher in one store.

    Attributes:
        requests: Times that it is asked, retries included; None: any number.
        tokens: Tokens that it reads and writes; None: any number.
    """

    requests: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuses limits below 0.

        Raises:
            ConfigError: Names the limit.
        """
        for name in ("requests", "tokens"):
            limit = getattr(self, name)
            if limit is not None and limit < 0:
                raise ConfigError(f"budget: {name} is {limit}; expected 0 or more, or none")


UNLIMITED = Budget()


@dataclass(frozen=True)
class Grant:
    """Leave to ask once.

    Attributes:
        number: Its entry in the store; None where none was made yet.
        tokens: What is set aside for it: as much as it can cost.
    """

    number: int | None
    tokens: int


class Ledger:
    """Counts what is spent on a teacher, before it is spent; several threads may use it.

    The most that a request can cost is written down before it is sent and replaced by what it did
    cost afterwards. So the limits hold whatever the teacher answers, and a process that is killed
    in between leaves too much on the books, never too little.
    """

    def __init__(self, budget: Budget, store: ReplyStore, identity: Mapping[str, Any]) -> None:
        """Goes on from what the store says was spent on this teacher."""
        self._budget, self._store, self._identity = budget, store, identity
        self._lock = threading.Lock()
        self._requests, self._tokens = store.spent(identity)

    @property
    def spent(self) -> tuple[int, int]:
        """Requests and tokens, with what is set aside for requests that are on their way."""
        with self._lock:
            return self._requests, self._tokens

    def take(self, request: Request, *, written: bool = True) -> Grant | None:
        """Sets the most that a request can cost aside.

        Args:
            request: It is about to be sent.
            written: Write it down now, as spent, whatever happens to this process. Otherwise only
                `settle` does: for requests that wait in this process, and cost nobody anything yet.

        Returns:
            The grant; None where the budget does not allow it.
        """
        tokens = most_tokens(request)
        with self._lock:
            limit = self._budget.requests
            if limit is not None and self._requests + 1 > limit:
                return None
            if self._budget.tokens is not None and self._tokens + tokens > self._budget.tokens:
                return None
            number = self._store.begin_spending(self._identity, tokens) if written else None
            self._requests += 1
            self._tokens += tokens
        return Grant(number, tokens)

    def settle(self, grant: Grant, tokens: int | None) -> None:
        """Writes down what a request did cost; None where nobody knows: then all that it could."""
        used = grant.tokens if tokens is None else tokens
        with self._lock:
            if grant.number is None:
                self._store.begin_spending(self._identity, used)
            elif used != grant.tokens:
                self._store.settle_spending(grant.number, used)
            self._tokens += used - grant.tokens

    def explain(self) -> str:
        """Says that the budget is spent, and what to do."""
        requests, tokens = self.spent
        return (
            f"the budget is spent: {_of(requests, self._budget.requests)} requests, "
            f"{_of(tokens, self._budget.tokens)} tokens; raise it and run the same command again, "
            "answers that are there are not asked for again"
        )


def _of(spent: int, limit: int | None) -> str:
    return f"{spent:,}" if limit is None else f"{spent:,} of {limit:,}"


def most_tokens(request: Request) -> int:
    """Returns a number of tokens that a request cannot exceed, read and written.

    No tokenizer in use makes more tokens of a text than it has bytes.
    """
    texts = [request.prompt or "", *(message.content for message in request.messages)]
    read = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return read + _TOKENS_AROUND_A_TURN * len(texts) + request.max_new_tokens
