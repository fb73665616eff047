"""How layers are strung together: one after the other, or as scans over stacked parameters.

A `Layout` says which layers form a segment. A segment is a sequence of runs that repeats; a run is
a number of consecutive layers of one kind. With `[]` for a scan, 30 frozen layers and five new
blocks on top of every sixth are `[F x 6] [T [F x 6] ] x 4 T`: a prefix that needs no backward pass,
repeated groups, a suffix. Compile time follows the number of runs, not the number of layers.

The canonical tree is the layout in which every layer stands alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from jaxrecipes.errors import ConfigError
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.execution import ONE_DEVICE, Execution
from jaxrecipes.models.layers import Block, Tokens
from jaxrecipes.sharding.rules import gather_layer

Tree = dict[str, Any]


@dataclass(frozen=True)
class Segment:
    """Runs of layers that repeat.

    Attributes:
        start: Index of the first layer.
        runs: Number of layers in each run.
        repeats: How often the sequence of runs occurs.
    """

    start: int
    runs: tuple[int, ...]
    repeats: int

    @property
    def period(self) -> int:
        """Number of layers in one repetition."""
        return sum(self.runs)

    @property
    def stop(self) -> int:
        """Index one past the last layer."""
        return self.start + self.period * self.repeats

    def run_layers(self, run: int) -> list[list[int]]:
        """Returns the layer indices of a run, one list for each repetition."""
        offset = self.start + sum(self.runs[:run])
        return [
            list(
                range(offset + self.period * repeat, offset + self.period * repeat + self.runs[run])
            )
            for repeat in range(self.repeats)
        ]


@dataclass(frozen=True)
class Layout:
    """All segments of a model, in order; every layer belongs to exactly one run."""

    segments: tuple[Segment, ...]

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return self.segments[-1].stop if self.segments else 0

    def runs(self) -> Iterator[tuple[str, Segment, int]]:
        """Yields (path in the runtime tree, segment, run index) of each run."""
        for number, segment in enumerate(self.segments):
            for run in range(len(segment.runs)):
                yield f"segments/{number}/{run}", segment, run


# A policy by name, or the names of the values that are kept.
RematPolicy = str | tuple[str, ...]
REMAT_POLICIES = ("none", "dots", "full", "offload", "groups")
# Values of a layer that a policy can keep, in the order in which they are computed.
SAVEABLE_NAMES = (
    "query",
    "key",
    "value",
    "attention",
    "after_attention",
    "gate",
    "up",
    "down",
)
_LAYER_INPUT = "layer_input"


def rematerialise(function: Callable, policy: RematPolicy, *, in_scan: bool) -> Callable:
    """Chooses what a layer keeps for its backward pass.

    Whatever the policy, a frozen layer keeps less than a trained one: its backward pass needs no
    gradient of a weight, and so no input of a product.

    Args:
        function: The layer, from hidden states and parameters to hidden states.
        in_scan: The layer is the body of a scan. Outside of one, the compiler would find that the
            backward pass repeats work of the forward pass, and keep the results after all.
        policy: Of a layer, so any but "groups". "none" keeps what differentiation needs; "dots"
            keeps the results of products with weights, and computes attention and element-wise
            functions again; a tuple keeps those of `SAVEABLE_NAMES`; "full" keeps the layer's input
            only; "offload" keeps that in the host's memory.

    Returns:
        The function, wrapped.

    Raises:
        ConfigError: An unknown policy or name.
    """
    policies = jax.checkpoint_policies
    if policy == "none":
        return function
    if policy == "offload":

        def named(hidden_states: jax.Array, parameters: Tree) -> jax.Array:
            return function(checkpoint_name(hidden_states, _LAYER_INPUT), parameters)

        saved = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[_LAYER_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        )
        return jax.checkpoint(named, policy=saved, prevent_cse=not in_scan)
    if policy == "full":
        saved = policies.nothing_saveable
    elif policy == "dots":
        saved = policies.save_from_both_policies(
            policies.save_only_these_names("after_attention"),
            policies.dots_with_no_batch_dims_saveable,
        )
    elif isinstance(policy, tuple) and not set(policy) - set(SAVEABLE_NAMES):
        saved = policies.save_only_these_names(*policy)
    else:
        raise ConfigError(
            f"train.remat is {policy!r}; expected one of {', '.join(REMAT_POLICIES)}, or names out "
            f"of {', '.join(SAVEABLE_NAMES)}"
        )
    return jax.checkpoint(function, policy=saved, prevent_cse=not in_scan)


def apply_layers(
    config: ModelConfig,
    params: Tree,
    hidden_states: jax.Array,
    tokens_of: Callable[[int], Tokens],
    *,
    layout: Layout | None,
    remat: RematPolicy,
    execution: Execution = ONE_DEVICE,
) -> jax.Array:
    """Runs every layer, in the canonical or in a runtime layout.

    Args:
        config: The model.
        params: Tree with `layers/<index>/…` where `layout` is None, else with
            `segments/<number>/<run>/…`, whose leaves are stacked [repeats, run length, …]
            without the axes that have length one.
        hidden_states: [batch, length, hidden_size].
        tokens_of: Gives a layer index its segments, positions and rotations.
        layout: How the layers are stacked.
        remat: See `rematerialise`; "groups" keeps the inputs of groups of layers: the repetitions
            of a segment, or groups of a long run. It needs the least memory, and one more forward
            pass. In the canonical tree it is "full".
        execution: Devices and attention backend.

    Returns:
        [batch, length, hidden_size].
    """

    def layer(index: int) -> Callable[[jax.Array, Tree], jax.Array]:
        block = Block(config, config.window(index), execution)
        tokens = tokens_of(index)

        def apply(states: jax.Array, parameters: Tree) -> jax.Array:
            # Inside of what is rematerialised: the gathered copy lives as long as the layer.
            parameters = gather_layer(parameters, states.dtype, execution.mesh)
            return block.apply({"params": parameters}, states, tokens)[0]

        return apply

    return string_layers(
        layer, params, hidden_states, num_layers=config.num_layers, layout=layout, remat=remat
    )


def string_layers(
    layer_of: Callable[[int], Callable[[Any, Tree], Any]],
    params: Tree,
    states: Any,
    *,
    num_layers: int,
    layout: Layout | None,
    remat: RematPolicy,
) -> Any:
    """Runs the layers of any model one after the other, in the canonical or in a runtime layout.

    Args:
        layer_of: Gives a layer's index its function from states and parameters to states. Layers of
            one run share the function of the first.
        params: See `apply_layers`.
        states: What goes from layer to layer: a tree of arrays of fixed shapes.
        num_layers: Number of layers.
        layout: How the layers are stacked; None for the canonical tree.
        remat: See `apply_layers`.

    Returns:
        The states after the last layer.
    """

    def layer(index: int, *, in_scan: bool) -> Callable[[Any, Tree], Any]:
        return rematerialise(layer_of(index), remat, in_scan=in_scan)

    # The layers of a group that is computed again keep their inputs while they are.
    by_group, remat = remat == "groups", "full" if remat == "groups" else remat
    if layout is None:
        for index in range(num_layers):
            states = layer(index, in_scan=False)(states, params["layers"][str(index)])
        return states

    for number, segment in enumerate(layout.segments):
        stacks = params["segments"][str(number)]

        def one_repeat(states: Any, stacks: Tree, segment: Segment = segment) -> Any:
            for run, length in enumerate(segment.runs):
                scanned = length > 1 or segment.repeats > 1
                function = layer(segment.run_layers(run)[0][0], in_scan=scanned)
                stack = stacks[str(run)]
                if length == 1:
                    states = function(states, stack)
                elif by_group and segment.repeats == 1:
                    states = _scan_groups(function, states, stack, length)
                else:
                    states = _scan(function, states, stack)
            return states

        if segment.repeats == 1:
            states = one_repeat(states, stacks)
        elif by_group:
            states = _scan(_keep_input(one_repeat), states, stacks)
        else:
            states = _scan(one_repeat, states, stacks)
    return states


def _scan(function: Callable, states: Any, stack: Tree) -> Any:
    return jax.lax.scan(lambda carry, one: (function(carry, one), None), states, stack)[0]


def _keep_input(function: Callable) -> Callable:
    """Keeps nothing of a scan's body for its backward pass but what goes into it."""
    policy = jax.checkpoint_policies.nothing_saveable
    return jax.checkpoint(function, policy=policy, prevent_cse=False)


def _scan_groups(function: Callable, states: Any, stack: Tree, length: int) -> Any:
    """Runs equal layers in groups, about as many as a group has layers, that keep their input.

    Of n layers about 2 sqrt(n) inputs exist at one time (arXiv 1604.06174, section 4.2).
    """
    size = max(size for size in range(1, math.isqrt(length) + 1) if length % size == 0)
    groups = jax.tree.map(lambda leaf: leaf.reshape(length // size, size, *leaf.shape[1:]), stack)
    return _scan(_keep_input(partial(_scan, function)), states, groups)
