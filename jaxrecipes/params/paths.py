"""Leaves by name: nested dicts and flat dicts of `a/b/c` paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Tree = dict[str, Any]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns nested dicts into one dict from path to leaf, in the tree's order.

    Args:
        tree: Nested dicts with string keys; anything that is not a dict is a leaf.
        prefix: Put before every path.

    Returns:
        For example `{"layers/7/attention/query/kernel": array, …}`. Empty dicts vanish.
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            leaves.update(flatten(value, path))
        else:
            leaves[path] = value
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> Tree:
    """Turns a dict from path to leaf into nested dicts.

    Raises:
        ValueError: A path is both a leaf and the parent of another leaf.
    """
    tree: Tree = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path}: {parent!r} is a leaf and has leaves below it")
        if last in node:
            raise ValueError(f"{path}: there is something at this path already")
        node[last] = leaf
    return tree
