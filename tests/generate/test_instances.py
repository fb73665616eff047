"""Instances as text: what is shown is read back, and no document is taken apart."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.generate.instances import (
    Cues,
    Instance,
    choose_cues,
    demonstration_prompt,
    ordered_pairs,
    parse_continuation,
    task_prompt,
)

# Lines that look like cues among ordinary text.
pieces = st.sampled_from(
    ["word", "Input:", "Output:", "### Input:", "### Output:", "<input 1>", "\n", " ", "a: b", ":"]
)
texts = st.lists(pieces, min_size=1, max_size=12).map(" ".join).map(str.strip).filter(bool)
instances = st.builds(Instance, texts, texts)


def test_the_prompts_are_the_papers():
    shown = [Instance("2 + 2", "4"), Instance("1 + 2", "3")]
    assert demonstration_prompt("Add.", shown, Cues()) == (
        "Add.\n\nInput: 2 + 2\nOutput: 4\n\nInput: 1 + 2\nOutput: 3\n\nInput:"
    )
    assert task_prompt("Add.", "5 + 5", Cues()) == "Add.\n\nInput: 5 + 5\nOutput:"
    assert task_prompt("", "5 + 5", Cues()) == "Input: 5 + 5\nOutput:"


@settings(max_examples=200, deadline=None)
@given(st.lists(instances, min_size=1, max_size=5), texts)
def test_what_a_model_copies_is_read_back_whatever_it_says(shown, instruction):
    """Documents full of cues, of every kind that there is, are neither split nor lost."""
    cues = choose_cues([instruction, *(text for one in shown for text in (one.input, one.output))])
    prompt = demonstration_prompt(instruction, shown, cues)
    start = demonstration_prompt(instruction, [], cues)
    assert prompt.startswith(start)
    # The text after the first cue is what a model would have written there.
    written = prompt[len(start) :].removesuffix(cues.input)
    found = parse_continuation(written, cues, ended=True, needs_output=True)
    assert found.instances == tuple(shown)
    assert found.rejected == ()


@given(st.lists(texts, max_size=6))
def test_chosen_cues_begin_no_line(texts):
    cues = choose_cues(texts)
    for text in texts:
        assert not re.search(rf"(?m)^\s*({re.escape(cues.input)}|{re.escape(cues.output)})", text)


@given(st.integers(2, 9), st.integers(0, 99))
def test_every_ordered_pair_of_different_demonstrations_is_there_once(count, seed):
    pairs = ordered_pairs(count, seed=seed)
    assert len(pairs) == len(set(pairs)) == count * (count - 1)
    assert all(first != second and min(first, second) >= 0 for first, second in pairs)
    assert max(map(max, pairs)) == count - 1
    assert pairs == ordered_pairs(count, seed=seed)


WHOLE = " a cat\nOutput: an animal\n\nInput: a rose\nOutput: a pl"


@pytest.mark.parametrize(
    ("text", "ended", "needs_output", "instances", "rejected"),
    [
        (WHOLE, True, True, [("a cat", "an animal"), ("a rose", "a pl")], []),
        # Cut off: the last output is half of one, its input is whole.
        (WHOLE, False, True, [("a cat", "an animal")], ["cut off"]),
        (WHOLE, False, False, [("a cat", "an animal"), ("a rose", "")], []),
        # The input itself may be cut off.
        (" a cat on a", False, False, [], ["cut off"]),
        (" a cat", True, False, [("a cat", "")], []),
        (" a cat", True, True, [], ["no output"]),
        ("\nOutput: an animal", True, True, [], ["empty input"]),
        (" a\nOutput: b\nOutput: c", True, True, [], ["several outputs"]),
        # A cue inside of a line is text.
        (
            " the Input: and Output: of it\nOutput: x",
            True,
            True,
            [("the Input: and Output: of it", "x")],
            [],
        ),
        # The instruction, which models repeat between instances.
        (" a\nOutput: b\n\nName it.", True, True, [("a", "b")], []),
        ("", True, False, [], ["empty input"]),
        ("\x00\u2028 \n\n", True, False, [("\x00", "")], []),
    ],
)
def test_continuations(text, ended, needs_output, instances, rejected):
    found = parse_continuation(
        text, Cues(), instruction="Name it.", ended=ended, needs_output=needs_output
    )
    assert [(one.input, one.output) for one in found.instances] == instances
    assert list(found.rejected) == rejected


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80), st.booleans(), st.booleans())
def test_any_text_at_all_is_read_or_rejected(text, ended, needs_output):
    found = parse_continuation(text, Cues(), ended=ended, needs_output=needs_output)
    assert found.instances or found.rejected
    assert all(one.input.strip() == one.input != "" for one in found.instances)
    assert all(one.output or not needs_output for one in found.instances)
