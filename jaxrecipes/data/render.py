"""Conversations to text, with the characters that the assistant is taught to write.

A turn's characters are found by rendering the conversation again with one thing changed and by
comparing whole texts; each comparison is checked for this very conversation, and nothing is ever
found by searching for a marker:

- where the turn begins: what the template writes for the turns before it, generation prompt
  included, has to be the beginning of the whole text: it is the prompt that a model answers;
- where its content is: with one private-use character in the content's place, the text before and
  after that character has to be the beginning and the end of the whole text;
- where it ends: at the first control token after the content that the template itself wrote, no
  further than what follows the content agrees with what follows it where the turn is the last one.

Templates with `{% generation %}` blocks say it themselves; the end token is added where they leave
it out. What cannot be proven is refused, with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxrecipes.data.chat_template import ChatTemplate, Message, Spans
from jaxrecipes.data.examples import Completion, Conversation
from jaxrecipes.data.marks import (
    MarkingTokenizer,
    break_special,
    choose_marks,
    remove_marks,
    strings_of,
)
from jaxrecipes.errors import DataError

Turns = Literal["all", "last"]
LEFT_OUT = "template left out a part of the answer"


@dataclass(frozen=True)
class Rendered:
    """A text of which parts are supervised.

    Attributes:
        text: The whole text, with marks in it (see `marks`).
        marks: The characters that are marks: one in use, one that is still free.
        spans: Characters of `text` that are supervised, in order, apart from each other.
        open_end: The last span ends the text and has no end token: one has to be appended.
        notes: What the template did to the data, in words that can be counted.
    """

    text: str
    marks: str
    spans: Spans
    open_end: bool
    notes: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The text as a reader sees it."""
        return remove_marks(self.text, self.marks)


def render_completion(example: Completion, tokenizer: MarkingTokenizer) -> Rendered:
    """Joins a prompt and its completion; the completion is supervised, and an end token after it.

    Args:
        example: The example.
        tokenizer: Says what control tokens are: in both texts they are ordinary text.
    """
    marks = choose_marks([example.prompt, example.completion], 2)
    whole = example.prompt + example.completion
    # Marked as a whole: a control token may stand across the border.
    text = break_special(whole, tokenizer.special, marks[0])
    border = _place_in_marked(text, len(example.prompt), marks[0])
    return Rendered(text, marks, ((border, len(text)),), open_end=True)


def render_conversation(
    conversation: Conversation,
    template: ChatTemplate,
    tokenizer: MarkingTokenizer,
    *,
    turns: Turns = "all",
) -> Rendered:
    """Renders a conversation and finds what the assistant writes in it.

    Args:
        conversation: The conversation.
        template: The model's chat template.
        tokenizer: Says what control tokens are.
        turns: Supervise `all` assistant turns, or the `last` one only.

    Raises:
        DataError: The template refuses the conversation; it treats a control token in a message as
            its own; or it writes an assistant turn in a way that leaves open which characters are
            the assistant's. The message says which turn and why.
    """
    texts = [template.text, *strings_of(conversation.messages), *strings_of(conversation.tools)]
    mark, sentinel = choose_marks(texts, 2)
    messages = break_special(conversation.messages, tokenizer.special, mark)
    tools = break_special(conversation.tools, tokenizer.special, mark)
    where = f"{conversation.where}: example {conversation.id!r}"
    try:
        chat = _Chat(template, messages, tools, tokenizer, mark, sentinel)
        if any(mark in text for text in strings_of([messages, tools])):
            plain = template.render(conversation.messages, conversation.tools)
            if remove_marks(chat.text, mark) != plain:
                raise DataError(
                    "a message spells out a control token that the chat template reads as its own; "
                    "take it out of the data"
                )
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    wanted = [
        index
        for index in range(conversation.first_supervised, len(messages))
        if messages[index]["role"] == "assistant"
    ]
    marked = template.marks_generation
    spans: list[tuple[int, int]] = []
    notes: list[str] = []
    open_end = False
    for index in wanted[-1:] if turns == "last" else wanted:
        try:
            found = _generation_turn(chat, index) if marked else _derived_turn(chat, index)
            if spans and found.spans[0][0] < spans[-1][1]:
                raise DataError("it overlaps the turn before it in the rendered text")
        except DataError as error:
            raise DataError(
                f"{where}: message {index} (assistant): it cannot be told which characters of the "
                f"rendered conversation are the assistant's: {error}. Use a chat template with "
                "{% generation %} blocks around what the assistant writes "
                "(data.supervise.chat_template), supervise the last turn only "
                "(data.supervise.turns: last), or change the row."
            ) from None
        spans += found.spans
        notes += found.notes
        open_end = found.open_end
    return Rendered(chat.text, mark + sentinel, tuple(spans), open_end, tuple(dict.fromkeys(notes)))


def render_prompt(
    messages: Sequence[Message], template: ChatTemplate, tokenizer: MarkingTokenizer
) -> Rendered:
    """Renders what a model is to answer; nothing of it is supervised.

    Args:
        messages: The turns so far.
        template: The model's chat template.
        tokenizer: Says what control tokens are; in messages they are ordinary text.

    Raises:
        DataError: The template refuses the messages.
    """
    marks = choose_marks([template.text, *strings_of(messages)], 2)
    broken = break_special(messages, tokenizer.special, marks[0])
    text = template.render(broken, add_generation_prompt=True)
    return Rendered(text, marks, (), open_end=False)


@dataclass(frozen=True)
class _Turn:
    """What was found of one turn; see `Rendered`."""

    spans: Spans
    open_end: bool
    notes: tuple[str, ...] = ()


class _Chat:
    """A conversation and the renderings that are compared."""

    def __init__(
        self,
        template: ChatTemplate,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        tokenizer: MarkingTokenizer,
        mark: str,
        sentinel: str,
    ) -> None:
        self.template, self.messages, self.tools = template, messages, tools
        self.controls, self.mark, self.sentinel = tokenizer.controls, mark, sentinel
        self.text = template.render(messages, tools)

    def beginning(self, count: int, *, prompt: bool = False) -> str | None:
        """Renders the first turns; None where the template refuses to."""
        if count == len(self.messages) and not prompt:
            return self.text
        return self._render(self.messages[:count], prompt) if count else None

    def turn_start(self, index: int) -> int:
        """Finds a place behind the content of the turn before and not behind this turn's.

        Raises:
            DataError: That cannot be proven.
        """
        if index in (0, len(self.messages)):
            return len(self.text) if index else 0
        before = self.beginning(index)
        agreed = 0 if before is None else len(os.path.commonprefix([self.text, before]))
        if before is not None and agreed == len(before):
            return agreed
        content = self.content(index - 1)
        if content is None:
            raise DataError("where it begins depends on the turns after it")
        return max(agreed, content[1])

    def content(self, index: int) -> tuple[int, int] | None:
        """Finds the characters that a turn's content became; None where that cannot be proven."""
        return self._content(index, len(self.messages), self.text)

    def tail(self, index: int) -> str | None:
        """Returns what follows a turn's content if the turn is the last one; None if unknown."""
        done = self.beginning(index + 1)
        content = None if done is None else self._content(index, index + 1, done)
        return None if done is None or content is None else done[content[1] :]

    def _content(self, index: int, count: int, text: str) -> tuple[int, int] | None:
        changed: list[Message] = list(self.messages[:count])
        changed[index] = {**self.messages[index], "content": self.sentinel}
        other = self._render(changed, False)
        if other is None or other.count(self.sentinel) != 1:
            return None
        before, after = other.split(self.sentinel)
        agrees = text.startswith(before) and text.endswith(after)
        if not agrees or len(before) + len(after) > len(text):
            return None
        return len(before), len(text) - len(after)

    def _render(self, messages: Sequence[Message], prompt: bool) -> str | None:
        try:
            return self.template.render(messages, self.tools, add_generation_prompt=prompt)
        except DataError:
            return None


def _derived_turn(chat: _Chat, index: int) -> _Turn:
    text, message = chat.text, chat.messages[index]
    given = message.get("content", "")
    # What a message holds beside its content is written by the assistant too, and where the
    # template puts it is not known.
    content = chat.content(index) if set(message) <= {"role", "content"} else None
    prompt = chat.beginning(index, prompt=True)
    prompted = prompt is not None and text.startswith(prompt)
    if content is None:
        if not prompted:
            raise DataError("its text depends on the turns after it")
        start = len(prompt or "")
        end, open_end = _end_of_whole_turn(chat, start, chat.beginning(index + 1))
        whole, said = _solid(text[start:end], chat), _solid(given, chat)
        if set(message) <= {"role", "content"}:
            closed = whole[len(said) :]
            kept = whole.startswith(said) and (not closed or chat.controls.fullmatch(closed))
        else:
            kept = said in whole
        if not kept:
            raise DataError("the chat template rewrites or leaves out what it says")
        return _Turn(((start, end),), open_end)
    written = text[slice(*content)]
    cut = written.strip() != given.strip()
    if cut and (not written.strip() or written.strip() not in given):
        raise DataError(f"the chat template rewrites what it says (to {written[:40]!r})")
    start = content[0]
    if prompted and len(prompt or "") <= start:
        lead = text[len(prompt or "") : start]
        # Without a generation prompt, what comes before the content is the turn's header; with
        # one, it is the beginning of the answer (the space of Llama 2, Qwen 3's empty thoughts).
        if prompt != chat.beginning(index) or not lead.strip():
            start = len(prompt or "")
    end, open_end = _end_after(chat, content[1], chat.tail(index))
    return _Turn(((start, end),), open_end, (LEFT_OUT,) if cut else ())


def _end_after(chat: _Chat, end: int, tail: str | None) -> tuple[int, bool]:
    """Finds where a turn really ends after what the assistant says.

    Args:
        chat: The conversation.
        end: End of what the assistant says.
        tail: What follows it where the turn is the last one; None where that is not known.

    Returns:
        The end, and whether there is no end token although the text ends here.
    """
    text = chat.text
    # What follows the turn only where it is the last one (an end of text), or only where another
    # turn follows (that turn's header), is not its end.
    agreed = end + len(os.path.commonprefix([text[end:], tail or ""]))
    found = chat.controls.search(text, end, agreed)
    if found is not None:
        return found.end(), False
    if tail is None or agreed < end + len(tail):
        raise DataError("where it ends depends on the turns after it")
    return agreed, agreed == len(text)


def _end_of_whole_turn(chat: _Chat, start: int, done: str | None) -> tuple[int, bool]:
    """Finds the end of a turn of which only the beginning is known."""
    if done is None or not chat.text.startswith(done):
        raise DataError("its text depends on the turns after it")
    end = _without_blank_after_control(chat, start, len(done))
    return end, end == len(chat.text) and not _ends_with_control(chat, start, end)


def _generation_turn(chat: _Chat, index: int) -> _Turn:
    text, spans = chat.template.render_marked(chat.messages, chat.tools)
    if text != chat.text:
        raise DataError("its {% generation %} blocks change what the chat template writes")
    first, last = chat.turn_start(index), chat.turn_start(index + 1)
    own = [span for span in spans if first <= span[0] < last]
    if not own:
        raise DataError("the chat template has {% generation %} blocks, but none around this turn")
    content = chat.content(index) if set(chat.messages[index]) <= {"role", "content"} else None
    if content is not None and not own[0][0] <= content[0] <= content[1] <= own[-1][1]:
        raise DataError(
            f"the {{% generation %}} blocks (characters {own}) do not hold its content (characters "
            f"{content}); a block inside of a macro is reported at a wrong place"
        )
    start, end = own[-1]
    end = _without_blank_after_control(chat, max(start, content[1] if content else start), end)
    open_end = False
    if not _ends_with_control(chat, start, end):
        # The block leaves the end token out, or there is none.
        done, done_spans = chat.template.render_marked(chat.messages[: index + 1], chat.tools)
        after, open_end = _end_after(chat, end, done[done_spans[-1][1] :])
        end = after if not text[end:after].strip() or _ends_with_control(chat, end, after) else end
    own[-1] = (start, end)
    return _Turn(tuple(own), open_end)


def _without_blank_after_control(chat: _Chat, start: int, end: int) -> int:
    """Takes the blank characters off the end of a turn that stand after its end token."""
    ends = [found.end() for found in chat.controls.finditer(chat.text, start, end)]
    return ends[-1] if ends and not chat.text[ends[-1] : end].strip() else end


def _ends_with_control(chat: _Chat, start: int, end: int) -> bool:
    return any(found.end() == end for found in chat.controls.finditer(chat.text, start, end))


def _solid(text: str, chat: _Chat) -> str:
    """Returns the characters that a template has to keep: all but blanks (and marks)."""
    return "".join(remove_marks(text, chat.mark).split())


def _place_in_marked(text: str, place: int, mark: str) -> int:
    """Returns where a place of the text without marks is in the text with them."""
    seen = 0
    for at, character in enumerate(text):
        if seen == place and character != mark:
            return at
        seen += character != mark
    return len(text)
