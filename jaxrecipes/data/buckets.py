"""Lengths of padded rows: few programs to compile, little padding."""

from __future__ import annotations


def bucket_length(tokens: int, longest: int) -> int:
    """Returns the length of the rows that a text is computed in.

    Lengths are multiples of 32 up to 256 and four to an octave from there on: there are few
    programs to compile (28 up to 8192 tokens), and from 128 tokens on rounding adds less than 25 %.

    Args:
        tokens: Tokens of the text, at least 1.
        longest: Tokens of the longest text that there can be; its bucket is not rounded up further
            than to a multiple of 8.

    Returns:
        The smallest bucket that the text fits into.
    """
    step = 32
    while step * 8 < tokens:
        step *= 2
    return min(-(-tokens // step) * step, -(-longest // 8) * 8)
