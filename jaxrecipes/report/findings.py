"""What came out, in plain words: the report says so too where a recipe is not better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxrecipes.report.numbers import interval, negative, number, percent, value
from jaxrecipes.report.orders import context_findings
from jaxrecipes.report.rewrites import rewrite_findings

Arm = Mapping[str, Any]


def findings(arms: Sequence[Arm], compared: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Writes the sentences at the top of a report.

    Args:
        arms: As in `results.json`, at least one; the first is the one that the others are
            compared with.
        compared: Measure -> comparison at equal learning, as in `results.json`.

    Returns:
        The headline, then further sentences: what each arm learned, every comparison at equal
        learning, and what became of the accuracy on general questions.
    """
    learned = [_learned(arm) for arm in arms]
    at_equal = _at_equal_learning(arms, compared["kl"]) if len(arms) > 1 else []
    headline = _headline(arms, compared["kl"], learned)
    rest = [sentence for sentence in [*learned, *at_equal] if sentence != headline]
    return [headline, *rest, *rewrite_findings(arms), *context_findings(arms), *_accuracy(arms)]


def verdict(difference: Mapping[str, Any] | None) -> str:
    """Says what a baseline's forgetting minus the first arm's means for the first arm.

    Returns:
        "less", "more" or "same": the first arm forgot less, more, or not measurably different;
        "unknown" without an interval.
    """
    if not difference or difference.get("low") is None or difference.get("high") is None:
        return "unknown"
    if difference["low"] > 0:
        return "less"
    return "more" if difference["high"] < 0 else "same"


def _headline(arms: Sequence[Arm], comparison: Mapping[str, Any], learned: list[str]) -> str:
    first, others = arms[0]["name"], [arm["name"] for arm in arms[1:]]
    if not others:
        return learned[0]
    if comparison["gain"] is None:
        return (
            f"{first} and {_listed(others)} cannot be compared at equal learning: "
            f"{comparison['reason']}."
        )
    verdicts = {name: verdict(comparison["differences"].get(name)) for name in others}
    parts = []
    words = {
        "less": "forgot less than",
        "more": "forgot more than",
        "same": "forgot about as much as",
        "unknown": "cannot be told apart, for want of an interval, from",
    }
    for kind, word in words.items():
        names = [name for name in others if verdicts[name] == kind]
        if names:
            parts.append(f"{word} {_listed(names)}")
    sentence = f"At equal learning, {first} {', and '.join(parts)}"
    if len(others) == 1:
        ours, theirs = (value(comparison["forgetting"].get(one)) for one in (first, others[0]))
        sentence += f" ({ours} against {theirs} nats a token from the base)"
    sentence += "."
    if "less" not in verdicts.values() and "unknown" not in verdicts.values():
        sentence += f" Here {first} is not the better choice."
    return sentence


def _learned(arm: Arm) -> str:
    name, after = arm["name"], arm["after"]
    gain = negative(after["learn"].get("change"))
    if after["step"] == 0:
        return f"{name} was not evaluated after training yet."
    if gain is None or gain["value"] is None:
        return f"{name}: loss on the learn set is {value(after['learn']['loss'])} nats a token."
    loss = number(after["learn"]["loss"]["value"])
    before = number(after["learn"]["loss"]["value"] + gain["value"])
    moved = f"from {before} to {loss} nats a token"
    bounds = interval(gain)
    low, high = gain["low"], gain["high"]
    known = "" if not bounds else f" (gain {value(gain)}, 95\u00a0% interval {bounds})"
    if low is None or high is None:
        sentence = f"{name}: loss on the learn set went {moved}"
    elif low > 0:
        sentence = f"{name} learned: loss on the learn set fell {moved}{known}"
    elif high < 0:
        sentence = f"{name} got worse at what it was taught: loss rose {moved}{known}"
    else:
        sentence = f"{name} did not measurably learn: loss went {moved}{known}"
    kl = (after.get("keep") or {}).get("kl")
    if kl and kl.get("value") is not None:
        bounds = interval(kl)
        sentence += f"; on the keep set it is {value(kl)} nats a token from the base" + (
            f" ({bounds})" if bounds else ""
        )
    return sentence + "."


def _at_equal_learning(arms: Sequence[Arm], comparison: Mapping[str, Any]) -> list[str]:
    if comparison["gain"] is None:
        return []
    first = arms[0]["name"]
    sentences = []
    for arm in arms[1:]:
        name = arm["name"]
        ours, theirs = (comparison["forgetting"][one] for one in (first, name))
        difference = comparison["differences"][name]
        bounds = interval(difference, signed=True)
        sentences.append(
            f"At the gain of {number(comparison['gain'])} nats a token that all arms reached, "
            f"{first} is {value(ours)} nats a token from the base on the keep set, {name} "
            f"{value(theirs)}"
            + (f" (difference {value(difference, signed=True)}, {bounds})." if bounds else ".")
        )
    return sentences


def _accuracy(arms: Sequence[Arm]) -> list[str]:
    sentences = []
    for key, what in (("choices", "multiple-choice questions"), ("last_words", "last words")):
        parts, base, items = [], None, 0
        for arm in arms:
            block = arm["after"].get(key)
            change = percent((block or {}).get("change"))
            if not block or not change or arm["after"]["step"] == 0:
                continue
            accuracy, items = percent(block["accuracy"]), block["items"]
            if accuracy is None or accuracy["value"] is None or change["value"] is None:
                continue
            base = accuracy["value"] - change["value"]
            bounds = interval(change, 1, signed=True)
            parts.append(
                f"{arm['name']} {value(accuracy, 1)}\u00a0% ({value(change, 1, signed=True)} points"
                + (f", {bounds})" if bounds else ")")
            )
        if parts:
            sentences.append(
                f"Accuracy on {items} {what}: base {number(base, 1)}\u00a0%, {', '.join(parts)}."
            )
    return sentences


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
