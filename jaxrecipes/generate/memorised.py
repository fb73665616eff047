"""Is a text new, or is it what the model was shown?"""

from __future__ import annotations

import re
from collections.abc import Iterable


class Shown:
    """Texts that a model was shown, to compare with what it wrote."""

    def __init__(self, texts: Iterable[str], *, words: int) -> None:
        """Takes the texts.

        Args:
            texts: What was shown.
            words: Length of the runs of words that are compared.
        """
        self._length = words
        split = [_words(text) for text in texts]
        self._whole = {" ".join(one) for one in split}
        self._padded = [f" {' '.join(one)} " for one in split]
        self._runs = {run for one in split for run in _runs(one, words)}

    def equals(self, text: str) -> bool:
        """Tells whether a text is one of those shown, but for case, blanks and punctuation."""
        return " ".join(_words(text)) in self._whole

    def copied_share(self, text: str) -> float:
        """Returns which share of a text's runs of words occur in those shown, from 0 to 1.

        A text that is shorter than a run is one run, and copied where it occurs as a whole.
        """
        words = _words(text)
        if len(words) < self._length:
            whole = f" {' '.join(words)} "
            return float(any(whole in shown for shown in self._padded)) if words else 0.0
        runs = _runs(words, self._length)
        return sum(run in self._runs for run in runs) / len(runs)


def same_text(text: str) -> str:
    """Returns a form in which texts that differ in case or blanks only are equal."""
    return " ".join(text.casefold().split())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _runs(words: list[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]
