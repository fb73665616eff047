"""Numbers in answers: read exactly, with sign, separators, decimals, fractions, percent and units.

Values are fractions, so that 0.5 is 1/2 and 0.1 is not a little more. What is no number is None and
not a guess: -5 is not 5, "10-5" holds no -5, "48 24" is not 4824 and 1/2 is not 12.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Convention = Literal["hashes", "last_number", "hashes_or_last"]
Percent = Literal["ignore", "hundredth"]

HASHES = "####"
# Python refuses to convert longer ones, and a model can write them.
_MOST_DIGITS = 1000
_MOST_EXPONENT = 400

_MINUS = "-\u2212\ufe63\uff0d"
_SIGNS = re.escape(_MINUS)
# Spaces at which no line breaks stand between groups of three digits, too. An ordinary space does
# not count: "48 240" are two numbers.
_GROUP = "[,\u00a0\u202f\u2009]"
_VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_NUMBER = re.compile(
    rf"""
    (?:(?<![\w)\]}}.%{_SIGNS}])(?P<before>[{_SIGNS}+]))?   # 10-5 and x-5 are no -5
    (?:[$€£¥₹₩]\ ?)?
    (?:(?<![\w)\]}}.%{_SIGNS}])(?P<after>[{_SIGNS}+]))?
    (?<![\w.])                                              # not inside of H2O or of 1.2.3
    (?>
        \\[dt]?frac\{{(?P<top>-?[0-9]+)\}}\{{(?P<bottom>[0-9]+)\}}
      | (?:(?P<whole>[0-9]+)\ )?(?<!/)(?P<over>[0-9]+)/(?P<under>[0-9]+)(?![0-9/]|\.[0-9])
      | (?P<units>[0-9]*)(?P<vulgar>[{_VULGAR}])
      | (?P<plain>
            (?:(?:[0-9]{{1,3}}(?:{_GROUP}[0-9]{{3}})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)
            (?:[eE][+-]?[0-9]{{1,3}}(?![0-9A-Za-z]))?
        )
    )
    (?!\.[0-9])
    (?!(?:st|nd|rd|th)\b)                                   # 2nd names a place
    (?P<percent>\ ?%|\ per\ ?cent\b)?
    """,
    re.VERBOSE,
)
_PARENTHESIS = re.compile(r"\s*\([^()]*\)[\s.!]*$")


@dataclass(frozen=True)
class NumberStyle:
    """What counts as which number.

    Attributes:
        fractions: 1/2 is a half; otherwise it is no number.
        percent: ignore: 5 % is 5. hundredth: it is 1/20.
    """

    fractions: bool = True
    percent: Percent = "ignore"


DEFAULT_STYLE = NumberStyle()


@dataclass(frozen=True)
class FoundNumber:
    """A number in a text.

    Attributes:
        value: Its value.
        start: Where it begins in the text, sign and currency included.
        end: Where it ends, a percent sign included.
    """

    value: Fraction
    start: int
    end: int


def find_numbers(text: str, style: NumberStyle = DEFAULT_STYLE) -> list[FoundNumber]:
    """Finds every number in a text, in order.

    Thousands are separated by commas, decimals by a point (1,234.5). Units may follow (5km, 18
    dollars), a currency sign may precede; digits inside of words (H2O), versions (1.2.3) and
    ordinals (2nd) are no numbers.

    Args:
        text: Any text.
        style: What counts.
    """
    found = []
    for match in _NUMBER.finditer(text):
        value = _value(match, style)
        if value is not None:
            found.append(FoundNumber(value, match.start(), match.end()))
    return found


def parse_number(text: str, style: NumberStyle = DEFAULT_STYLE) -> Fraction | None:
    """Reads a text that holds one number, perhaps with a unit; None if it holds none or several."""
    found = find_numbers(text, style)
    return found[0].value if len(found) == 1 else None


def answer_number(
    text: str, convention: Convention, style: NumberStyle = DEFAULT_STYLE
) -> Fraction | None:
    """Reads the number that an answer ends with.

    Args:
        text: The whole answer.
        convention: hashes: GSM8K's, the number in the line after the first `####`; whatever a
            model writes after that line is not read. last_number: the last one in the text; one in
            a parenthesis at the end is a remark, and is read only where there is no other.
            hashes_or_last: the latter where there is no `####`.
        style: What counts as which number.

    Returns:
        The number; None where the answer has none, or several after `####`.
    """
    marked = HASHES in text
    if convention == "hashes" or marked and convention == "hashes_or_last":
        if not marked:
            return None
        rest = text.split(HASHES, 1)[1].lstrip("#")
        return parse_number(rest.split("\n", 1)[0], style)
    said = text
    while (shorter := _PARENTHESIS.sub("", said)) != said:
        said = shorter
    found = find_numbers(said, style) or find_numbers(text, style)
    return found[-1].value if found else None


def same_number(first: str, second: str, style: NumberStyle = DEFAULT_STYLE) -> bool:
    """Whether two texts hold one number each, and the same: 1,000 = 1000.0, 0.5 = 1/2, -5 != 5."""
    one, other = parse_number(first, style), parse_number(second, style)
    return one is not None and one == other


def _value(match: re.Match[str], style: NumberStyle) -> Fraction | None:
    part = match.groupdict()
    if max(map(len, re.findall(r"[0-9]+", match[0])), default=0) > _MOST_DIGITS:
        return None
    if part["plain"] is not None:
        value = _plain(part["plain"])
    elif not style.fractions:
        return None
    elif part["vulgar"] is not None:
        over, under = unicodedata.normalize("NFKC", part["vulgar"]).split("\u2044")
        value = int(part["units"] or 0) + Fraction(int(over), int(under))
    else:
        over, under = part["over"] or part["top"], part["under"] or part["bottom"]
        if int(under) == 0:
            return None
        value = int(part["whole"] or 0) + Fraction(int(over), int(under))
    if value is None:
        return None
    if part["percent"] and style.percent == "hundredth":
        value /= 100
    negative = sum(sign is not None and sign in _MINUS for sign in (part["before"], part["after"]))
    return -value if negative == 1 else value


def _plain(text: str) -> Fraction | None:
    exponent = re.search(r"[eE]([+-]?[0-9]+)$", text)
    if exponent is not None and abs(int(exponent[1])) > _MOST_EXPONENT:
        return None
    return Fraction(re.sub(_GROUP, "", text))
