from __future__ import annotations

import pytest

from jaxrecipes.report.findings import findings, verdict


def measured(value, spread=0.01) -> dict:
    return {"value": value, "low": value - spread, "high": value + spread}


def arm(name, change, kl=0.02, spread=0.01, step=40) -> dict:
    learn = {"loss": measured(2.9 + change), "change": measured(change, spread)}
    return {"name": name, "after": {"step": step, "learn": learn, "keep": {"kl": measured(kl)}}}


def comparison(difference, *, spread=0.001) -> dict:
    kl = {
        "gain": 0.4,
        "forgetting": {"ours": measured(0.02), "full": measured(0.02 + difference)},
        "differences": {"full": measured(difference, spread)},
        "reason": None,
    }
    return {"kl": kl}


ARMS = [arm("ours", -0.4), arm("full", -0.5)]


@pytest.mark.parametrize(
    ("difference", "spread", "expected", "better"),
    [
        (0.03, 0.001, "ours forgot less than full (0.020 against 0.050", True),
        (-0.01, 0.001, "ours forgot more than full (0.020 against 0.010", False),
        (0.001, 0.01, "ours forgot about as much as full", False),
    ],
)
def test_the_headline_says_who_forgot_less_also_when_it_is_the_baseline(
    difference, spread, expected, better
):
    headline = findings(ARMS, comparison(difference, spread=spread))[0]
    assert expected in headline
    assert ("is not the better choice" in headline) is not better


def test_several_baselines_are_told_apart():
    compared = comparison(0.03)
    compared["kl"]["forgetting"]["freeze"] = measured(0.01)
    compared["kl"]["differences"]["freeze"] = measured(-0.01, 0.001)
    headline = findings([*ARMS, arm("freeze", -0.4)], compared)[0]
    assert headline == "At equal learning, ours forgot less than full, and forgot more than freeze."


def test_without_a_comparison_the_headline_gives_the_reason():
    nothing = {"kl": {"gain": None, "forgetting": {}, "differences": {}, "reason": "ours is idle"}}
    headline = findings(ARMS, nothing)[0]
    assert "cannot be compared" in headline and "ours is idle" in headline


@pytest.mark.parametrize(
    ("change", "step", "expected"),
    [
        (-0.4, 40, "ours learned: loss on the learn set fell from 2.900 to 2.500"),
        (-0.001, 40, "ours did not measurably learn"),
        (0.2, 40, "ours got worse at what it was taught"),
        (0.0, 0, "ours was not evaluated after training yet"),
    ],
)
def test_one_arm_is_described_as_it_came_out(change, step, expected):
    nothing = {"kl": {"gain": None, "forgetting": {}, "differences": {}, "reason": "one arm"}}
    sentences = findings([arm("ours", change, step=step)], nothing)
    assert sentences[0].startswith(expected)
    assert len(sentences) == len(set(sentences)) == 1


def test_accuracy_names_the_base():
    one = arm("ours", -0.4)
    one["after"]["choices"] = {"accuracy": measured(0.5), "change": measured(-0.05), "items": 164}
    nothing = {"kl": {"gain": None, "forgetting": {}, "differences": {}, "reason": "one arm"}}
    sentence = findings([one], nothing)[-1].replace("\u00a0", " ")
    assert sentence == (
        "Accuracy on 164 multiple-choice questions: base 55.0 %, ours 50.0 % (−5.0 points, −6.0 to "
        "−4.0)."
    )


def test_verdicts():
    assert verdict(None) == "unknown"
    assert verdict({"value": 1, "low": None, "high": None}) == "unknown"
    assert [verdict(measured(x, 0.1)) for x in (1, -1, 0)] == ["less", "more", "same"]
