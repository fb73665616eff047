"""Calls in answers: all are found, compared by value, and prose is none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.evaluate.function_calls import find_calls

values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text("ab (),\"'{[]}\\é", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=5,
)
names = st.sampled_from(["get_weather", "math.sqrt", "f"])
arguments = st.dictionaries(st.sampled_from(["city", "unit", "n"]), values, max_size=3)


@settings(deadline=None)
@given(name=names, named=arguments, prose=st.text("abc .,\n`#", max_size=20))
def test_a_call_is_the_same_in_python_and_in_json_and_in_prose(name, named, prose):
    python = f"{name}({', '.join(f'{key}={value!r}' for key, value in named.items())})"
    as_json = json.dumps({"name": name, "arguments": named})
    as_text = json.dumps({"function": {"name": name, "arguments": json.dumps(named)}})
    found = [find_calls(text) for text in (python, as_json, as_text, f"{prose} {python} {prose}")]
    assert len(found[0]) == 1 and found[0][0].name == name
    assert found[1:] == [found[0]] * 3
    assert find_calls(f"[{python}, {python}]") == found[0] * 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Call the function (see below), or the file(s) that f(x) reads.",
        "f(",
        "f(1",
        '{"name": "f"}',
        '{"a": 1}',
        "[1, 2]",
        "f(*[1])",
        "(" * 10_000,
        "f(" * 10_000,
        "f(" + "[" * 60 + "]" * 60 + ")",
        '{"name": "f", "arguments": "no json"}',
    ],
)
def test_what_is_no_call_with_values(text):
    assert find_calls(text) == []


def test_values_count_and_not_their_form():
    assert find_calls("f(1.0, b='x', a=2)") == find_calls('f(1, a=2, b="x")')
    assert find_calls("f(True)") != find_calls("f(1)")
    assert find_calls("f('1')") != find_calls("f(1)")
    assert find_calls("f(a=1)") != find_calls("f(1)")
