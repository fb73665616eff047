"""A teacher behind an OpenAI-compatible server, through the `openai` client."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxrecipes.errors import ConfigError, JaxrecipesError
from jaxrecipes.generate.budget import Grant, Ledger
from jaxrecipes.generate.openai_call import (
    Dialect,
    UnreadableAnswerError,
    call_arguments,
    read_answer,
)
from jaxrecipes.generate.retry import Retries, asked_wait, is_passing
from jaxrecipes.generate.teacher import Reply, Request

_LONGEST_ERROR = 500
_NO_KEY = "none"
# These come with status 429, which otherwise passes.
_NO_CREDIT = ("insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached")


@dataclass(frozen=True)
class Server:
    """Where a teacher is, and how it is talked to.

    Attributes:
        base_url: Up to and with /v1.
        model: The model's name there.
        key_variable: Environment variable that holds the API key; None where none is needed. The
            key itself is read when requests are made, and is written nowhere.
        concurrency: Requests on their way at the same time.
        timeout: Seconds after which a call is given up, whatever has come of its answer.
        retries: When a call is made again.
        give_up_after: After so many requests that failed one after the other, although they were
            tried again, no more are made.
        dialect: In what servers differ.
    """

    base_url: str
    model: str
    key_variable: str | None = None
    concurrency: int = 8
    timeout: float = 300.0
    retries: Retries = Retries()
    give_up_after: int = 20
    dialect: Dialect = Dialect()


class OpenAITeacher:
    """Asks a server, several requests at a time, each again as long as that may help."""

    def __init__(self, server: Server) -> None:
        """Checks what can be checked without asking.

        Raises:
            ConfigError: The client is not installed, or the variable of the key is not set.
        """
        try:
            import openai  # noqa: F401
        except ImportError:
            raise ConfigError(
                "a teacher of kind openai needs the package openai, which is not installed; run "
                "pip install 'jaxrecipes[teachers]'"
            ) from None
        self._server = server
        self._key = _read_key(server.key_variable)

    @property
    def identity(self) -> Mapping[str, Any]:
        """See ``Teacher``: the server's address, the model's name, how a turn is gone on with."""
        server = self._server
        return {
            "teacher": "openai",
            "base_url": server.base_url,
            "model": server.model,
            "last_turn": server.dialect.last_turn,
        }

    def answer(self, requests: Sequence[Request], on_reply: Callable[[Reply], None]) -> None:
        """See ``Teacher``.

        Raises:
            ConfigError: The server refuses the key, or does not know the model or the address.
            DataError: A request cannot be put in the server's dialect.
        """
        self._run(requests, on_reply, None)

    def answer_metered(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None], ledger: Ledger
    ) -> None:
        """See ``MeteredTeacher`` and ``answer``."""
        self._run(requests, on_reply, ledger)

    def _run(
        self,
        requests: Sequence[Request],
        on_reply: Callable[[Reply], None],
        ledger: Ledger | None,
    ) -> None:
        server = self._server
        # All are put in the server's words before the first one is sent.
        calls = [
            (request, call_arguments(request, server.model, server.dialect)) for request in requests
        ]
        asyncio.run(_Round(server, self._key, ledger, on_reply).run(calls))


def _read_key(variable: str | None) -> str:
    if variable is None:
        return _NO_KEY
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {variable} is not set; expected the API key of the "
            "teacher's server in it"
        )
    return key


@dataclass
class _Round:
    """One call of `answer`: all of it runs in one thread, so that replies come one by one."""

    server: Server
    key: str
    ledger: Ledger | None
    on_reply: Callable[[Reply], None]
    chance: random.Random = field(default_factory=random.Random)
    quiet_until: float = 0.0
    on_their_way: int = 0
    failed_in_a_row: int = 0
    last_error: str = ""

    async def run(self, calls: Sequence[tuple[Request, dict[str, Any]]]) -> None:
        """Works the calls off with as many tasks as may be on their way together."""
        import openai

        self.settled = asyncio.Condition()
        waiting = iter(calls)
        async with openai.AsyncOpenAI(
            api_key=self.key,
            base_url=self.server.base_url,
            timeout=self.server.timeout,
            max_retries=0,
        ) as client:

            async def work() -> None:
                for request, arguments in waiting:
                    self._finish(await self._ask(client, request, arguments))

            tasks = [
                asyncio.create_task(work()) for _ in range(min(self.server.concurrency, len(calls)))
            ]
            try:
                # Raises what the first task raised, at once.
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _finish(self, reply: Reply) -> None:
        # What one request alone is to blame for says nothing about the server.
        if reply.finish != "failed":
            self.failed_in_a_row = 0
        self.on_reply(reply)

    async def _ask(self, client: Any, request: Request, arguments: dict[str, Any]) -> Reply:
        """Tries until there is an answer, or no more tries."""
        retries, error = self.server.retries, ""
        for failed in range(retries.attempts):
            if self.failed_in_a_row >= self.server.give_up_after:
                return self._failure(
                    request,
                    f"not asked: {self.failed_in_a_row} requests in a row failed, the last with: "
                    f"{self.last_error}",
                )
            await self._sleep_until_quiet()
            grant = await self._granted(request)
            if grant is None and self.ledger is not None:
                return self._failure(request, self.ledger.explain())
            outcome = await self._try(client, request, arguments, grant)
            if isinstance(outcome, Reply):
                return outcome
            error = outcome.error
            if outcome.asked_wait is not None and outcome.asked_wait > retries.most_asked:
                error += f"; the server wants to be left alone for {outcome.asked_wait:.0f} s"
                break
            wait = retries.wait(failed + 1, outcome.asked_wait, self.chance)
            if outcome.asked_wait is not None:
                # It is meant for everybody, not for this request only.
                self._keep_quiet(wait)
            elif failed + 1 < retries.attempts:
                await asyncio.sleep(wait)
        self.failed_in_a_row += 1
        self.last_error = error
        return self._failure(request, f"{error} (tried {failed + 1} times)")

    def _keep_quiet(self, seconds: float) -> None:
        now = asyncio.get_running_loop().time()
        self.quiet_until = max(self.quiet_until, now + seconds)

    async def _sleep_until_quiet(self) -> None:
        while (left := self.quiet_until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left * self.chance.uniform(1.0, 1.1))

    async def _granted(self, request: Request) -> Grant | None:
        """Waits for a grant as long as calls on their way may cost less than is set aside."""
        if self.ledger is None:
            return None
        async with self.settled:
            while (grant := self.ledger.take(request)) is None and self.on_their_way:
                await self.settled.wait()
            if grant is not None:
                self.on_their_way += 1
        return grant

    async def _try(
        self, client: Any, request: Request, arguments: dict[str, Any], grant: Grant | None
    ) -> Reply | _Passing:
        cost: int | None = None
        try:
            outcome = await self._call(client, request, arguments)
            if isinstance(outcome, _Passing):
                cost = outcome.cost
            elif outcome.prompt_tokens is not None and outcome.new_tokens is not None:
                cost = outcome.prompt_tokens + outcome.new_tokens
            return outcome
        finally:
            if grant is not None and self.ledger is not None:
                self.ledger.settle(grant, cost)
                async with self.settled:
                    self.on_their_way -= 1
                    self.settled.notify_all()

    async def _call(
        self, client: Any, request: Request, arguments: dict[str, Any]
    ) -> Reply | _Passing:
        import openai

        completions = client.chat.completions if request.messages else client.completions
        streamed = "stream" in arguments
        try:
            # The client's own limit is one of silence: a byte now and then would keep it waiting.
            async with asyncio.timeout(self.server.timeout):
                answer = await completions.create(**arguments)
                return await read_answer(request, answer, streamed=streamed)
        except (TimeoutError, openai.APITimeoutError):
            return _Passing(f"no whole answer in {self.server.timeout:g} s")
        except openai.APIStatusError as error:
            return self._refused(request, error)
        except openai.APIConnectionError as error:
            reason = error.__cause__ or error
            # Where no connection was made, nobody worked.
            cost = 0 if type(reason).__name__ == "ConnectError" else None
            return _Passing(self._told(f"no connection ({reason})"), cost=cost)
        except openai.APIError as error:
            return _Passing(self._told(f"the server broke off: {error.message}"))
        except UnreadableAnswerError as error:
            return _Passing(self._told(f"the server sent {error}"))
        except UnicodeEncodeError:
            return self._failure(request, "the request holds half of a surrogate pair")
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            # The client parses without checking: garbage surfaces as whatever it trips over.
            return _Passing(f"the server sent what cannot be read ({type(error).__name__})")

    def _refused(self, request: Request, error: Any) -> Reply | _Passing:
        status = error.status_code
        told = self._told(f"HTTP {status}: {error.message}")
        if getattr(error, "code", None) in _NO_CREDIT:
            raise JaxrecipesError(
                f"the teacher's server {self.server.base_url} wants to be paid first ({told}); "
                "answers that are there are kept, and not asked for again"
            )
        if is_passing(status):
            cost = 0 if status == 429 else None
            return _Passing(told, asked_wait(error.response.headers), cost)
        server = self.server
        if status in (401, 403):
            raise ConfigError(
                f"the teacher's server {server.base_url} refuses the key ({told}); "
                + (
                    f"check the environment variable {server.key_variable}"
                    if server.key_variable
                    else "name the environment variable that holds it in key_variable"
                )
            )
        if status in (404, 405):
            raise ConfigError(
                f"the teacher's server {server.base_url} has no model {server.model!r}, or no such "
                f"address ({told}); check base_url, which ends with /v1 at most servers, and model"
            )
        # It was not worked on, so it cost nothing.
        return replace(self._failure(request, told), prompt_tokens=0, new_tokens=0)

    def _failure(self, request: Request, error: str) -> Reply:
        return Reply(request.id, "", "failed", error)

    def _told(self, text: str) -> str:
        """Shortens what a server said, and takes the key out should it repeat it."""
        if self.key != _NO_KEY:
            text = text.replace(self.key, "***")
        text = " ".join(text.split())
        return text if len(text) <= _LONGEST_ERROR else text[:_LONGEST_ERROR] + " …"


@dataclass(frozen=True)
class _Passing:
    """A call that failed in a way that may pass.

    Attributes:
        error: What happened.
        asked_wait: Seconds that the server wants to be left alone; None where it did not say.
        cost: Tokens that it took; None where nobody knows.
    """

    error: str
    asked_wait: float | None = None
    cost: int | None = None
