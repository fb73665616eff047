"""A teacher that is a Python function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxrecipes.generate.teacher import Reply, Request


class ProgramTeacher:
    """Answers with what a function returns, one request after the other."""

    def __init__(
        self, function: Callable[[Request], str | Reply], identity: Mapping[str, Any]
    ) -> None:
        """Takes the function.

        Args:
            function: From a request to the answer's text, or to a reply where it wants to say how
                the answer ended; the reply's id is set here. What it raises ends the asking.
            identity: JSON values that change when the function answers differently.
        """
        self._function = function
        self._identity = {"teacher": "program", **identity}

    @property
    def identity(self) -> Mapping[str, Any]:
        """See ``Teacher``."""
        return self._identity

    def answer(self, requests: Sequence[Request], on_reply: Callable[[Reply], None]) -> None:
        """See ``Teacher``."""
        for request in requests:
            answer = self._function(request)
            if isinstance(answer, str):
                answer = Reply(request.id, answer, "stop")
            on_reply(replace(answer, id=request.id))
