"""Changes of a config that make its step smaller or faster, as the overrides that a user types."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxrecipes.config import Config
from jaxrecipes.experiment.program import ArmProgram
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.plan.target import Target
from jaxrecipes.sharding.mesh import AXES, MeshShape, resolve_mesh_shape

# What a layer keeps for its backward pass, from most to least.
REMAT_ORDER = ("none", "dots", "full", "groups", "offload")
_SMALLEST_CHUNK = 128
# A part of a row, or of the heads, that is worth a device of its own.
_SMALLEST_PART = 1024
_LARGEST_TENSOR = 8


@dataclass(frozen=True)
class Change:
    """Values for some keys of a config.

    Attributes:
        values: Pairs (dotted key, value).
    """

    values: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        """Formats the overrides, to be put behind the command."""
        return " ".join(f"{key}={_text(value)}" for key, value in self.values)

    def __add__(self, other: Change) -> Change:
        """Joins two changes of different keys."""
        return Change(self.values + other.values)


def apply(config: Config, change: Change) -> Config:
    """Returns the config with a change.

    Args:
        config: An arm's config.
        change: What to change.

    Returns:
        A new config.

    Raises:
        pydantic.ValidationError: The values do not go together.
    """
    data = config.model_dump(exclude_unset=True)
    for key, value in change.values:
        *sections, name = key.split(".")
        place = data
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return Config.model_validate(data)


def remat_change(config: Config, remat: str) -> Change:
    """Returns the change to another `train.remat`."""
    values: list[tuple[str, Any]] = [("train.remat", remat)]
    if config.train.remat_names:
        values.append(("train.remat_names", []))
    return Change(tuple(values))


def mesh_change(config: Config, shape: MeshShape) -> Change:
    """Returns the change to another mesh, as few keys as will do."""
    values = []
    for name in AXES:
        given, wanted = getattr(config.mesh, name), getattr(shape, name)
        takes_rest = name == "fsdp" and given == -1
        if given != wanted and not takes_rest:
            values.append((f"mesh.{name}", wanted))
    return Change(tuple(values))


def mesh_of(config: Config, target: Target) -> MeshShape:
    """Returns the mesh that a config gives a target."""
    section = config.mesh
    shape = MeshShape(section.data, section.fsdp, section.context, section.tensor, section.slices)
    return resolve_mesh_shape(shape, len(target.devices))


def possible_meshes(config: Config, model: ModelConfig, target: Target) -> list[MeshShape]:
    """Lists the meshes that a target, a model and a batch allow and that may be worth a try.

    Args:
        config: The arm's config.
        model: The base model.
        target: What to compile for.

    Returns:
        Shapes, fewest parts of rows and heads first; axes are powers of two. Rows are only cut
        into parts of at least 1024 tokens.
    """
    count, slices = len(target.devices), config.mesh.slices
    heads = math.gcd(model.num_heads, model.num_kv_heads, model.intermediate_size)
    found = []
    for tensor in _powers(min(_LARGEST_TENSOR, heads, count)):
        for context in _powers(min(max(config.data.length // _SMALLEST_PART, 1), count)):
            for data in _powers(count):
                fsdp, rest = divmod(count, tensor * context * data)
                fits = (
                    not rest
                    and fsdp
                    and heads % tensor == 0
                    and config.data.length % context == 0
                    and data % slices == 0
                    and config.train.batch_size % (data * fsdp) == 0
                )
                if fits:
                    found.append(MeshShape(data, fsdp, context, tensor, slices))
    return sorted(found, key=lambda shape: (shape.tensor * shape.context, shape.data))


def possible_rows(config: Config, shape: MeshShape) -> list[int]:
    """Lists the micro-batches of a mesh, largest first: 1, 2, 4, ... rows a device that takes rows.

    Args:
        config: The arm's config; its batch size stays.
        shape: The mesh.

    Returns:
        Values for `train.micro_batch_size`; empty where the batch cannot be shared.
    """
    takers, batch = shape.data * shape.fsdp, config.train.batch_size
    if batch % takers:
        return []
    return [
        takers * rows for rows in reversed(_powers(batch // takers)) if batch % (takers * rows) == 0
    ]


def smaller_steps(
    config: Config, model: ModelConfig, target: Target
) -> tuple[list[Change], list[Change]]:
    """Lists changes that may make a step fit.

    Args:
        config: The arm's config.
        model: The base model.
        target: What it did not fit.

    Returns:
        Single changes, those that cost least first, and pairs of one with `train.remat`.
    """
    train, shape = config.train, mesh_of(config, target)
    others = []
    if config.model.compute_dtype == "float32":
        others.append(Change((("model.compute_dtype", "bfloat16"),)))
    rows = train.micro_batch_size or train.batch_size
    smaller = [one for one in possible_rows(config, shape) if one < rows]
    others += [Change((("train.micro_batch_size", one),)) for one in smaller]
    chunk = max(train.loss_chunk // 4, _SMALLEST_CHUNK)
    if chunk < train.loss_chunk:
        others.append(Change((("train.loss_chunk", chunk),)))
    for mesh in possible_meshes(config, model, target):
        wide = mesh.tensor * mesh.context
        takers = mesh.data * mesh.fsdp
        if mesh != shape and rows % takers == 0 and mesh.data == mesh.slices and wide <= 2:
            others.append(mesh_change(config, mesh))
    now = REMAT_ORDER.index("dots" if train.remat == "names" else train.remat)
    # The CPU has no other memory to offload to.
    stronger = [
        remat_change(config, remat)
        for remat in REMAT_ORDER[max(now + 1, 2) :]
        if remat != "offload" or target.devices[0].platform != "cpu"
    ]
    return [*stronger, *others], [one + other for one in stronger[:1] for other in others]


def device_bytes(tree: Any) -> int:
    """Returns the bytes of a tree on one device.

    Args:
        tree: Arrays or shapes, with shardings where they are spread over devices.
    """
    total = 0
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        shape = sharding.shard_shape(leaf.shape) if sharding is not None else leaf.shape
        total += math.prod(shape) * _itemsize(leaf)
    return total


def least_bytes(program: ArmProgram) -> int:
    """Returns what a step needs in any case: its state, the frozen weights and all gradients.

    Gradients of all leaves are alive together: their norm is known only when the last is.
    """
    return device_bytes((program.state, program.held)) + device_bytes(program.trainable)


def in_bytes(count: float) -> str:
    """Formats a size in GiB, or in MiB where it is less than one."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def typed_change(change: Change, own: Iterable[str], number: int | None) -> Change:
    """Rewrites keys that an arm of `compare` sets itself: the top level does not reach them.

    Args:
        change: A change of the arm's config.
        own: Keys that the arm's item sets ("train.remat").
        number: The item's index; None for the main arm.

    Returns:
        The change of the whole config.
    """
    if number is None:
        return change
    names: Mapping[str, str] = {key: f"compare.{number}.{key}" for key in own}
    return Change(tuple((names.get(key, key), value) for key, value in change.values))


def _itemsize(leaf: Any) -> int:
    # Keys of random numbers have no size of their own.
    return getattr(leaf.dtype, "itemsize", 4)


def _powers(limit: int) -> list[int]:
    return [2**exponent for exponent in range(limit.bit_length())]


def _text(value: Any) -> str:
    return "[]" if value == [] else str(value)
