"""One call of an OpenAI-compatible server: what is sent, and what its answer says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

from jaxrecipes.errors import DataError
from jaxrecipes.generate.teacher import Reply, Request

Stream = Literal["off", "plain", "with_usage"]
Continue = Literal["refuse", "continue_final_message"]
TokenLimit = Literal["max_tokens", "max_completion_tokens"]

# No token of any vocabulary in use is longer; a server that writes on and on is cut off here.
_MOST_CHARACTERS_A_TOKEN = 256
_MISSING = object()


class UnreadableAnswerError(Exception):
    """The server's answer is cut off, or is not what the protocol says; another try may help."""


@dataclass(frozen=True)
class Dialect:
    """In what servers differ.

    Attributes:
        stream: Whether the answer is sent in pieces; with_usage: ended by the number of tokens,
            which must be asked for at some servers and must not at others.
        last_turn: What to do with a chat that ends with the assistant's turn. refuse: it is an
            error. continue_final_message: the field of that name (vLLM, SGLang).
        token_limit: The field that holds the longest answer.
    """

    stream: Stream = "off"
    last_turn: Continue = "refuse"
    token_limit: TokenLimit = "max_tokens"


def call_arguments(request: Request, model: str, dialect: Dialect) -> dict[str, Any]:
    """Returns the arguments of the client's `create` for a request.

    What the OpenAI protocol does not have (top_k, min_p, a repetition penalty) is sent under the
    names of vLLM, and only where it does something, so that a server that knows it not can refuse.

    Raises:
        DataError: The request goes on with the assistant's turn and the server does not.
    """
    sampling = request.sampling
    limit = dialect.token_limit if request.messages else "max_tokens"
    arguments: dict[str, Any] = {
        "model": model,
        "temperature": sampling.temperature,
        "seed": request.seed,
        limit: request.max_new_tokens,
    }
    if sampling.top_p < 1:
        arguments["top_p"] = sampling.top_p
    if request.stop:
        arguments["stop"] = list(request.stop)
    if dialect.stream != "off":
        arguments["stream"] = True
    if dialect.stream == "with_usage":
        arguments["stream_options"] = {"include_usage": True}
    extra: dict[str, Any] = {}
    if sampling.top_k:
        extra["top_k"] = sampling.top_k
    if sampling.min_p:
        extra["min_p"] = sampling.min_p
    if sampling.repetition_penalty != 1:
        extra["repetition_penalty"] = sampling.repetition_penalty
    if request.prompt is not None:
        arguments["prompt"] = request.prompt
    else:
        arguments["messages"] = [
            {"role": message.role, "content": message.content} for message in request.messages
        ]
        if request.messages[-1].role == "assistant":
            if dialect.last_turn == "refuse":
                raise DataError(
                    f"request {request.id!r} begins the assistant's answer, and the teacher's "
                    "server is not known to go on with it; set last_turn: continue_final_message "
                    "in the teacher's section if it does (vLLM and SGLang do)"
                )
            extra |= {"continue_final_message": True, "add_generation_prompt": False}
    if extra:
        arguments["extra_body"] = extra
    return arguments


async def read_answer(request: Request, answer: Any, *, streamed: bool) -> Reply:
    """Reads what the client returned.

    Args:
        request: What was asked.
        answer: A completion, or an asynchronous stream of its pieces.
        streamed: Which of them.

    Returns:
        The reply; failed where the server refused to answer.

    Raises:
        UnreadableAnswerError: See there.
    """
    text, reason, usage = (
        await _read_stream(request, answer) if streamed else _read_whole(answer, request)
    )
    prompt_tokens, new_tokens = _counts(usage)
    if reason not in ("stop", "length"):
        error = f"the server ended its answer with {reason!r}"
        return Reply(request.id, "", "failed", error, prompt_tokens, new_tokens)
    # Servers differ in whether the stop text is part of the answer; some take only four of them.
    ends = [at for stop in request.stop if (at := text.find(stop)) >= 0]
    if ends:
        text, reason = text[: min(ends)], "stop"
    return Reply(request.id, text, reason, "", prompt_tokens, new_tokens)


def _read_whole(answer: Any, request: Request) -> tuple[str, str, Any]:
    text, reason = _piece(answer, "message" if request.messages else "")
    if reason is None:
        raise UnreadableAnswerError("an answer without finish_reason")
    _check_length(len(text), request)
    return text, reason, getattr(answer, "usage", None)


async def _read_stream(request: Request, pieces: AsyncIterator[Any]) -> tuple[str, str, Any]:
    texts: list[str] = []
    reason, usage, length = None, None, 0
    async for piece in pieces:
        usage = getattr(piece, "usage", None) or usage
        if not getattr(piece, "choices", None):
            continue  # the last piece of a stream with usage has no choices
        text, ended = _piece(piece, "delta" if request.messages else "")
        reason = ended or reason
        length += len(text)
        _check_length(length, request)
        texts.append(text)
    if reason is None:
        raise UnreadableAnswerError("a stream that was cut off")
    return "".join(texts), reason, usage


def _piece(answer: Any, part: str) -> tuple[str, str | None]:
    """Returns text and finish_reason of the first choice.

    Args:
        answer: What the client made of it, without validation: whatever the server sent is in it.
        part: Where a chat's text is; empty for a plain completion.
    """
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise UnreadableAnswerError("an answer without choices")
    choice = choices[0]
    reason = getattr(choice, "finish_reason", None)
    if part:
        # A turn without text has null in its place.
        text = getattr(getattr(choice, part, None), "content", "" if part == "delta" else _MISSING)
        text = "" if text is None else text
    else:
        text = getattr(choice, "text", _MISSING)
    if not isinstance(text, str) or not (reason is None or isinstance(reason, str)):
        raise UnreadableAnswerError("an answer without text")
    return text, reason


def _check_length(length: int, request: Request) -> None:
    if length > _MOST_CHARACTERS_A_TOKEN * request.max_new_tokens:
        raise UnreadableAnswerError(
            f"an answer of more than {length:,} characters to a request for "
            f"{request.max_new_tokens:,} tokens"
        )


def _counts(usage: Any) -> tuple[int | None, int | None]:
    counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    if all(type(count) is int and 0 <= count < 2**53 for count in counts):
        return counts[0], counts[1]
    return None, None
