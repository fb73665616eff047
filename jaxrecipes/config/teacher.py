"""The section of a teacher: who writes the texts that a recipe asks for."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from jaxrecipes.config.section import Section


class LocalTeacherSection(Section):
    """A model that is decoded in this process, on its devices."""

    kind: Literal["local"] = Field(description="A model of ours.")
    checkpoint: str | None = Field(
        default=None,
        min_length=1,
        description="A decoder, written as model.checkpoint is. null: the model of the experiment "
        "before it is trained.",
    )
    revision: str | None = Field(
        default=None, description="Commit hash, tag or branch of a hub id. null: the newest."
    )
    slots: int = Field(
        default=32, ge=1, le=65_536, description="Texts that are written at the same time."
    )


class BudgetSection(Section):
    """The most that may be spent on a teacher in one run folder, reruns included."""

    requests: int | None = Field(
        default=None, ge=0, description="Times that it is asked, retries included. null: any."
    )
    tokens: int | None = Field(
        default=None,
        ge=0,
        description="Tokens that it reads and writes. What a request could cost at most is set "
        "aside before it is sent, so the limit holds whatever the server does. null: any.",
    )


class OpenAITeacherSection(Section):
    """A server that speaks the protocol of OpenAI: vLLM, SGLang, llama.cpp, transformers serve."""

    kind: Literal["openai"] = Field(description="A server; needs the extra `teachers`.")
    base_url: str = Field(
        min_length=1, description="Its address, up to and with /v1 at most servers."
    )
    model: str = Field(min_length=1, description="The model's name there.")
    key_variable: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds the API key. The key itself never stands in a "
        "config, and is written nowhere. null: the server wants none.",
    )
    concurrency: int = Field(
        default=8, ge=1, le=4096, description="Requests on their way at the same time."
    )
    timeout: float = Field(
        default=300.0,
        gt=0,
        le=86_400,
        description="Seconds after which a call is given up, whatever has come of its answer.",
    )
    attempts: int = Field(
        default=6,
        ge=1,
        le=100,
        description="Calls for one request: again after status 429 and 5xx, timeouts, answers that "
        "are cut off or cannot be read; never after other errors.",
    )
    first_wait: float = Field(
        default=1.0,
        gt=0,
        le=600,
        description="Seconds before the second call, less a random part; twice as many before each "
        "later one, up to a minute. A server's Retry-After comes on top.",
    )
    give_up_after: int = Field(
        default=20,
        ge=1,
        description="After so many requests in a row that failed although they were tried again, "
        "no more are made.",
    )
    stream: Literal["off", "plain", "with_usage"] = Field(
        default="off",
        description="Whether answers are sent in pieces. with_usage: the number of tokens is asked "
        "for (OpenAI, vLLM); plain: it is not (transformers serve sends it unasked).",
    )
    last_turn: Literal["refuse", "continue_final_message"] = Field(
        default="refuse",
        description="Requests that begin the assistant's answer. continue_final_message: the "
        "server goes on with it (vLLM, SGLang). refuse: they are errors.",
    )
    token_limit: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="The field that limits a chat's answer; servers differ."
    )
    budget: BudgetSection = Field(
        default_factory=BudgetSection, description="The most that may be spent."
    )

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            host = parts.hostname
        except ValueError:
            parts, host = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not host:
            raise PydanticCustomError(
                "address", "expected an address such as http://localhost:8000/v1"
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise PydanticCustomError(
                "address",
                "an address with a user, a password or a query would be written into files; give "
                "the key in an environment variable (key_variable)",
            )
        return value.rstrip("/")


TeacherSection = Annotated[LocalTeacherSection | OpenAITeacherSection, Field(discriminator="kind")]
