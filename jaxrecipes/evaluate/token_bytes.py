"""How many bytes of text each token stands for, the denominator of bits per byte."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def token_byte_lengths(tokenizer: Any, vocab_size: int) -> np.ndarray:
    """Returns the UTF-8 bytes of each token.

    In a byte-level vocabulary (GPT-2's and its heirs') every character of a token's name stands
    for one byte; in a SentencePiece one a token's name is its text, with U+2581 for a space and
    `<0x0A>` for a single byte. Special tokens are no text: zero bytes. The loss on them still
    counts, as the cost of saying where a document ends.

    Args:
        tokenizer: A fast tokenizer of `transformers`.
        vocab_size: Rows of the model's embedding table; ids that the tokenizer lacks get zero.

    Returns:
        int32 [vocab_size].
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    byte_level = '"ByteLevel"' in json.dumps([backend["decoder"], backend["pre_tokenizer"]])
    special = set(tokenizer.all_special_ids)
    special.update(token["id"] for token in backend["added_tokens"] if token["special"])
    plain = {token["id"] for token in backend["added_tokens"]} - special
    lengths = np.zeros(vocab_size, np.int32)
    for token, index in tokenizer.get_vocab().items():
        if index >= vocab_size or index in special:
            continue
        if index in plain:
            lengths[index] = len(token.encode())
        elif byte_level:
            lengths[index] = len(token)
        elif _BYTE_TOKEN.fullmatch(token):
            lengths[index] = 1
        else:
            lengths[index] = len(token.replace("\u2581", " ").encode())
    return lengths
