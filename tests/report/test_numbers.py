from __future__ import annotations

import pytest

from jaxrecipes.report.numbers import (
    clock,
    count,
    duration,
    interval,
    memory,
    negative,
    number,
    percent,
    value,
)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((None,), "–"),
        ((0.12345,), "0.123"),
        ((-0.12345,), "−0.123"),
        ((-0.0001,), "0.000"),
        ((1234.5, 1), "1,234.5"),
    ],
)
def test_numbers(arguments, text):
    assert number(*arguments) == text


def test_signs_are_written_where_asked_and_never_on_zero():
    assert number(0.5, signed=True) == "+0.500"
    assert number(0.0001, signed=True) == "0.000"
    assert number(-0.5, 1, signed=True) == "−0.5"


def test_measured_values():
    measured = {"value": 0.2, "low": 0.1, "high": 0.3}
    assert value(measured, 1) == "0.2" and interval(measured, 1) == "0.1 to 0.3"
    assert interval({"value": 1, "low": None, "high": None}) == "" and interval(None) == ""
    assert value(None) == "–"
    assert negative(measured) == {"value": -0.2, "low": -0.3, "high": -0.1}
    assert percent(measured) == {"value": 20.0, "low": 10.0, "high": 30.0}
    assert negative(None) is None and percent(None) is None


@pytest.mark.parametrize(
    ("function", "amount", "text"),
    [
        (count, 950, "950"),
        (count, 40960, "41.0 k"),
        (count, 17_700_480, "17.7 M"),
        (count, 134_515_008, "135 M"),
        (count, 8_030_000_000, "8.03 B"),
        (count, None, "–"),
        (memory, 512 * 2**20, "512 MiB"),
        (memory, 3 * 2**30, "3.00 GiB"),
        (memory, None, "–"),
        (duration, 8.44, "8.4 s"),
        (duration, 200, "3 min 20 s"),
        (duration, 7500, "2 h 05 min"),
        (duration, None, "–"),
        (clock, 8.4, "0:08"),
        (clock, 200, "3:20"),
        (clock, 7510, "2:05:10"),
        (clock, None, "–"),
    ],
)
def test_amounts(function, amount, text):
    assert function(amount) == text
