"""Ordered regular expressions over leaf paths: one language for freezing, decay, sharding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from jaxrecipes.errors import ConfigError
from jaxrecipes.params.paths import flatten

Value = TypeVar("Value")


def label(tree: Mapping[str, Any], rules: Sequence[tuple[str, Value]]) -> dict[str, Value]:
    """Gives every leaf the value of the first rule whose expression matches its whole path.

    Args:
        tree: Nested dicts of leaves, or a flat dict from path to leaf.
        rules: Pairs (regular expression, value), in order.

    Returns:
        A dict from path to value with one entry a leaf.

    Raises:
        ConfigError: An expression is not valid, a leaf is matched by no rule, or a rule matches
            nothing at all (a rule that can never act is a typing mistake).
    """
    compiled = []
    for pattern, value in rules:
        try:
            compiled.append((re.compile(pattern), value))
        except re.error as error:
            raise ConfigError(
                f"rule {pattern!r} is not a regular expression: {error}; "
                "a path such as layers/7/mlp/up/kernel must match it as a whole"
            ) from None
    labels: dict[str, Value] = {}
    matching: set[int] = set()
    unmatched: list[str] = []
    for path in flatten(tree):
        hits = [number for number, (pattern, _) in enumerate(compiled) if pattern.fullmatch(path)]
        matching.update(hits)
        if hits:
            labels[path] = compiled[hits[0]][1]
        else:
            unmatched.append(path)
    if unmatched:
        raise ConfigError(
            f"no rule matches {len(unmatched)} of {len(unmatched) + len(labels)} leaves, for "
            f"example {unmatched[0]!r}; end the list with a rule for '.*'"
        )
    for number, (pattern, _) in enumerate(compiled):
        if number not in matching and pattern.pattern != ".*":
            examples = ", ".join(sorted(labels)[:3])
            raise ConfigError(
                f"rule {pattern.pattern!r} matches no leaf; paths look like: {examples}"
            )
    return labels
