from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrecipes.config import Config
from jaxrecipes.plan.candidates import Tried, ranked
from jaxrecipes.plan.changes import (
    Change,
    apply,
    device_bytes,
    in_bytes,
    mesh_change,
    mesh_of,
    possible_meshes,
    possible_rows,
    remat_change,
    smaller_steps,
    typed_change,
)
from jaxrecipes.plan.target import Target
from jaxrecipes.sharding.mesh import MeshShape
from tests.tiny import tiny_config


def config(
    batch_size: int = 16, length: int = 64, mesh: dict | None = None, **train: Any
) -> Config:
    data = {
        "version": 1,
        "recipe": "full",
        "output": "nowhere",
        "model": {"checkpoint": "random:tiny-llama"},
        "data": {
            "length": length,
            "held_out": 0.1,
            "learn": [{"source": "topics"}],
            "keep": {"limit_prompts": 2, "max_new_tokens": 4},
        },
        "train": {
            "steps": 3,
            "batch_size": batch_size,
            "optimizer": {"learning_rate": 1e-3},
            **train,
        },
        "mesh": mesh or {},
    }
    return Config.model_validate(data)


def target(count: int, platform: str = "tpu") -> Target:
    devices = tuple(SimpleNamespace(platform=platform) for _ in range(count))
    return Target(devices, None, None)


def test_a_change_is_what_the_user_types_and_what_is_applied():
    change = remat_change(config(), "full") + Change((("train.micro_batch_size", 4),))
    assert str(change) == "train.remat=full train.micro_batch_size=4"
    changed = apply(config(), change)
    assert (changed.train.remat, changed.train.micro_batch_size) == ("full", 4)
    assert changed.train.batch_size == 16


def test_names_to_keep_go_with_remat_names():
    named = config(remat="names", remat_names=["query"])
    change = remat_change(named, "full")
    assert str(change) == "train.remat=full train.remat_names=[]"
    assert apply(named, change).train.remat_names == []


def test_a_mesh_change_names_only_what_differs():
    assert str(mesh_change(config(), MeshShape(fsdp=8))) == ""
    assert str(mesh_change(config(), MeshShape(fsdp=4, tensor=2))) == "mesh.tensor=2"
    given = config(mesh={"data": 8, "fsdp": 1})
    assert str(mesh_change(given, MeshShape(fsdp=8))) == "mesh.data=1 mesh.fsdp=8"


@given(
    count=st.sampled_from([1, 2, 4, 8, 16]),
    batch=st.integers(1, 48),
    length=st.sampled_from([512, 2048, 4096]),
)
def test_every_mesh_and_micro_batch_is_valid(count, batch, length):
    given = config(batch, length)
    for shape in possible_meshes(given, tiny_config(), target(count)):
        assert shape.devices == count
        assert tiny_config().num_kv_heads % shape.tensor == 0
        assert length // shape.context >= min(length, 1024)
        changed = apply(given, mesh_change(given, shape))
        assert mesh_of(changed, target(count)) == shape
        rows = possible_rows(given, shape)
        assert rows == sorted(rows, reverse=True)
        for one in rows:
            assert one % (shape.data * shape.fsdp) == 0
            assert batch % one == 0


def test_meshes_of_four_devices():
    found = possible_meshes(config(length=2048), tiny_config(), target(4))
    sizes = {shape.sizes for shape in found}
    assert sizes == {
        *((1, 4, 1, 1), (2, 2, 1, 1), (4, 1, 1, 1)),
        *((1, 2, 1, 2), (2, 1, 1, 2), (1, 2, 2, 1), (2, 1, 2, 1), (1, 1, 2, 2)),
    }
    # Two rows cannot be shared by four devices: only meshes that cut rows or heads are left.
    assert {shape.data * shape.fsdp for shape in found} == {4, 2, 1}
    few = possible_meshes(config(2, length=2048), tiny_config(), target(4))
    assert {shape.data * shape.fsdp for shape in few} == {2, 1}


def test_what_may_make_a_step_fit():
    given = config(length=2048, remat="none", loss_chunk=1024)
    single, pairs = smaller_steps(given, tiny_config(), target(4))
    texts = [str(change) for change in single]
    remats = ["train.remat=full", "train.remat=groups", "train.remat=offload"]
    assert texts[:3] == remats
    assert "train.loss_chunk=256" in texts
    assert {"train.micro_batch_size=8", "train.micro_batch_size=4"} <= set(texts)
    assert {"mesh.tensor=2", "mesh.context=2"} <= set(texts)
    assert all(str(pair).startswith("train.remat=full ") for pair in pairs)
    for change in [*single, *pairs]:
        apply(given, change)
    on_cpu, _ = smaller_steps(given, tiny_config(), target(4, "cpu"))
    assert "train.remat=offload" not in [str(change) for change in on_cpu]


def test_keys_that_an_arm_sets_itself_are_changed_there():
    change = remat_change(config(), "full") + Change((("mesh.tensor", 2),))
    assert str(typed_change(change, ["train.remat"], None)) == str(change)
    typed = typed_change(change, ["train.remat"], 3)
    assert str(typed) == "compare.3.train.remat=full mesh.tensor=2"


def test_bytes_of_a_tree():
    tree = {"a": jax.ShapeDtypeStruct((3, 4), jnp.float32), "b": jnp.zeros(5, jnp.bfloat16)}
    assert device_bytes(tree) == 3 * 4 * 4 + 5 * 2
    assert in_bytes(1.5 * 2**30) == "1.50 GiB"
    assert in_bytes(1.5 * 2**20) == "1.5 MiB"


def tried(name: str, *, fits: bool, speed: float, sequential: float, peak: int) -> Tried:
    step: Any = SimpleNamespace(
        fits=fits,
        tokens_per_second=speed,
        bound=SimpleNamespace(sequential=sequential),
        measurement=SimpleNamespace(peak_bytes=peak),
    )
    return Tried(Change((("name", name),)), step, 0)


def test_the_ranking():
    given = [
        Tried(Change((("name", "state"),)), None, 5, "state alone is too large"),
        tried("large", fits=False, speed=9.0, sequential=1.0, peak=9),
        tried("less large", fits=False, speed=1.0, sequential=1.0, peak=8),
        tried("slow", fits=True, speed=1.0, sequential=1.0, peak=1),
        tried("fast, more traffic", fits=True, speed=3.0, sequential=2.0, peak=1),
        tried("fast", fits=True, speed=3.0, sequential=1.0, peak=2),
    ]
    order = [one.change.values[0][1] for one in ranked(given)]
    assert order == ["fast", "fast, more traffic", "slow", "less large", "large", "state"]


@pytest.mark.parametrize("count", [1, 4])
def test_a_batch_that_cannot_be_shared_has_no_micro_batch(count):
    assert possible_rows(config(6), MeshShape(fsdp=4)) == []
    assert possible_rows(config(4 * count), MeshShape(fsdp=4))[-1] == 4
