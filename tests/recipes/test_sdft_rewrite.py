"""What sdft_rewrite asks, accepts and chooses: the paper's steps and the invariants."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.config.sdft_rewrite import SdftRewriteSection
from jaxrecipes.data.documents import ReadReport
from jaxrecipes.data.example_rows import ExampleRows
from jaxrecipes.data.examples import Completion, Conversation, Example, Labelled
from jaxrecipes.data.split import stable_fraction
from jaxrecipes.errors import DataError
from jaxrecipes.generate.parse import RejectedAnswerError
from jaxrecipes.recipes.sdft_rewrite import (
    HEADINGS,
    Item,
    accept,
    choose,
    item_of,
    make_requests,
    row_of,
    split_request_id,
    summarise,
    with_answer,
)

words = st.text("ab1 .\n#é", min_size=1, max_size=30).filter(str.strip)


def section(**values: Any) -> SdftRewriteSection:
    return SdftRewriteSection.model_validate(values)


def chat(*turns: tuple[str, str], id_: str = "c", first: int = 0) -> Conversation:
    messages = tuple({"role": role, "content": text} for role, text in turns)
    return Conversation(id_, "here", messages, first_supervised=first)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    id_ = draw(st.text("xyz", min_size=1, max_size=5))
    kind = draw(st.sampled_from(["completion", "labelled", "chat", "lists"]))
    if kind == "completion":
        return Completion(id_, "here", draw(words), draw(words))
    if kind == "labelled":
        return Labelled(id_, "here", (draw(words),), draw(st.sampled_from(["yes", "no"])))
    turns = [("system", draw(words))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [("user", draw(words)), ("assistant", draw(words))]
    return chat(*turns, id_=id_, first=len(turns) - 1 if kind == "lists" else 0)


def read_back(row: dict[str, Any]) -> Example | None:
    rows = ExampleRows({}, ReadReport(), None)
    rows.resolve(list(row), where="here")
    return rows.make(row, where="here", default_id="?", id_prefix="")


@settings(deadline=None)
@given(example=examples(), text=words)
def test_a_row_is_read_as_the_example_that_it_was_written_from(example: Example, text: str):
    plain = example.conversation() if isinstance(example, Labelled) else example
    assert read_back(row_of(example)) == plain
    item = item_of(example)
    assert item is not None
    # A fallback is the original byte for byte; a rewriting differs in the last answer alone.
    assert with_answer(example, item.reference) == plain
    changed = with_answer(example, text)
    assert read_back(row_of(changed)) == changed
    if isinstance(changed, Completion):
        assert (changed.prompt, changed.completion) == (plain.prompt, text)  # type: ignore[union-attr]
    else:
        assert isinstance(plain, Conversation) and isinstance(changed, Conversation)
        assert changed.messages[:-1] == plain.messages[:-1]
        assert changed.messages[-1] == {"role": "assistant", "content": text}


@settings(deadline=None)
@given(example=examples(), samples=st.integers(1, 3), seed=st.integers(0, 3))
def test_the_answer_is_in_the_prompt_of_the_rewriting_and_nowhere_else(example, samples, seed):
    secret = "Zanzibar"
    item = item_of(with_answer(example, secret))
    assert item is not None
    shown = make_requests([item], section(samples=samples), seed=seed)
    assert [split_request_id(one.id) for one in shown] == [
        (example.id, sample) for sample in range(samples)
    ]
    assert len({one.seed for one in shown}) == len({one.key for one in shown}) == samples
    assert all(secret in one.messages[0].content for one in shown)
    hidden = make_requests([item], section(samples=samples, reference="hidden"), seed=seed)
    assert not any(
        secret in (one.prompt or "") + "".join(turn.content for turn in one.messages)
        for one in hidden
    )
    # What is learned has the ordinary prompt: without the answer, and without our headings.
    learned = row_of(with_answer(item.example, "Rewritten."))
    assert secret not in str(learned)
    assert not any(heading in str(learned) for heading in HEADINGS)


@settings(deadline=None)
@given(request=st.text("#Your answer:\n", max_size=40), reference=words)
def test_headings_in_data_do_not_divide_the_prompt(request: str, reference: str):
    texts = "\n".join(HEADINGS)
    item = Item(Completion("i", "here", request + texts, texts + reference), texts + reference)
    (asked,) = make_requests([item], section(samples=1), seed=0)
    prompt = asked.messages[0].content
    assert [prompt.count(heading) for heading in HEADINGS] == [1, 1, 1]
    places = [prompt.index(heading) for heading in HEADINGS]
    assert places == sorted(places) and prompt.endswith(HEADINGS[-1])


def test_the_math_wording_begins_the_answer_and_words_of_your_own_replace_ours():
    item = Item(Completion("i", "here", "1 + 1?", "2"), "2")
    (asked,) = make_requests([item], section(samples=1, wording="math"), seed=0)
    assert [turn.role for turn in asked.messages] == ["user", "assistant"]
    own = section(samples=1, wording="math", instruction="Say it again.", opener="Well,")
    (asked,) = make_requests([item], own, seed=0)
    assert asked.messages[0].content.startswith("Say it again.\n")
    assert asked.messages[1].content == "Well,"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("  The sum is 4. ", ""),
        ("I followed the reference answer: 4", "gives the request away"),
        ("4\n### Request:\nnext", "repeats the prompt"),
        ("The sum is 5.", "another number"),
        ("", "empty"),
        ("4" * 400, "too long"),
    ],
)
def test_what_is_accepted(text: str, reason: str):
    item = Item(Completion("i", "here", "2 + 2?", " 2 + 2 = 4"), " 2 + 2 = 4")
    options = section(task="numeric")
    if not reason:
        # A plain completion keeps the blank that divides it from its prompt.
        assert accept(text, item, options) == " The sum is 4."
        return
    with pytest.raises(RejectedAnswerError, match=reason):
        accept(text, item, options)


def test_a_copy_is_the_original_and_not_the_original_with_other_blanks():
    item = Item(Completion("i", "here", "2 + 2?", " 2 + 2\n= 4\n"), " 2 + 2\n= 4\n")
    assert accept("2 + 2 = 4", item, section()) == item.reference


@settings(deadline=None)
@given(
    texts=st.lists(words.map(str.strip), max_size=4),
    scores=st.lists(st.none() | st.floats(0, 9), min_size=4, max_size=4),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 3),
    id_=st.text("xyz", min_size=1, max_size=5),
)
def test_every_example_has_one_provenance_and_learns_the_likeliest_accepted_answer(
    texts, scores, ratio, seed, id_
):
    item = Item(Completion(id_, "here", "p", "the original"), "the original")
    accepted = dict(enumerate(texts))
    nll = {None: 5.0, **{at: one for at, one in enumerate(scores) if one is not None}}
    choice = choose(item, accepted, ["cut off"], nll, section(ratio=ratio), seed=seed)
    fitting = {at: text for at, text in accepted.items() if at in nll}
    assert choice.original_nll == 5.0
    assert sum(choice.reasons.values()) == 1 + len(accepted) - len(fitting)
    if choice.status in ("fallback", "original"):
        assert (choice.text, choice.sample, choice.chosen_nll) == ("the original", None, 5.0)
        kept = stable_fraction(f"ratio\0{id_}", seed) >= ratio
        assert choice.status == ("original" if fitting else "fallback")
        assert kept or not fitting
    else:
        assert choice.text == fitting[choice.sample]
        assert choice.chosen_nll == min(nll[at] for at in fitting)
        assert (choice.status == "copied") == (choice.text == item.reference)
    counts = summarise([choice], {})
    assert sum(counts[name] for name in ("rewritten", "copied", "fallback", "original")) == 1


@settings(deadline=None)
@given(low=st.floats(0, 1), high=st.floats(0, 1), seed=st.integers(0, 3))
def test_a_smaller_ratio_is_a_subset_of_a_larger_one(low, high, seed):
    low, high = sorted((low, high))

    def rewritten(ratio: float) -> set[str]:
        items = [Item(Completion(str(n), "here", "p", "o"), "o") for n in range(30)]
        choices = [
            choose(item, {0: "new"}, [], {None: 2.0, 0: 1.0}, section(ratio=ratio), seed=seed)
            for item in items
        ]
        return {choice.id for choice in choices if choice.status == "rewritten"}

    assert rewritten(low) <= rewritten(high)
    assert len(rewritten(1.0)) == 30 and not rewritten(0.0)


def test_turns_without_a_text_of_the_assistants_are_left_alone():
    call = {"role": "assistant", "content": "", "tool_calls": [{}]}
    assert item_of(Conversation("c", "here", ({"role": "user", "content": "x"}, call))) is None
    assert item_of(chat(("user", "x"), ("assistant", "y"), ("user", "z"))) is None


def test_a_history_with_tool_calls_cannot_be_gone_on_from_without_the_reference():
    call = {"role": "assistant", "content": "", "tool_calls": [{}]}
    turns = ({"role": "user", "content": "x"}, call, {"role": "assistant", "content": "It is 4."})
    item = item_of(Conversation("c", "file:3", turns))
    assert item is not None
    assert make_requests([item], section(), seed=0)
    with pytest.raises(DataError, match="file:3: example 'c' has turns with tool calls"):
        make_requests([item], section(reference="hidden"), seed=0)
