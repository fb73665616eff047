"""Chat templates, rendered by the sandboxed renderer of `transformers` and by nothing else."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxrecipes.errors import ConfigError, DataError

# Some chat templates print today's date where none is given: the same conversation would become
# other tokens tomorrow. This is the date that Llama 3.1's own template falls back to.
TEMPLATE_DATE = "26 Jul 2024"
MAX_TEMPLATE_BYTES = 2**20

Message = Mapping[str, Any]
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with what it may read of its tokenizer.

    Attributes:
        text: Jinja, as `tokenizer_config.json` or `chat_template.jinja` holds it.
        special_tokens: Variables such as `bos_token` and `eos_token`.
    """

    text: str
    special_tokens: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the template's text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def marks_generation(self) -> bool:
        """Whether the template itself says what the assistant writes (`{% generation %}`)."""
        return re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", self.text) is not None

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """Renders a conversation, exactly as `tokenizer.apply_chat_template(tokenize=False)` does.

        Args:
            messages: The turns, at least one.
            tools: JSON schemas of tools; None where there are none.
            add_generation_prompt: End with what the assistant's next turn begins after.

        Raises:
            DataError: The template refuses the conversation or fails on it.
        """
        return self._render(messages, tools, add_generation_prompt, spans=False)[0]

    def render_marked(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[str, Spans]:
        """Renders a conversation and returns the characters inside of `{% generation %}` blocks.

        Raises:
            DataError: See `render`; or the renderer reports spans that are no spans of the text.
        """
        text, spans = self._render(messages, tools, False, spans=True)
        end = 0
        for first, last in spans:
            if not end <= first <= last <= len(text):
                raise DataError(
                    f"the chat template's {{% generation %}} blocks are reported at characters "
                    f"{list(spans)} of {len(text)}, which overlap or leave the text; expected one "
                    "after the other. Do not put them into macros or other blocks."
                )
            end = last
        return text, tuple((first, last) for first, last in spans if last > first)

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        *,
        spans: bool,
    ) -> tuple[str, Spans]:
        # Imported here: it takes two seconds, and documents need no template.
        from jinja2.exceptions import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        if not messages:
            raise DataError("a conversation without messages cannot be rendered")
        try:
            texts, indices = render_jinja_template(
                [[dict(message) for message in messages]],  # type: ignore[list-item]
                tools=None if tools is None else [dict(tool) for tool in tools],
                chat_template=self.text,
                return_assistant_tokens_mask=spans,
                add_generation_prompt=add_generation_prompt,
                **{"date_string": TEMPLATE_DATE, **self.special_tokens},
            )
        # A template is a program of others: what it does wrong (an index, a missing key, a type)
        # surfaces as the exception of that mistake.
        except (
            TemplateError,
            TypeError,
            ValueError,
            KeyError,
            IndexError,
            AttributeError,
        ) as error:
            reason = str(error).strip().splitlines()
            raise DataError(
                f"the chat template cannot render these messages: "
                f"{reason[0] if reason else type(error).__name__}"
            ) from None
        found: list[Any] = list(indices[0]) if spans else []
        return texts[0], tuple((int(first), int(last)) for first, last in found)


def chat_template_of(tokenizer: Any, *, tools: bool = False) -> ChatTemplate:
    """Returns the chat template of a tokenizer.

    Args:
        tokenizer: A tokenizer of `transformers`.
        tools: Take the one for conversations with tools where the tokenizer has several.

    Raises:
        ConfigError: The tokenizer has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "the model's tokenizer has no chat template, and conversations cannot be rendered "
            "without one; expected one in tokenizer_config.json or chat_template.jinja. Set "
            "data.supervise.chat_template to a Jinja file (or the template itself)."
        )
    text = tokenizer.get_chat_template(None, tools=[{}] if tools else None)
    return ChatTemplate(text, dict(tokenizer.special_tokens_map))


def read_chat_template(value: str) -> str:
    """Returns the text of a template that is given as a path or as itself.

    Args:
        value: A path; or a template, which holds `{{` or `{%`.

    Raises:
        ConfigError: There is no such file, it is no text, or the text is no valid template.
    """
    text, where = value, "data.supervise.chat_template"
    if "{{" not in value and "{%" not in value:
        path = Path(value).expanduser()
        where = str(path)
        try:
            if path.stat().st_size > MAX_TEMPLATE_BYTES:
                raise ConfigError(
                    f"{path}: larger than {MAX_TEMPLATE_BYTES} bytes; expected a chat template."
                )
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"data.supervise.chat_template: {path} cannot be read ({error.strerror}); expected "
                "a Jinja file, or the template itself (with {{ or {% in it)."
            ) from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: byte {error.start} is not UTF-8; expected text.") from None
    _check_syntax(text, where)
    return text


def _check_syntax(text: str, where: str) -> None:
    from jinja2.exceptions import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        # No conversations: the template is compiled and nothing is rendered.
        render_jinja_template([], chat_template=text)
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"{where}: line {error.lineno} of the chat template is not valid Jinja "
            f"({error.message}). Compare it with a published template."
        ) from None
