"""The result of a run in plain sentences, computed from its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxrecipes.report.results import measured


def headline(results: Mapping[str, Any]) -> list[str]:
    """Says what the main arm learned and what it forgot, good or bad.

    Args:
        results: From `collect_results`.

    Returns:
        Sentences, the most important first.
    """
    main = results["arms"][0]
    sentences = [_learned(main), *_forgot(results)]
    if results["unfinished"]:
        sentences.append(f"Not finished, so not in this report: {_names(results['unfinished'])}.")
    return sentences


def _learned(arm: Mapping[str, Any]) -> str:
    name, change = arm["name"], measured(arm["after"], "learn", "change")
    if change is None:
        return f"What {name} learned was not measured: it has no evaluation after training began."
    gain = -change["value"]
    before, after = (measured(arm[when], "learn", "loss") for when in ("before", "after"))
    losses = (
        f", from {before['value']:.4f} to {after['value']:.4f}"
        if before is not None and after is not None
        else ""
    )
    if change["low"] is None or change["high"] is None:
        interval, certain = " (no interval: too few documents)", None
    else:
        low, high = sorted((-change["low"], -change["high"]))
        if gain < 0:
            low, high = -high, -low
        interval = f" (95 % interval {low:.4f} to {high:.4f})"
        certain = low > 0
    verb = "lowered" if gain > 0 else "raised"
    doubt = "; the interval includes zero, so this may be chance" if certain is False else ""
    if gain == 0:
        return f"{name} learned nothing: its loss on held-out learn text did not change{losses}."
    start = name if gain > 0 else f"{name} did not learn: it"
    return (
        f"{start} {verb} the loss on held-out learn text by {abs(gain):.4f} nats a token"
        f"{interval}{losses}{doubt}."
    )


def _forgot(results: Mapping[str, Any]) -> list[str]:
    main, equal = results["arms"][0], results["equal_learning"]
    name = main["name"]
    sentences = []
    divergence = measured(main["after"], "keep", "kl")
    if divergence is None:
        return ["What it forgot was not measured: there is no keep set with KL in this run."]
    sentences.append(
        f"At the end of training it was {divergence['value']:.4f} nats a token (KL) away from "
        f"the base model on keep text{_bounds(divergence, '95 %')}."
    )
    if len(results["arms"]) == 1:
        return [*sentences, "There is no other finished arm to compare it with."]
    if equal["gain"] is None or name not in equal["forgetting"]:
        reason = equal["reason"] if equal["gain"] is None else "; ".join(equal["left_out"])
        return [*sentences, f"The arms cannot be compared at equal learning: {reason}."]
    # Without a curve of the main arm the comparison's first arm, hence the sign, would be another.
    own = equal["forgetting"][name]["value"]
    for other, difference in equal["differences"].items():
        sentences.append(
            f"Where both had learned {equal['gain']:.4f} nats a token, {name} forgot {own:.4f} "
            f"and {other} {equal['forgetting'][other]['value']:.4f} nats a token: "
            f"{_verdict(name, other, difference, results['confidence'])}."
        )
    if equal["left_out"]:
        sentences.append(f"Left out of the comparison: {'; '.join(equal['left_out'])}.")
    return sentences


def _verdict(name: str, other: str, difference: Mapping[str, Any], confidence: float) -> str:
    value, low, high = (difference[end] for end in ("value", "low", "high"))
    word = "less" if value > 0 else "more"
    if value == 0:
        return f"{name} forgot as much as {other}"
    if low is None or high is None:
        return f"{name} forgot {word} than {other}, by an amount without an interval"
    interval = _bounds(difference, f"{100 * confidence:g} %", of="difference")
    if low > 0 or high < 0:
        better = "" if value > 0 else ", so it is not better"
        return f"{name} forgot {word} than {other}{interval}{better}"
    return f"no difference can be told, {name} is not better than {other}{interval}"


def _bounds(interval: Mapping[str, Any], confidence: str, of: str = "") -> str:
    if interval["low"] is None or interval["high"] is None:
        return ""
    what = f"{confidence} interval of the {of}" if of else f"{confidence} interval"
    return f" ({what} {interval['low']:.4f} to {interval['high']:.4f})"


def _names(names: list[str]) -> str:
    return ", ".join(names)
