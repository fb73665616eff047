"""What is asked of a teacher and what it answers: one protocol, whoever writes the texts.

A request asks for one text; for several samples of a prompt, make requests that differ in their
seed. Its key is a hash of everything that shapes the answer but the teacher, so that answers can be
kept and found again after a kill.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from jaxrecipes.durable import hash_values
from jaxrecipes.errors import DataError
from jaxrecipes.generate.sampling import GREEDY, Sampling

Role = Literal["system", "user", "assistant"]
Finish = Literal["stop", "length", "failed"]


@dataclass(frozen=True)
class Message:
    """One turn of a chat.

    Attributes:
        role: Who speaks.
        content: What is said.
    """

    role: Role
    content: str


@dataclass(frozen=True)
class Request:
    """One text that is asked for.

    Attributes:
        id: The caller's name for it, unique within a call; it does not shape the text.
        messages: A chat, which the teacher renders with its own template. If the last turn is the
            assistant's, the answer goes on with it, and its text is what comes after.
        prompt: Plain text that the model continues, without chat markup. Either this or `messages`.
        max_new_tokens: Longest answer, in the teacher's tokens.
        sampling: How tokens are drawn.
        stop: The answer ends before the first of these texts.
        seed: What is drawn depends on it; two requests with the same seed and prompt are answered
            alike by a teacher that is deterministic.
    """

    id: str
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    max_new_tokens: int = 256
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses a request that no teacher can answer.

        Raises:
            DataError: Names the request.
        """
        if bool(self.messages) == (self.prompt is not None):
            raise DataError(f"request {self.id!r}: expected either messages or a prompt")
        for message in self.messages:
            if message.role not in get_args(Role):
                raise DataError(
                    f"request {self.id!r}: role {message.role!r}; expected one of "
                    f"{', '.join(get_args(Role))}"
                )
        if self.max_new_tokens < 1:
            raise DataError(
                f"request {self.id!r}: max_new_tokens is {self.max_new_tokens}; expected 1 or more"
            )
        if "" in self.stop:
            raise DataError(f"request {self.id!r}: an empty stop text would end every answer")

    @property
    def key(self) -> str:
        """SHA-256 of everything that shapes the answer but the teacher; the id does not."""
        values = dataclasses.asdict(self)
        del values["id"]
        return hash_values(values)


@dataclass(frozen=True)
class Reply:
    """What a teacher answered to one request.

    Attributes:
        id: The request's.
        text: The answer without stop text and special tokens; empty if it failed.
        finish: stop: it ended by itself or before a stop text. length: it was cut at
            `max_new_tokens`. failed: there is no answer.
        error: Why it failed; empty otherwise.
        prompt_tokens: Tokens read, as the teacher counts; None if it does not.
        new_tokens: Tokens written, likewise.
    """

    id: str
    text: str
    finish: Finish
    error: str = ""
    prompt_tokens: int | None = None
    new_tokens: int | None = None


class Teacher(Protocol):
    """Whoever writes texts: a model of ours, a server, a Python function."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON values that, with a request, determine its answer: weights, model name, template."""
        ...

    def answer(self, requests: Sequence[Request], on_reply: Callable[[Reply], None]) -> None:
        """Answers each request once, in any order.

        Args:
            requests: With distinct ids.
            on_reply: Called once for each request as soon as its answer is there, also for those
                that failed; never from two threads at the same time.
        """
        ...
