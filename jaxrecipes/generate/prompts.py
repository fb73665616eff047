"""Requests to token ids: chats by the model's template, plain texts as they are, text as data."""

from __future__ import annotations

from typing import Any

from jaxrecipes.data.chat_template import ChatTemplate, chat_template_of
from jaxrecipes.data.marks import break_special, choose_marks, marking_tokenizer
from jaxrecipes.data.render import render_prompt
from jaxrecipes.generate.teacher import Request


class PromptTokenizer:
    """Tokenizes requests for one model; made once, because copying a tokenizer takes time."""

    def __init__(self, tokenizer: Any) -> None:
        """Prepares a tokenizer.

        Args:
            tokenizer: A `PreTrainedTokenizerFast`; it is not changed. Chats need a chat template.
        """
        self._tokenizer = tokenizer
        self._marking = marking_tokenizer(tokenizer)
        self._template: ChatTemplate | None = None

    def __call__(self, request: Request) -> list[int]:
        """Returns the tokens after which the answer begins.

        Control tokens that messages or the prompt spell out are ordinary text.

        Args:
            request: What is asked. Where the last turn is the assistant's, its text follows the
                generation prompt, and the answer goes on with it.

        Raises:
            ConfigError: A chat, and the tokenizer has no chat template.
            DataError: The template refuses the messages.
        """
        if request.prompt is not None:
            return self._encode("", request.prompt)
        if self._template is None:
            self._template = chat_template_of(self._tokenizer)
        messages = [
            {"role": message.role, "content": message.content} for message in request.messages
        ]
        begun = str(messages.pop()["content"]) if messages[-1]["role"] == "assistant" else ""
        rendered = render_prompt(messages, self._template, self._marking)
        return self._encode(rendered.text, begun, rendered.marks)

    def _encode(self, start: str, text: str, marks: str = "") -> list[int]:
        """Encodes rendered text, which may hold marks, and text in which nothing is control."""
        mark = choose_marks([start, text], 1)
        whole = start + break_special(text, self._marking.special, mark)
        ids = self._marking.encode(whole, marks + mark).ids
        begin = self._marking.begin
        return ids if begin is None or ids[:1] == [begin] else [begin, *ids]
