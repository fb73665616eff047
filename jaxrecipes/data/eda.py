"""EDA (arXiv 1901.11196): new wordings of a text by four operations on its words.

Deviations from the authors' code (`code/eda.py`), each of which makes a result repeatable or keeps
it from failing: everything is drawn from one seed and the text, where theirs draws from a seed set
at import and picks synonyms in the order of a set, which depends on the process; random insertion
draws among all synonyms where theirs takes the first one of such a set; a text without letters
comes back as it is where theirs fails; the list of stop words is our own. As theirs: lower case,
letters a to z only; stop words are not replaced, but one of their synonyms may be inserted.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass

from jaxrecipes.data.synonyms import Synonyms
from jaxrecipes.errors import ConfigError

# Function words, which carry little of a sentence's meaning.
_FUNCTION_WORDS = (
    "a about above after again against all am an and any are as at be because been before "
    "being below between both but by can could did do does doing down during each few for "
    "from further had has have having he her here hers herself him himself his how i if in "
    "into is it its itself just may me might mine more most must my myself no nor not now of "
    "off on once only or other our ours ourselves out over own same shall she should so some "
    "such than that the their theirs them themselves then there these they this those through "
    "to too under until up us very was we were what when where which while who whom whose why "
    "will with would you your yours yourself "
)
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
_INSERTION_TRIES = 10
_SWAP_TRIES = 3


@dataclass(frozen=True)
class EdaOptions:
    """How much is changed.

    Attributes:
        synonyms: Share of words that is replaced by synonyms (alpha_sr).
        insertions: Share of words of which a synonym is inserted somewhere (alpha_ri).
        swaps: Share of words that is swapped (alpha_rs).
        deletions: Probability with which a word is deleted (p_rd).
        new_texts: New wordings; those of the four operations in about equal parts.
    """

    synonyms: float = 0.1
    insertions: float = 0.1
    swaps: float = 0.1
    deletions: float = 0.1
    new_texts: int = 9

    def __post_init__(self) -> None:
        """Refuses values out of range.

        Raises:
            ConfigError: Names the option.
        """
        shares = [self.synonyms, self.insertions, self.swaps, self.deletions]
        if not all(0 <= share <= 1 for share in shares) or not any(shares):
            raise ConfigError(
                f"eda: the shares are {shares}; expected each from 0 to 1, and one above 0"
            )
        if self.new_texts < 1:
            raise ConfigError(f"eda: new_texts is {self.new_texts}; expected 1 or more")


def eda(text: str, synonyms: Synonyms, options: EdaOptions, *, seed: int) -> list[str]:
    """Writes new wordings of a text.

    Args:
        text: English text.
        synonyms: Word -> its synonyms.
        options: How much is changed, and how many.
        seed: Of all draws; another text draws otherwise.

    Returns:
        `options.new_texts` wordings, and the text as `clean` has it as the last one.
    """
    original = clean(text)
    words = original.split()
    if not words:
        return [text] * (options.new_texts + 1)
    digest = hashlib.sha256(f"eda {seed} {original}".encode()).digest()
    generator = random.Random(int.from_bytes(digest[:8], "big"))
    operations = (
        (options.synonyms, lambda n: _replace(words, n, synonyms, generator)),
        (options.insertions, lambda n: _insert(words, n, synonyms, generator)),
        (options.swaps, lambda n: _swap(words, n, generator)),
        (options.deletions, lambda _: _delete(words, options.deletions, generator)),
    )
    found: list[str] = []
    used = [(share, operation) for share, operation in operations if share > 0]
    each = options.new_texts // len(used) + 1
    for share, operation in used:
        count = max(1, int(share * len(words)))
        found += [" ".join(operation(count)) for _ in range(each)]
    generator.shuffle(found)
    return [*found[: options.new_texts], original]


def clean(text: str) -> str:
    """Returns a text as EDA has it: lower case, the letters a to z, single spaces."""
    text = text.lower().replace("\u2019", "").replace("'", "")
    return " ".join(re.sub(r"[^a-z]+", " ", text).split())


def _replace(
    words: list[str], count: int, synonyms: Synonyms, generator: random.Random
) -> list[str]:
    new = list(words)
    candidates = sorted({word for word in words if word not in STOP_WORDS})
    generator.shuffle(candidates)
    replaced = 0
    for word in candidates:
        if replaced == count:
            break
        if word in synonyms:
            other = generator.choice(synonyms[word])
            new = [other if one == word else one for one in new]
            replaced += 1
    return " ".join(new).split()  # a synonym may be several words


def _insert(
    words: list[str], count: int, synonyms: Synonyms, generator: random.Random
) -> list[str]:
    new = list(words)
    for _ in range(count):
        for _ in range(_INSERTION_TRIES):
            word = generator.choice(new)
            if word in synonyms:
                new.insert(generator.randrange(len(new)), generator.choice(synonyms[word]))
                break
    return new


def _swap(words: list[str], count: int, generator: random.Random) -> list[str]:
    new = list(words)
    for _ in range(count):
        first = second = generator.randrange(len(new))
        for _ in range(_SWAP_TRIES + 1):
            if second != first:
                break
            second = generator.randrange(len(new))
        new[first], new[second] = new[second], new[first]
    return new


def _delete(words: list[str], share: float, generator: random.Random) -> list[str]:
    if len(words) == 1:
        return list(words)
    kept = [word for word in words if generator.random() > share]
    return kept or [generator.choice(words)]
