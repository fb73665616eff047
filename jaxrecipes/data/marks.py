"""Marks: characters put into a text before it is tokenized, to break it, and taken out after.

Text is data: a control token that is spelled out in a message (`<|im_end|>`) must not become that
token. A mark inside of it keeps the tokenizer from seeing it; the mark's own tokens are dropped.
A mark between two characters likewise keeps them from becoming one token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxrecipes.errors import DataError

# Private use: Unicode gives these no meaning, vocabularies no token of their own, and neither trim
# nor case mapping changes them.
FIRST_MARK, LAST_MARK = 0xE000, 0xF8FF
# What shapes markers, and so has to reach the template as it is.
_UNMARKED_KEYS = ("role",)


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text.

    Attributes:
        ids: Token ids.
        offsets: For each token, the characters of the text (marks counted) that it stands for.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True)
class MarkingTokenizer:
    """A tokenizer that tells control tokens of a template from those that data spell out.

    Attributes:
        backend: A copy of the tokenizer's own program, without what it adds by itself.
        special: Texts of special tokens; in data they are ordinary text.
        controls: Texts of special and other added tokens, blank ones left out: what a template may
            end a turn with.
        begin: Id of the token that the tokenizer itself puts in front of any text, if it does.
        end: Id of its end-of-sequence token, if it has one.
    """

    backend: Any
    special: re.Pattern[str]
    controls: re.Pattern[str]
    begin: int | None
    end: int | None

    def encode(self, text: str, marks: str) -> Tokens:
        """Tokenizes a text that holds marks, and drops the marks' tokens.

        Args:
            text: The text. Control tokens in it that no mark breaks become these tokens.
            marks: The characters that are marks.

        Raises:
            DataError: The tokenizer joins a mark with its neighbours.
        """
        encoding = self.backend.encode(text, add_special_tokens=False)
        if not any(mark in text for mark in marks):
            return Tokens(list(encoding.ids), list(encoding.offsets))
        ids, offsets = [], []
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            covered = text[start:end]
            if covered and not covered.strip(marks):
                continue
            if covered.strip(marks) != covered:
                raise DataError(
                    f"the tokenizer joins the private-use character {covered!r} with the text "
                    "around it, so that control tokens in data cannot be kept apart; use the "
                    "model's own tokenizer, or take the control tokens out of the data"
                )
            ids.append(token_id)
            offsets.append((start, end))
        return Tokens(ids, offsets)


def marking_tokenizer(tokenizer: Any) -> MarkingTokenizer:
    """Prepares a fast tokenizer of `transformers`.

    Args:
        tokenizer: A `PreTrainedTokenizerFast`; it is not changed.
    """
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    # Some post-processors take spaces out of the offsets of tokens, which then no longer say what a
    # token stands for.
    backend.post_processor = None  # type: ignore[assignment]
    backend.no_padding()
    backend.no_truncation()
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special}
    controls = {token.content for token in added if token.content.strip()}
    plain = tokenizer("a", add_special_tokens=True)["input_ids"]
    begin = tokenizer.bos_token_id
    return MarkingTokenizer(
        backend,
        _any_of(special),
        _any_of(controls),
        begin if begin is not None and plain and plain[0] == begin else None,
        tokenizer.eos_token_id,
    )


def choose_marks(texts: Sequence[str], number: int) -> str:
    """Returns private-use characters that occur in none of the texts.

    Raises:
        DataError: There are not so many.
    """
    used = {ord(character) for text in texts for character in text if ord(character) >= FIRST_MARK}
    found = [code for code in range(FIRST_MARK, LAST_MARK + 1) if code not in used][:number]
    if len(found) < number:
        raise DataError("the text uses all private-use characters; it is probably no text")
    return "".join(map(chr, found))


def break_special(value: Any, special: re.Pattern[str], mark: str) -> Any:
    """Puts a mark into every special token that a string, or strings in lists and maps, spell out.

    Args:
        value: A message, a list of them, a text.
        special: What to break.
        mark: One character.
    """
    if isinstance(value, str):
        return special.sub(lambda found: f"{found[0][:1]}{mark}{found[0][1:]}", value)
    if isinstance(value, Mapping):
        return {
            key: item if key in _UNMARKED_KEYS else break_special(item, special, mark)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [break_special(item, special, mark) for item in value]
    return value


def remove_marks(text: str, marks: str) -> str:
    """Returns a text without its marks."""
    return text.translate(dict.fromkeys(map(ord, marks)))


def strings_of(value: Any) -> list[str]:
    """Returns all strings in lists and maps."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in strings_of(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in strings_of(item)]
    return []


def _any_of(texts: set[str]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
