"""Freezing as partition: two trees, of which only one is ever differentiated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxrecipes.params.paths import Tree, flatten, unflatten


def partition(tree: Mapping[str, Any], selects: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """Splits a tree by path.

    Args:
        tree: Nested dicts of leaves.
        selects: Says for a path whether its leaf belongs to the first tree.

    Returns:
        Two trees; a leaf is in exactly one of them and simply absent in the other, so norms,
        clipping, optimizer state and logging of the first cannot see the second.
    """
    selected, rest = {}, {}
    for path, leaf in flatten(tree).items():
        (selected if selects(path) else rest)[path] = leaf
    return unflatten(selected), unflatten(rest)


def combine(first: Mapping[str, Any], second: Mapping[str, Any]) -> Tree:
    """Joins two trees with disjoint leaves; the inverse of `partition`.

    Raises:
        ValueError: A path is in both trees, or is a leaf in one and a parent in the other.
    """
    combined = dict(first)
    for key, value in second.items():
        if key not in combined:
            combined[key] = value
        elif isinstance(value, Mapping) and isinstance(combined[key], Mapping):
            combined[key] = combine(combined[key], value)
        else:
            raise ValueError(f"both trees have a leaf at {key!r}")
    return combined
