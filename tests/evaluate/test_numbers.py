"""Numbers in answers; the table of equalities is the one at which others' readers fail."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrecipes.evaluate.numbers import (
    NumberStyle,
    answer_number,
    find_numbers,
    parse_number,
    same_number,
)

EQUAL = [
    ("1,000", "1000"),
    ("1,234,567.50", "1234567.5"),
    ("0.5", "1/2"),
    ("-5", "\u22125"),
    ("-$5", "$-5"),
    ("+7", "7"),
    ("$18.00", "18"),
    ("18 dollars", "18"),
    ("5km", "5"),
    ("20%", "20"),
    ("20 percent", "20"),
    ("1 1/2", "1.5"),
    ("1½", "3/2"),
    (r"\frac{3}{4}", ".75"),
    ("1e3", "1000"),
    ("1\u202f000", "1000"),
    ("12/4", "3"),
    ("-1 1/2", "-1.5"),
]
UNEQUAL = [
    ("-5", "5"),
    ("1/2", "12"),
    ("1.000", "1000"),
    ("10-5", "-5"),
    ("48 24", "4824"),
    ("0.3333", "1/3"),
    ("five", "5"),
    ("1/0", "1"),
    ("", ""),
    ("2nd", "2"),
    ("H2O", "2"),
    ("1.2.3", "1.2"),
]


@pytest.mark.parametrize(("first", "second"), EQUAL)
def test_equal_numbers(first, second):
    assert same_number(first, second) and same_number(second, first)


@pytest.mark.parametrize(("first", "second"), UNEQUAL)
def test_numbers_that_are_not_equal(first, second):
    assert not same_number(first, second) and not same_number(second, first)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("10-5 = 5", [10, 5, 5]),
        ("x-5 and COVID-19", [5, 19]),
        ("it is -5, not - 5", [-5, 5]),
        ("1,2,3", [1, 2, 3]),
        ("1,2345", [1, 2345]),
        ("on 3/4/2024", [3, 4, 2024]),
        ("48 24", [48, 24]),
        ("$5.", [5]),
        ("(-5)", [-5]),
        ("version 1.2.3 of 2nd", []),
        ("5 eggs, 5e2 eggs, 5eggs", [5, 500, 5]),
        ("<<16-3-4=9>>9", [16, 3, 4, 9, 9]),
        ("9" * 5000, []),
        ("1e999", []),
    ],
)
def test_all_numbers_of_a_text(text, values):
    assert [found.value for found in find_numbers(text)] == values


def test_what_a_fraction_and_a_percentage_are_is_a_choice():
    assert parse_number("1/2", NumberStyle(fractions=False)) is None
    assert parse_number("½", NumberStyle(fractions=False)) is None
    assert parse_number("3", NumberStyle(fractions=False)) == 3
    assert parse_number("5%", NumberStyle(percent="hundredth")) == Fraction(1, 20)
    assert same_number("5 %", "0.05", NumberStyle(percent="hundredth"))


@pytest.mark.parametrize(
    ("text", "hashes", "last"),
    [
        ("16 - 3 = 13\n#### 13", 13, 13),
        ("#### -1,200\nQuestion: 7?", -1200, 7),
        ("####$5 per bag", 5, 5),
        ("#### 5 or 6", None, 6),
        ("####\n5", None, 5),
        ("She has 18 eggs (6 + 12).", None, 18),
        ("It is (5)", None, 5),
        ("no idea", None, None),
        ("The answer is 10-5.", None, 5),
        ("##### 4", 4, 4),
    ],
)
def test_the_conventions_of_answers(text, hashes, last):
    assert answer_number(text, "hashes") == hashes
    assert answer_number(text, "last_number") == last
    either = hashes if "####" in text else last
    assert answer_number(text, "hashes_or_last") == either


@given(st.decimals(-(10**12), 10**12, allow_nan=False, places=4), st.booleans())
def test_what_is_written_is_read_exactly(value: Decimal, grouped: bool):
    text = f"{value:,}" if grouped else f"{value}"
    assert parse_number(f"so it is {text} apples.") == Fraction(value)
    assert same_number(text, str(value))
    assert same_number(text, str(-value)) == (value == 0)


@given(st.integers(-500, 500), st.integers(1, 500))
def test_fractions_are_quotients(over: int, under: int):
    assert parse_number(f"{over}/{under}") == Fraction(over, under)


@given(st.text())
def test_no_text_breaks_the_reader(text: str):
    for found in find_numbers(text):
        assert 0 <= found.start < found.end <= len(text)
        assert any(character.isnumeric() for character in text[found.start : found.end])
    for convention in ("hashes", "last_number", "hashes_or_last"):
        answer_number(text, convention)


@given(st.lists(st.integers(0, 999), min_size=2, max_size=5))
def test_neighbours_never_become_one_number(values: list[int]):
    for between in (" ", "\n", ", ", " - ", "-"):
        text = between.join(map(str, values))
        assert [found.value for found in find_numbers(text)] == values
