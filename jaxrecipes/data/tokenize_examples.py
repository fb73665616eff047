"""Supervised examples to token ids with a loss mask, by the offsets of the whole text's tokens."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from jaxrecipes.data.chat_template import ChatTemplate, Message, chat_template_of
from jaxrecipes.data.example_shapes import Shape
from jaxrecipes.data.examples import Completion, Conversation, Example, Labelled
from jaxrecipes.data.marks import MarkingTokenizer, Tokens, marking_tokenizer
from jaxrecipes.data.render import (
    Rendered,
    Turns,
    render_completion,
    render_conversation,
    render_prompt,
)
from jaxrecipes.data.tokenize import TokenizedDocument, byte_ends_of, check_ids, end_token
from jaxrecipes.errors import DataError

ExampleOverlong = Literal["error", "drop", "truncate_left", "truncate_right"]
NOTHING_LEFT = "dropped: truncation left no supervised token"


@dataclass(frozen=True)
class Supervision:
    """How supervised examples become tokens.

    Attributes:
        shape: Shape of the rows; None: found from their columns.
        turns: Which assistant turns of a conversation are supervised: `all`, or the `last` one.
        overlong: What happens to an example of more tokens than a row: `error`; `drop`;
            `truncate_left` keeps its end (and the BOS), `truncate_right` its beginning. One that
            loses all supervised tokens is dropped. All of it is counted and named.
    """

    shape: Shape | None = None
    turns: Turns = "all"
    overlong: ExampleOverlong = "error"

    def key(self, tokenizer: Any) -> dict[str, str]:
        """Returns what shapes the tokens beside the source and the tokenizer, for a set's key."""
        templates = getattr(tokenizer, "chat_template", None)
        return {
            "shape": str(self.shape),
            "turns": self.turns,
            "overlong": self.overlong,
            "chat_template": hashlib.sha256(repr(templates).encode()).hexdigest(),
            "transformers": importlib.metadata.version("transformers"),
        }


class ExampleTokenizer:
    """Renders and tokenizes examples with one tokenizer and its chat template."""

    def __init__(self, tokenizer: Any, *, vocab_size: int, turns: Turns = "all") -> None:
        """Prepares a tokenizer.

        Args:
            tokenizer: A `PreTrainedTokenizerFast`; its chat template is used.
            vocab_size: Ids must be below it.
            turns: See `Supervision`.

        Raises:
            DataError: The tokenizer has no end-of-sequence token.
        """
        self.end = end_token(tokenizer, vocab_size)
        self.turns: Turns = turns
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._marking = marking_tokenizer(tokenizer)
        self._templates: dict[bool, ChatTemplate] = {}

    @property
    def begin(self) -> int | None:
        """Id of the BOS that every text begins with; None where the tokenizer puts none."""
        return self._marking.begin

    def render(self, example: Example) -> Rendered:
        """Renders one example; see `render`.

        Raises:
            ConfigError: A conversation is to be rendered and there is no chat template.
            DataError: It cannot be rendered or its supervised characters cannot be told.
        """
        if isinstance(example, Completion):
            return render_completion(example, self._marking)
        chat = example.conversation() if isinstance(example, Labelled) else example
        template = self._template(chat)
        return render_conversation(chat, template, self._marking, turns=self.turns)

    def __call__(self, example: Example) -> TokenizedDocument:
        """Renders and tokenizes one example, of any length.

        Raises:
            ConfigError: See `render`.
            DataError: See `render`; or no token would be supervised.
        """
        rendered = self.render(example)
        where = f"{example.where}: example {example.id!r}"
        try:
            tokens, text, spans = encode_spans(rendered, self._marking)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        ids, offsets = tokens.ids, np.asarray(tokens.offsets, np.int64).reshape(-1, 2)
        supervised = np.zeros(len(ids), bool)
        for start, end in spans:
            supervised |= (offsets[:, 0] >= start) & (offsets[:, 0] < end) & (offsets[:, 1] <= end)
        ends = byte_ends_of(text, offsets[:, 1], without=rendered.marks)
        begin = self.begin
        if begin is not None and ids[:2] == [begin, begin]:
            raise DataError(
                f"{where}: the chat template writes the beginning-of-sequence token twice; "
                "expected it once. Correct the template."
            )
        if begin is not None and ids[:1] != [begin]:
            ids, supervised = [begin, *ids], np.append(False, supervised)
            ends = np.append(0, ends)
        if rendered.open_end and ids[-1] != self.end:
            ids, supervised = [*ids, self.end], np.append(supervised, True)
            ends = np.append(ends, ends[-1:])
        token_ids = check_ids(np.asarray(ids, np.int64), example.id, self._vocab_size, "example")
        if not supervised[1:].any():
            raise DataError(
                f"{where}: no token of it is supervised, so nothing could be learned; rendered, it "
                f"is {rendered.shown[:400]!r}. Leave the row out, or correct the chat template."
            )
        byte_count = len(rendered.shown.encode())
        return TokenizedDocument(
            example.id, token_ids, byte_count, ends, supervised, changes=rendered.notes
        )

    def _template(self, chat: Conversation) -> ChatTemplate:
        with_tools = chat.tools is not None
        if with_tools not in self._templates:
            self._templates[with_tools] = chat_template_of(self._tokenizer, tools=with_tools)
        return self._templates[with_tools]


def tokenize_prompt(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """Tokenizes what a model is to answer, as training examples are: one BOS, text as data.

    Args:
        messages: The turns so far.
        tokenizer: A `PreTrainedTokenizerFast` with a chat template.

    Returns:
        Token ids, the generation prompt included.

    Raises:
        ConfigError: The tokenizer has no chat template.
        DataError: The template refuses the messages.
    """
    marking = marking_tokenizer(tokenizer)
    rendered = render_prompt(messages, chat_template_of(tokenizer), marking)
    ids = marking.encode(rendered.text, rendered.marks).ids
    return ids if marking.begin is None or ids[:1] == [marking.begin] else [marking.begin, *ids]


def tokenize_examples(
    examples: Iterable[Example],
    tokenizer: ExampleTokenizer,
    *,
    length: int,
    overlong: ExampleOverlong = "error",
) -> Iterator[TokenizedDocument]:
    """Tokenizes examples in their order; none is longer than a row.

    Args:
        examples: The examples.
        tokenizer: See `ExampleTokenizer`.
        length: Tokens a row.
        overlong: See `Supervision`.

    Yields:
        One document an example; one that was dropped has no tokens and says why in `changes`.

    Raises:
        DataError: See `ExampleTokenizer`; or an example is too long and `overlong` is `error`.
    """
    for example in examples:
        yield fit_length(tokenizer(example), length, overlong, begin=tokenizer.begin)


def fit_length(
    document: TokenizedDocument, length: int, overlong: ExampleOverlong, *, begin: int | None
) -> TokenizedDocument:
    """Applies the policy for examples that are longer than a row; see `Supervision`.

    Args:
        document: A tokenized example with its mask.
        length: Tokens a row.
        overlong: The policy.
        begin: The BOS that `truncate_left` keeps in front; None where there is none.

    Raises:
        DataError: It is too long and the policy is `error`.
    """
    count = len(document.token_ids)
    if count <= length:
        return document
    if overlong == "error":
        raise DataError(
            f"example {document.id!r} has {count} tokens, more than the row length {length}. Raise "
            "data.length, or set data.supervise.overlong: drop, truncate_left or truncate_right."
        )
    assert document.supervised is not None and document.byte_ends is not None
    if overlong == "drop":
        return _dropped(document, "dropped as too long")
    kept = np.arange(length)
    if overlong == "truncate_left":
        kept = np.arange(count - length, count)
        if begin is not None and document.token_ids[0] == begin:
            kept[0] = 0
    supervised = document.supervised[kept]
    if not supervised[1:].any():
        return _dropped(document, NOTHING_LEFT)
    first = 0 if kept[1] == 1 else int(document.byte_ends[kept[1] - 1])
    return replace(
        document,
        token_ids=document.token_ids[kept],
        supervised=supervised,
        byte_count=int(document.byte_ends[kept[-1]]) - first,
        byte_ends=None,
        changes=(*document.changes, f"truncated ({overlong.removeprefix('truncate_')})"),
    )


def encode_spans(
    rendered: Rendered, tokenizer: MarkingTokenizer
) -> tuple[Tokens, str, tuple[tuple[int, int], ...]]:
    """Tokenizes a rendered text so that no token stands on both sides of a span's border.

    The whole text is tokenized at once, as the model's own template is when it is used. Only where
    a token holds characters of both sides (an answer that begins with a blank or a line break), a
    mark on the border keeps them apart, as they are when a model answers a prompt.

    Returns:
        The tokens, the text that their offsets count, and the spans in it.

    Raises:
        DataError: A token stands on both sides all the same.
    """
    text, spans = rendered.text, rendered.spans
    tokens = tokenizer.encode(text, rendered.marks)
    crossed = _crossed(tokens, spans)
    if crossed:
        mark = rendered.marks[1]
        pieces, last = [], 0
        for border in crossed:
            pieces += [text[last:border], mark]
            last = border
        text = "".join([*pieces, text[last:]])

        def moved(place: int, *, after: bool) -> int:
            return place + sum(b <= place if after else b < place for b in crossed)

        spans = tuple((moved(a, after=True), moved(b, after=False)) for a, b in spans)
        tokens = tokenizer.encode(text, rendered.marks)
        if _crossed(tokens, spans):
            raise DataError(
                "the tokenizer joins the end of the prompt and the beginning of the answer into "
                "one token"
            )
    return tokens, text, spans


def _crossed(tokens: Tokens, spans: tuple[tuple[int, int], ...]) -> list[int]:
    """Returns the borders of spans that lie inside of a token."""
    borders = np.unique(np.asarray(spans, np.int64))
    offsets = np.asarray(tokens.offsets, np.int64).reshape(-1, 2)
    # The first border after a token's start lies inside of the token if it is before its end.
    following = np.searchsorted(borders, offsets[:, 0], side="right")
    inside = following < len(borders)
    found = borders[np.minimum(following, len(borders) - 1)]
    return np.unique(found[inside & (found < offsets[:, 1])]).tolist()


def _dropped(document: TokenizedDocument, reason: str) -> TokenizedDocument:
    return replace(
        document,
        token_ids=document.token_ids[:0],
        supervised=np.zeros(0, bool),
        byte_count=0,
        byte_ends=None,
        changes=(reason,),
    )
