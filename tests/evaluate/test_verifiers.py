"""What may stand in for a reference answer, for each kind of task."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.evaluate.verifiers import of_length, verifier_of, without_phrases

LABELS = ("entailment", "not entailment", "neutral")


@pytest.mark.parametrize(
    ("task", "candidate", "reference", "reason"),
    [
        ("numeric", "So it is 1,234.", "12 * x\n#### 1234", ""),
        ("numeric", "It is 18 dollars (not 20)", "#### 18", ""),
        # The paper's expression reads 4824, and -5.
        ("numeric", "They have 48 24", "#### 4824", "another number"),
        ("numeric", "It is 10-5", "#### -5", "another number"),
        ("numeric", "I do not know.", "#### 5", "no number"),
        ("numeric", "It is 5.", "five", "the reference has no number"),
        ("numeric", "It is 5.5", "#### 5", "another number"),
        ("exact", "First I thought.\n  Paris \n", "paris", ""),
        ("exact", "Paris or Rome", "Paris", "another text"),
        ("exact", "", "Paris", "another text"),
        ("function_call", 'Sure: `f(a=1, b="x")`', "f(b='x', a=1)", ""),
        ("function_call", "f(a=1)\ng(b=2)", "f(a=1)", "calls beside the right ones"),
        ("function_call", "g(b=2), then f(a=1)", "f(a=1)", "calls beside the right ones"),
        ("function_call", "f(a=2)", "f(a=1)", "another function call"),
        ("function_call", "f", "f(a=1)", "no function call"),
        ("function_call", "f(a=1)", "f", "the reference has no function call"),
        ("label", "This is NOT entailment, I think.", "not entailment", ""),
        ("label", "entailment", "not entailment", "another label"),
        ("label", "neutral or entailment", "neutral", "another label"),
        ("label", "unneutral", "neutral", "no label"),
        ("label", "neutral", "other", "the reference is none of the labels"),
        ("open", "anything", "something", ""),
    ],
)
def test_each_kind_of_task(task, candidate, reference, reason):
    assert verifier_of(task, LABELS)(candidate, reference) == reason


@settings(deadline=None)
@given(
    text=st.text("a \n", max_size=400),
    reference=st.text("b", max_size=100),
    shortest=st.floats(0, 1),
    longest=st.floats(1, 10),
)
def test_length_is_bounded_by_the_reference(text, reference, shortest, longest):
    reason = of_length(shortest, longest)(text, reference)
    if not reason:
        assert text.strip()
        assert shortest * len(reference) <= len(text) <= longest * len(reference) + 64
    assert reason in ("", "empty", "too short", "too long")
    assert of_length(0.2, 4)("c" * 50, "b" * 50) == ""


@pytest.mark.parametrize("text", ["As the Reference  answer says", "so, Your\nresponse is"])
def test_phrases_that_give_the_request_away(text):
    verify = without_phrases(["reference answer", "your response"])
    assert verify(text, "") == "gives the request away"
    assert verify("A reference to the answer; you are responsible.", "") == ""
