"""ROUGE-L, in the two variants that papers report under one name; they differ by many points.

`rouge_l` is Google's rouge_score (Lin, 2004): lower case, ASCII letters and digits only.
`rouge_l_jieba` is what the code of SSR (arXiv 2403.01244) and LLaMA-Factory computes: the package
rouge_chinese over the words of the Chinese segmenter jieba, case and punctuation included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from jaxrecipes.errors import ConfigError

Stem = Callable[[str], str]
Cut = Callable[[str], Iterable[str]]

# As rouge_chinese: a sentence ends after these, unless a closing quotation mark follows.
_SENTENCE_ENDS = (
    (re.compile(r"([。！？?])([^”’])"), r"\1\n\2"),
    (re.compile(r"(\.{6})([^”’])"), r"\1\n\2"),
    (re.compile(r"(…{2})([^”’])"), r"\1\n\2"),
    (re.compile(r"([。！？?][”’])([^，。！？?])"), r"\1\n\2"),
)


@dataclass(frozen=True)
class Rouge:
    """A comparison of a text with a reference.

    Attributes:
        precision: Length of the longest common subsequence over that of the text, in words.
        recall: The same over that of the reference.
        f1: Their harmonic mean.
    """

    precision: float
    recall: float
    f1: float


NOTHING_IN_COMMON = Rouge(0.0, 0.0, 0.0)


def rouge_words(text: str, stem: Stem | None = None) -> list[str]:
    """Splits a text into words as rouge_score does.

    Args:
        text: Any text; of a script other than Latin nothing is left.
        stem: Applied to words of more than three letters; rouge_score uses NLTK's
            `PorterStemmer().stem` where stemming is asked for. None: none.
    """
    words = re.findall(r"[a-z0-9]+", text.lower())
    if stem is not None:
        words = [stem(word) if len(word) > 3 else word for word in words]
    return words


def rouge_l(prediction: str, reference: str, *, stem: Stem | None = None) -> Rouge:
    """Computes ROUGE-L as Google's rouge_score does (`rougeL`: the whole text is one sentence).

    Args:
        prediction: The text.
        reference: What it is compared with.
        stem: See `rouge_words`.
    """
    return rouge_of_words(rouge_words(prediction, stem), rouge_words(reference, stem))


def rouge_of_words(prediction: Sequence[Hashable], reference: Sequence[Hashable]) -> Rouge:
    """Computes ROUGE-L of words that were split already; 0 where one side has none."""
    if not prediction or not reference:
        return NOTHING_IN_COMMON
    common = lcs_length(prediction, reference)
    precision, recall = common / len(prediction), common / len(reference)
    return Rouge(precision, recall, 2 * common / (len(prediction) + len(reference)))


def rouge_l_jieba(prediction: str, reference: str, *, cut: Cut | None = None) -> Rouge:
    """Computes ROUGE-L as SSR's code does; not comparable with `rouge_l`.

    Args:
        prediction: The text.
        reference: What it is compared with.
        cut: Splits a text into words, blanks among them; None: `jieba.cut`.

    Raises:
        ConfigError: jieba is not installed.
    """
    segment = _jieba_cut() if cut is None else cut
    texts = [" ".join(segment(text)) for text in (prediction, reference)]
    if not all(text.split() for text in texts):
        return NOTHING_IN_COMMON
    said, wanted = (_words_of_sentences(text) for text in texts)
    common = lcs_length(said, wanted)
    precision, recall = common / len(said), common / len(wanted)
    # The addend is theirs; without it, two texts without a common word would divide by 0.
    return Rouge(precision, recall, 2 * precision * recall / (precision + recall + 1e-8))


def lcs_length(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Returns the length of the longest common subsequence.

    The bits of one number hold a column of the usual table, so that a text is compared in as many
    additions as it has words (Hyyrö, 2004).
    """
    places: dict[Hashable, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(first)) - 1
    # A zero bit: the subsequence becomes longer at this place.
    column = every
    for word in second:
        matched = column & places.get(word, 0)
        column = ((column + matched) | (column - matched)) & every
    return len(first) - column.bit_count()


def _words_of_sentences(text: str) -> list[str]:
    """Splits as rouge_chinese does; a line of blanks between two sentences is an empty word."""
    for pattern, replacement in _SENTENCE_ENDS:
        text = pattern.sub(replacement, text)
    sentences = [" ".join(line.split()) for line in text.rstrip().split("\n") if line]
    return [word for sentence in sentences for word in sentence.split(" ")]


def _jieba_cut() -> Cut:
    try:
        import jieba
    except ImportError:
        raise ConfigError(
            "ROUGE-L over jieba's words needs the package jieba, which is not installed; "
            "pip install 'jaxrecipes[rouge]', or compute rouge_l"
        ) from None
    jieba.setLogLevel("ERROR")
    return jieba.cut
