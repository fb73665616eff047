"""Documents to token ids: at most one BOS in front, exactly one EOS at the end, ids checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jaxrecipes.data.documents import Document
from jaxrecipes.errors import DataError


class Tokenizer(Protocol):
    """What is needed of a tokenizer; every fast tokenizer of ``transformers`` has it."""

    eos_token_id: int | None
    bos_token_id: int | None

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Returns a mapping with ``input_ids`` and, when asked for, ``offset_mapping``."""
        ...


@dataclass(frozen=True, eq=False)
class TokenizedDocument:
    """The tokens of one document.

    Attributes:
        id: The document's id.
        token_ids: [n] int32, the EOS included.
        byte_count: UTF-8 bytes of the text.
        byte_ends: [n] int64, UTF-8 bytes of the text up to the end of each token; only where it may
            be truncated, so that the bytes that are kept can be counted.
        supervised: [n] bool, tokens that are targets of the loss; None where all are.
        changes: What was done to it before (cut, dropped), in words that can be counted.
    """

    id: str
    token_ids: np.ndarray
    byte_count: int
    byte_ends: np.ndarray | None = None
    supervised: np.ndarray | None = None
    changes: tuple[str, ...] = ()


def end_token(tokenizer: Tokenizer, vocab_size: int) -> int:
    """Returns the id of the token that ends a document.

    Raises:
        DataError: The tokenizer has none, or its id is outside of the vocabulary.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError(
            "the tokenizer has no end-of-sequence token; expected one, because documents are "
            "separated by it. Set eos_token in tokenizer_config.json."
        )
    if not 0 <= eos < vocab_size:
        raise DataError(
            f"the tokenizer's end-of-sequence id {eos} is outside of the model's vocabulary of "
            f"{vocab_size}. Use the tokenizer that belongs to the model."
        )
    return int(eos)


def tokenize_documents(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    *,
    vocab_size: int,
    truncate_length: int | None = None,
    batch_characters: int = 2**20,
) -> Iterator[TokenizedDocument]:
    """Tokenizes documents in their order.

    Text is data: a special token that is spelled out in a document (``<|endoftext|>``) is encoded
    as ordinary text, so that no document can end itself or open a chat turn.

    Args:
        documents: The documents.
        tokenizer: A fast tokenizer. Its own BOS and EOS are kept; an EOS is appended where it adds
            none.
        vocab_size: Ids must be below it.
        truncate_length: If set, documents with more tokens get ``byte_ends``.
        batch_characters: Texts are handed to the tokenizer in batches of about this size.

    Raises:
        DataError: An id is not below ``vocab_size``, or the tokenizer has no EOS.
    """
    eos = end_token(tokenizer, vocab_size)
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= batch_characters:
            yield from _tokenize(batch, tokenizer, vocab_size, eos, truncate_length)
            batch, characters = [], 0
    if batch:
        yield from _tokenize(batch, tokenizer, vocab_size, eos, truncate_length)


def _tokenize(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    vocab_size: int,
    eos: int,
    truncate_length: int | None,
) -> Iterator[TokenizedDocument]:
    encoded = _encode(tokenizer, [document.text for document in documents])["input_ids"]
    with_eos = [
        np.asarray(ids if ids and ids[-1] == eos else [*ids, eos], dtype=np.int64)
        for ids in encoded
    ]
    long = [
        index
        for index, token_ids in enumerate(with_eos)
        if truncate_length is not None and len(token_ids) > truncate_length
    ]
    byte_ends = _byte_ends(tokenizer, [documents[index].text for index in long])
    ends_of = dict(zip(long, byte_ends, strict=True))
    for index, (document, token_ids) in enumerate(zip(documents, with_eos, strict=True)):
        ends = ends_of.get(index)
        if ends is not None and len(ends) < len(token_ids):  # the EOS that was appended here
            ends = np.append(ends, ends[-1])
        yield TokenizedDocument(
            document.id,
            check_ids(token_ids, document.id, vocab_size),
            len(document.text.encode()),
            byte_ends=ends,
        )


def _encode(tokenizer: Tokenizer, texts: list[str], **options: Any) -> Any:
    # verbose=False silences "longer than the maximum length": length is our own policy, in pack.
    return tokenizer(
        texts,
        add_special_tokens=True,
        split_special_tokens=True,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **options,
    )


def _byte_ends(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    if not texts:
        return []
    result = []
    for text, offsets in zip(
        texts,
        _encode(tokenizer, texts, return_offsets_mapping=True)["offset_mapping"],
        strict=True,
    ):
        ends = np.asarray([end for _, end in offsets], dtype=np.int64)
        result.append(byte_ends_of(text, ends))
    return result


def byte_ends_of(text: str, ends: np.ndarray, *, without: str = "") -> np.ndarray:
    """Counts the UTF-8 bytes up to the end of each token.

    Args:
        text: The text.
        ends: [n] int64, characters of the text up to the end of each token.
        without: Characters that do not count.

    Returns:
        [n] int64. A special token may have the offsets (0, 0), hence the running maximum.
    """
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000).astype(np.int64)
    if without:
        widths[np.isin(points, [ord(character) for character in without])] = 0
    before = np.concatenate([[0], np.cumsum(widths)])
    return np.maximum.accumulate(before[ends])


def check_ids(
    token_ids: np.ndarray, name: str, vocab_size: int, what: str = "document"
) -> np.ndarray:
    """Returns token ids as int32.

    Args:
        token_ids: [n] int64.
        name: Id of what they stand for.
        vocab_size: Ids must be below it.
        what: `document` or `example`, for the message.

    Raises:
        DataError: An id is not below `vocab_size`.
    """
    outside = np.flatnonzero((token_ids < 0) | (token_ids >= vocab_size))
    if outside.size:
        place = int(outside[0])
        raise DataError(
            f"{what} {name!r}: token {place} has the id {token_ids[place]}, but the "
            f"model's vocabulary has {vocab_size} entries. Use the tokenizer that belongs to "
            "the model."
        )
    return token_ids.astype(np.int32)
