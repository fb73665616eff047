"""Whether a text may stand in for a reference answer, by what kind of task it answers.

A verifier returns an empty text where it may, else the reason in a few words: reasons are counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from jaxrecipes.evaluate.function_calls import find_calls
from jaxrecipes.evaluate.numbers import answer_number

TaskKind = Literal["open", "numeric", "exact", "function_call", "label"]
# From a candidate and the reference to why the candidate cannot be accepted.
Verifier = Callable[[str, str], str]

# Short answers may be embedded in a sentence, whatever the allowed factor.
_SLACK = 64


def same_number(candidate: str, reference: str) -> str:
    """Accepts a text that ends with the number that the reference ends with, exactly."""
    wanted = answer_number(reference, "hashes_or_last")
    if wanted is None:
        return "the reference has no number"
    found = answer_number(candidate, "hashes_or_last")
    if found is None:
        return "no number"
    return "" if found == wanted else "another number"


def same_text(candidate: str, reference: str) -> str:
    """Accepts a text that is the reference, or whose last line is, blanks and case aside."""
    wanted = _normalised(reference)
    lines = [line for line in candidate.splitlines() if line.strip()]
    last = _normalised(lines[-1]) if lines else ""
    return "" if wanted in (_normalised(candidate), last) else "another text"


def same_calls(candidate: str, reference: str) -> str:
    """Accepts a text with the calls of the reference, in order, and no invented ones beside."""
    wanted, found = find_calls(reference), find_calls(candidate)
    if not wanted:
        return "the reference has no function call"
    if not found:
        return "no function call"
    if found == wanted:
        return ""
    return "calls beside the right ones" if set(wanted) <= set(found) else "another function call"


def same_label(labels: Sequence[str]) -> Verifier:
    """Accepts a text that names the reference's label and none of the others.

    Args:
        labels: All labels. A word that is part of a longer label counts for the longer one.
    """
    ordered = sorted({_normalised(label) for label in labels}, key=lambda one: (-len(one), one))
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(label)}(?!\w)" for label in ordered))

    def verify(candidate: str, reference: str) -> str:
        wanted = _normalised(reference)
        if wanted not in ordered:
            return "the reference is none of the labels"
        found = set(pattern.findall(_normalised(candidate)))
        if not found:
            return "no label"
        return "" if found == {wanted} else "another label"

    return verify


def any_text(candidate: str, reference: str) -> str:
    """Accepts everything: for open tasks, of which only the general guards say something."""
    del candidate, reference
    return ""


def verifier_of(task: TaskKind, labels: Sequence[str]) -> Verifier:
    """Returns the verifier of a kind of task.

    Args:
        task: The kind.
        labels: All labels, for kind label.
    """
    if task == "label":
        return same_label(labels)
    table: Mapping[str, Verifier] = {
        "open": any_text,
        "numeric": same_number,
        "exact": same_text,
        "function_call": same_calls,
    }
    return table[task]


def without_phrases(phrases: Sequence[str]) -> Verifier:
    """Accepts a text that does not speak of the request it answers.

    Args:
        phrases: What gives it away, such as "reference answer"; case and blanks do not count.
    """
    wanted = [_normalised(phrase) for phrase in phrases]

    def verify(candidate: str, reference: str) -> str:
        del reference
        text = _normalised(candidate)
        return "gives the request away" if any(phrase in text for phrase in wanted) else ""

    return verify


def of_length(shortest: float, longest: float) -> Verifier:
    """Accepts a text about as long as the reference.

    Args:
        shortest: Least length as a factor of the reference's, in characters.
        longest: The most, likewise; short answers may be a short sentence in any case.
    """

    def verify(candidate: str, reference: str) -> str:
        if not candidate.strip():
            return "empty"
        if len(candidate) < shortest * len(reference):
            return "too short"
        return "too long" if len(candidate) > longest * len(reference) + _SLACK else ""

    return verify


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())
