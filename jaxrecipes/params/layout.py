"""The canonical tree and its run-time layout: which layers are stacked for which scan.

Layers of one kind (same attention type, same labels on the same leaves) can share a scan. The
layout never mixes kinds in one stack, so a stack is trained as a whole or frozen as a whole, and
frozen stacks enter a scan as its inputs and are never sliced inside a rematerialised body (that
would keep one more copy of all frozen weights). The layers below the lowest trainable one form
segments of their own: nothing there takes part in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.encoder_config import EncoderConfig
from jaxrecipes.models.stacking import Layout, Segment
from jaxrecipes.params.paths import Tree, flatten, unflatten

Kind = Hashable


def plan_layout(
    config: ModelConfig | EncoderConfig,
    labels: Mapping[str, Hashable],
    trains: Callable[[Hashable], bool] = bool,
    *,
    tree: Mapping[str, Any] | None = None,
) -> Layout:
    """Finds the layout with the fewest layer bodies to compile.

    Args:
        config: The model.
        labels: For each canonical path anything hashable that tells leaves apart which must not
            share a stack: whether it trains, whether it decays. See `rules.label`.
        trains: Says for a label whether the leaf trains.
        tree: The canonical tree, of arrays or shapes. Needed where layers with the same leaves can
            differ in their shapes (adapters of different rank): those never share a stack.

    Returns:
        Segments in order. Layers below the lowest one with a trainable leaf are in segments of
        their own.
    """
    kinds: list[dict[str, Hashable]] = [{} for _ in range(config.num_layers)]
    for path, value in labels.items():
        if path.startswith("layers/"):
            _, index, relative = path.split("/", 2)
            kinds[int(index)][relative] = value
    signatures: list[Kind] = [
        (config.layer_types[index], frozenset(kind.items())) for index, kind in enumerate(kinds)
    ]
    if tree is not None:
        shapes: list[set[tuple[str, tuple[int, ...]]]] = [set() for _ in kinds]
        for path, leaf in flatten(tree.get("layers", {})).items():
            index, relative = path.split("/", 1)
            shapes[int(index)].add((relative, tuple(leaf.shape)))
        signatures = [(one, frozenset(s)) for one, s in zip(signatures, shapes, strict=True)]
    lowest = next(
        (
            index
            for index, kind in enumerate(kinds)
            if any(trains(value) for value in kind.values())
        ),
        config.num_layers,
    )
    segments = _segments(signatures[:lowest], 0) + _segments(signatures[lowest:], lowest)
    return Layout(tuple(segments))


def _segments(signatures: Sequence[Kind], start: int) -> list[Segment]:
    """Cuts layers into repeated sequences of runs, with as few runs in total as possible."""
    runs: list[tuple[Kind, int]] = []
    for signature in signatures:
        if runs and runs[-1][0] == signature:
            runs[-1] = (signature, runs[-1][1] + 1)
        else:
            runs.append((signature, 1))
    count = len(runs)
    # best[i]: (number of bodies, segments) for the runs from i on.
    best: list[tuple[int, list[tuple[int, int, int]]]] = [(0, [])] * (count + 1)
    for first in reversed(range(count)):
        choices = []
        for width in range(1, count - first + 1):
            repeats = 1
            while (
                runs[first : first + width]
                == runs[first + repeats * width : first + (repeats + 1) * width]
            ):
                repeats += 1
            rest = best[first + repeats * width]
            choices.append((width + rest[0], [(first, width, repeats), *rest[1]]))
        best[first] = min(choices, key=lambda choice: (choice[0], len(choice[1])))
    segments = []
    for first, width, repeats in best[0][1]:
        lengths = tuple(length for _, length in runs[first : first + width])
        segments.append(Segment(start, lengths, repeats))
        start = segments[-1].stop
    return segments


def runtime_path(layout: Layout, path: str) -> str:
    """Returns the path of the stack that a canonical leaf is part of."""
    if not path.startswith("layers/"):
        return path
    _, index, relative = path.split("/", 2)
    for run_path, segment, run in layout.runs():
        if any(int(index) in layers for layers in segment.run_layers(run)):
            return f"{run_path}/{relative}"
    raise ValueError(f"{path}: the layout has {layout.num_layers} layers")


def runtime_labels(layout: Layout, labels: Mapping[str, Hashable]) -> dict[str, Hashable]:
    """Returns the label of each runtime leaf, given those of the canonical leaves."""
    return {runtime_path(layout, path): value for path, value in labels.items()}


def canonical_paths(layout: Layout, path: str) -> list[str]:
    """Returns the canonical leaves that a runtime leaf holds, in stacking order."""
    if not path.startswith("segments/"):
        return [path]
    _, number, run, relative = path.split("/", 3)
    segment = layout.segments[int(number)]
    return [
        f"layers/{index}/{relative}" for layers in segment.run_layers(int(run)) for index in layers
    ]


def to_runtime(layout: Layout, tree: Mapping[str, Any]) -> Tree:
    """Stacks a canonical tree, or one half of a partition of it.

    Args:
        layout: Which layers are stacked.
        tree: Canonical leaves: arrays of NumPy or JAX, or `jax.ShapeDtypeStruct`.

    Returns:
        The tree with `segments/<number>/<run>/…` in place of `layers/<index>/…`; a leaf is
        [repeats, run length, …] without the axes of length one.
    """
    leaves = {path: leaf for path, leaf in flatten(tree).items() if not path.startswith("layers/")}
    layers: Mapping[str, Any] = tree.get("layers", {})
    for run_path, segment, run in layout.runs():
        indices = segment.run_layers(run)
        stacked = [[flatten(layers.get(str(index), {})) for index in row] for row in indices]
        for relative in stacked[0][0]:
            rows = [
                _stack([layer[relative] for layer in row]) if len(row) > 1 else row[0][relative]
                for row in stacked
            ]
            leaves[f"{run_path}/{relative}"] = _stack(rows) if len(rows) > 1 else rows[0]
    return unflatten(leaves)


def to_canonical(layout: Layout, tree: Mapping[str, Any]) -> Tree:
    """Unstacks a runtime tree, or one half of a partition of it; the inverse of `to_runtime`."""
    leaves: dict[str, Any] = {}
    for path, leaf in flatten(tree).items():
        if not path.startswith("segments/"):
            leaves[path] = leaf
            continue
        _, number, run, relative = path.split("/", 3)
        segment = layout.segments[int(number)]
        for repeat, row in enumerate(segment.run_layers(int(run))):
            for place, index in enumerate(row):
                at = ((repeat,) if segment.repeats > 1 else ()) + ((place,) if len(row) > 1 else ())
                leaves[f"layers/{index}/{relative}"] = _slice(leaf, at)
    ordered = sorted(leaves, key=lambda path: _canonical_order(path))
    return unflatten({path: leaves[path] for path in ordered})


def _canonical_order(path: str) -> tuple[int, int]:
    parts = path.split("/")
    if parts[0] == "layers":
        return 1, int(parts[1])
    return (0, 0) if parts[0] == "embedding" else (2, 0)


def _stack(leaves: Sequence[Any]) -> Any:
    first = leaves[0]
    if isinstance(first, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(leaves), *first.shape), first.dtype)
    if isinstance(first, np.ndarray):
        return np.stack(leaves)
    return jnp.stack(leaves)


def _slice(leaf: Any, at: tuple[int, ...]) -> Any:
    if not at:
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape[len(at) :], leaf.dtype)
    return leaf[at]
