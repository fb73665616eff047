"""Near duplicates by ROUGE-L: whether a new text says again what is there already."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from jaxrecipes.evaluate.rouge import lcs_length


def duplicate_words(text: str) -> list[str]:
    """Splits as `rouge_words` does; each letter of another script counts as a word of its own.

    So an English text has exactly the words of Google's ROUGE-L, and one in another script some.
    """
    return re.findall(r"[a-z0-9]+|[^\W_]", text.lower())


class NearDuplicates:
    """Texts that a new one must not repeat."""

    def __init__(self, threshold: float, texts: Iterable[str] = ()) -> None:
        """Takes the texts that are there.

        Args:
            threshold: Largest ROUGE-L F1 that a new text may have with any of them.
            texts: The texts.
        """
        self.threshold = threshold
        self._texts: list[tuple[str, list[str], Counter[str]]] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Adds a text."""
        words = duplicate_words(text)
        self._texts.append((text, words, Counter(words)))

    def find(self, text: str) -> str | None:
        """Returns a text that a new one repeats; None where it repeats none.

        Args:
            text: The new text. One without any word repeats only an equal one.
        """
        words = duplicate_words(text)
        counted = Counter(words)
        for other, other_words, other_counted in self._texts:
            if text == other:
                return other
            total = len(words) + len(other_words)
            # No common subsequence is longer than the words that both have.
            most = 2 * (counted & other_counted).total()
            if not words or not other_words or most <= self.threshold * total:
                continue
            if 2 * lcs_length(words, other_words) > self.threshold * total:
                return other
        return None
