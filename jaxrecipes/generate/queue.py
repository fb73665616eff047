"""In which order prompts get a slot, and what several of them begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxrecipes.generate.tokens import TokenPrompt

# Shared beginnings are cut to multiples of this, so that few lengths are compiled; a shorter one is
# not worth a reading of its own, nor is one of fewer prompts than `_SHARED_BY`.
PREFIX_STEP = 64
_SHARED_BY = 4


@dataclass(frozen=True)
class Waiting:
    """A prompt that waits for a slot.

    Attributes:
        index: Its place in the call.
        prompt: What is continued.
        prefix: So many of its first tokens are read once for all prompts that begin with them.
    """

    index: int
    prompt: TokenPrompt
    prefix: int


def waiting_line(prompts: Sequence[TokenPrompt]) -> list[Waiting]:
    """Puts prompts in the order in which they get slots.

    The longest come first (prompt and longest answer together): the end of a call, when slots
    fall empty, is then short, and neighbours have like lengths. Prompts that begin alike stand
    together, equal ones beside each other.

    Args:
        prompts: The prompts.

    Returns:
        The first to get a slot first.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        long = len(prompt.context) >= PREFIX_STEP and not prompt.prompt_logprobs
        groups.setdefault(prompt.context[:PREFIX_STEP] if long else (), []).append(index)
    lines: dict[tuple[int, ...], list[Waiting]] = {}
    for start, members in groups.items():
        distinct = {prompts[index].context for index in members}
        shared = _common(distinct) if start and len(distinct) >= _SHARED_BY else 0
        prefix = shared - shared % PREFIX_STEP
        # Prompts that share nothing stand in one line, whatever they begin with.
        line = lines.setdefault(start if prefix else (), [])
        line += [Waiting(index, prompts[index], prefix) for index in members]
    longest: dict[tuple[int, ...], int] = {}
    for prompt in prompts:
        longest[prompt.context] = max(longest.get(prompt.context, 0), prompt.longest)

    def place(waiting: Waiting) -> tuple:
        context = waiting.prompt.context
        return -longest[context], context, -waiting.prompt.longest

    ordered = [sorted(line, key=place) for line in lines.values()]
    ordered.sort(key=lambda line: place(line[0]))
    return [waiting for line in ordered for waiting in line]


def _common(texts: set[tuple[int, ...]]) -> int:
    """Returns how many tokens all texts begin with."""
    first, last = min(texts), max(texts)  # whatever these two share, all share
    length = min(len(first), len(last))
    return next((at for at in range(length) if first[at] != last[at]), length)
