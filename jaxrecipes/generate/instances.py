"""A task's instances as plain text: shown to a model, continued by it, and read back.

A text shows an instruction, instances of input and output, and then the cue of one more input,
which a base model goes on with (Huang et al. 2024, arXiv 2403.01244, section 3.2). The same form
without demonstrations is what a model is trained and asked with:

    <instruction>

    Input: <input>
    Output: <output>

    Input:

Only a cue at the beginning of a line counts, and a task whose own texts have such a line gets other
cues, so that no document is taken apart for what it says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np


@dataclass(frozen=True)
class Instance:
    """One item of a task.

    Attributes:
        input: What is given.
        output: What is wanted; empty where a model wrote none, and another one will.
    """

    input: str
    output: str


@dataclass(frozen=True)
class Cues:
    """What introduces an input and an output, at the beginning of a line."""

    input: str = "Input:"
    output: str = "Output:"

    def occur_in(self, text: str) -> bool:
        """Tells whether a line of a text begins with a cue."""
        return any(
            line.lstrip().startswith((self.input, self.output)) for line in text.splitlines()
        )


def choose_cues(texts: Iterable[str]) -> Cues:
    """Returns the plainest cues with which no line of any text begins.

    Args:
        texts: Everything of a task that is shown: instruction, inputs, outputs.
    """
    waiting = _all_cues()
    cues, kept = next(waiting), list(texts)
    while any(cues.occur_in(text) for text in kept):
        cues = next(waiting)
    return cues


def _all_cues() -> Iterator[Cues]:
    yield Cues()
    yield Cues("### Input:", "### Output:")
    for number in count(1):
        yield Cues(f"<input {number}>", f"<output {number}>")


def task_prompt(instruction: str, text: str, cues: Cues) -> str:
    """Returns the prompt of an item; its answer follows after a blank."""
    return f"{_head(instruction)}{cues.input} {text}\n{cues.output}"


def demonstration_prompt(instruction: str, shown: Sequence[Instance], cues: Cues) -> str:
    """Returns a text that ends where one more input of the task would stand.

    Args:
        instruction: What the task is; may be empty.
        shown: The demonstrations, in order.
        cues: From `choose_cues`.
    """
    written = [f"{cues.input} {one.input}\n{cues.output} {one.output}\n\n" for one in shown]
    return f"{_head(instruction)}{''.join(written)}{cues.input}"


def _head(instruction: str) -> str:
    return f"{instruction}\n\n" if instruction else ""


def ordered_pairs(demonstrations: int, *, seed: int) -> list[tuple[int, int]]:
    """Lists all ordered pairs of different demonstrations, each once, in random order.

    Args:
        demonstrations: Their number, 2 or more.
        seed: Decides the order.
    """
    pairs = [
        (first, second)
        for first in range(demonstrations)
        for second in range(demonstrations)
        if first != second
    ]
    return [pairs[place] for place in np.random.default_rng(seed).permutation(len(pairs))]


@dataclass(frozen=True)
class Parsed:
    """What was found in a continuation.

    Attributes:
        instances: In order.
        rejected: For each piece that is no instance, why.
    """

    instances: tuple[Instance, ...]
    rejected: tuple[str, ...]


def parse_continuation(
    text: str, cues: Cues, *, instruction: str = "", ended: bool, needs_output: bool
) -> Parsed:
    """Reads the instances that a model wrote after `demonstration_prompt`.

    Args:
        text: The continuation; it begins in the middle of an input.
        cues: Those of the prompt.
        instruction: That of the prompt; models repeat it between instances.
        ended: The model ended by itself, or before a cue; False where it was cut off, so that the
            last piece is not whole.
        needs_output: An instance without an output is none. False where outputs are written anew:
            then a whole input is enough.

    Returns:
        The instances with their outer blanks removed, and what was rejected.
    """
    pieces = _split(text, cues.input)
    found: list[Instance] = []
    rejected: list[str] = []
    for number, piece in enumerate(pieces):
        whole = ended or number < len(pieces) - 1
        parts = [part.strip() for part in _split(piece, cues.output)]
        if len(parts) > 2:
            rejected.append("several outputs")
            continue
        given, wanted = parts[0], parts[1] if len(parts) == 2 else ""
        if instruction and len(parts) == 2:
            wanted = wanted.removesuffix(instruction.strip()).rstrip()
        elif instruction:
            given = given.removesuffix(instruction.strip()).rstrip()
        if len(parts) == 2 and not whole:
            # The output may be half of one; the input is not, since a cue followed it.
            wanted = ""
        if not given:
            rejected.append("empty input")
        elif len(parts) == 1 and not whole:
            rejected.append("cut off")
        elif needs_output and not wanted:
            rejected.append("no output" if whole else "cut off")
        else:
            found.append(Instance(given, wanted))
    return Parsed(tuple(found), tuple(rejected))


def _split(text: str, cue: str) -> list[str]:
    return re.split(rf"^[ \t]*{re.escape(cue)}", text, flags=re.MULTILINE)
