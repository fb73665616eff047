"""Where a text ends: before the first of its stop texts, wherever the tokens' borders are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Returns where in a text the first of the stop texts begins; None if there is none."""
    return min((place for one in stop if (place := text.find(one)) >= 0), default=None)


def tokens_to_stop(
    token_ids: Sequence[int], checked: int, stop: Sequence[str], decode: Decode
) -> int | None:
    """Returns with how many of its tokens a text first holds a stop text.

    Args:
        token_ids: The answer so far.
        checked: So many of its tokens are known to hold none.
        stop: Stop texts.
        decode: Token ids to text. The whole answer is decoded, because a stop text may begin in an
            earlier token, and a token's text may depend on what is before it.

    Returns:
        The number of tokens, more than `checked`; None if there is no stop text.
    """
    if not stop or first_stop(decode(token_ids), stop) is None:
        return None
    for count in range(checked + 1, len(token_ids)):
        if first_stop(decode(token_ids[:count]), stop) is not None:
            return count
    return len(token_ids)
