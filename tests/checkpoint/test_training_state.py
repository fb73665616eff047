from __future__ import annotations

import functools
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrecipes.checkpoint.training_state import TrainingStates
from jaxrecipes.errors import CheckpointError


def make_state(value: float, size: int = 64) -> dict[str, Any]:
    return {
        "trainable": {"layers": {"0": {"kernel": jnp.full((size, 8), value)}}},
        "optimizer": (jnp.full((size,), value, jnp.bfloat16), jnp.asarray(int(value), jnp.int32)),
    }


def abstract(state: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def assert_value(state: Any, value: float) -> None:
    for leaf in jax.tree.leaves(state):
        np.testing.assert_array_equal(np.asarray(leaf, np.float32), value)


def test_what_is_saved_comes_back_with_structure_dtype_and_metadata(tmp_path: Path) -> None:
    metadata = {"config_hash": "abc", "position": {"index": 7, "none": None, "list": [1, "ü"]}}
    with TrainingStates(tmp_path) as states:
        assert states.restore(abstract(make_state(0))) is None
        states.save(3, make_state(3), metadata)
    with TrainingStates(tmp_path) as states:
        restored = states.restore(abstract(make_state(0)), expected={"config_hash": "abc"})
    assert restored is not None
    assert restored.step == 3
    assert restored.metadata == metadata
    assert_value(restored.state, 3)
    assert isinstance(restored.state["optimizer"], tuple)
    assert restored.state["optimizer"][0].dtype == jnp.bfloat16


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    with TrainingStates(tmp_path, keep=2) as states:
        for step in (1, 2, 5, 9):
            states.save(step, make_state(step), {})
        states.wait()
        assert states.steps() == (5, 9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "9"]


def test_a_saved_array_may_be_donated_at_once(tmp_path: Path) -> None:
    @functools.partial(jax.jit, donate_argnums=0)
    def step_function(state: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf + 1, state)

    state = {"a": jnp.zeros((1000, 1000))}
    with TrainingStates(tmp_path, keep=5) as states:
        for step in range(1, 4):
            state = step_function(state)
            states.save(step, state, {})
            for _ in range(3):
                state = step_function(state)
            state = jax.tree.map(lambda leaf: leaf - 3, state)
        states.wait()
        for step in (3, 2, 1):
            restored = states.restore(abstract(state))
            assert restored is not None and restored.step == step
            assert_value(restored.state, step)
            shutil.rmtree(tmp_path / str(step))


def test_restores_into_the_sharding_that_is_asked_for(tmp_path: Path) -> None:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    with TrainingStates(tmp_path) as states:
        states.save(1, {"a": jnp.arange(8.0)}, {})
        wanted = {"a": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)}
        restored = states.restore(wanted)
    assert restored is not None
    assert restored.state["a"].sharding == sharding


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: {**s, "more": jnp.zeros(3)}, "leaf more: saved nothing"),
        (lambda s: {"trainable": s["trainable"]}, "leaf optimizer/0"),
        (lambda s: make_state(0, size=65), r"leaf optimizer/0: saved bfloat16 \[64\]"),
        (
            lambda s: jax.tree.map(lambda leaf: leaf.astype(jnp.float16), s),
            "leaf optimizer/0: saved bfloat16 .*float16",
        ),
    ],
)
def test_another_tree_is_refused_by_leaf(tmp_path: Path, change: Any, named: str) -> None:
    with TrainingStates(tmp_path) as states:
        states.save(1, make_state(1), {})
        with pytest.raises(CheckpointError, match=named):
            states.restore(abstract(change(make_state(0))))


def test_another_config_is_refused(tmp_path: Path) -> None:
    with TrainingStates(tmp_path) as states:
        states.save(1, make_state(1), {"config_hash": "old"})
        with pytest.raises(CheckpointError, match="config_hash = 'old', this run has 'new'"):
            states.restore(abstract(make_state(0)), expected={"config_hash": "new"})


@pytest.mark.parametrize("damage", ["truncate", "remove", "flip"])
def test_any_damaged_file_makes_the_step_before_it_count(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with TrainingStates(tmp_path / "good") as states:
        states.save(1, make_state(1), {})
        states.save(2, make_state(2), {})
    good = tmp_path / "good" / "2"
    files = [path.relative_to(good) for path in good.rglob("*") if path.is_file()]
    generator = random.Random(0)
    for number, name in enumerate(sorted(files)):
        if name.name == "checksums.json" and damage == "remove":
            continue  # as after a kill between the commit and the checksums: the step is whole
        folder = tmp_path / f"damaged-{number}"
        shutil.copytree(tmp_path / "good", folder)
        file = folder / "2" / name
        data = bytearray(file.read_bytes())
        if damage == "truncate":
            file.write_bytes(data[: len(data) // 2])
        elif damage == "remove":
            file.unlink()
        else:
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(7)
            file.write_bytes(data)
        caplog.clear()
        with TrainingStates(folder) as states, caplog.at_level(logging.WARNING):
            restored = states.restore(abstract(make_state(0)))
        assert restored is not None
        assert restored.step == 1, f"{damage} of {name} was not noticed"
        assert_value(restored.state, 1)
        assert "is damaged" in caplog.text
        assert (folder / "2.damaged").is_dir()


def test_the_step_of_a_damaged_state_can_be_saved_again(tmp_path: Path) -> None:
    with TrainingStates(tmp_path) as states:
        states.save(1, make_state(1), {})
        states.save(2, make_state(2), {})
    (tmp_path / "2" / "checksums.json").write_text("{", encoding="utf-8")
    with TrainingStates(tmp_path) as states:
        assert states.restore(abstract(make_state(0))).step == 1
        states.save(2, make_state(2), {})
        states.wait()
        assert states.restore(abstract(make_state(0))).step == 2


def test_a_failed_save_is_an_error_and_leaves_the_earlier_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxrecipes.checkpoint import training_state

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with TrainingStates(tmp_path) as states:
        states.save(1, make_state(1), {})
        states.wait()
        monkeypatch.setattr(training_state, "_write_checksums", full)
        states.save(2, make_state(2), {})
        with pytest.raises(CheckpointError, match=r"step 2 could not be saved.*No space left"):
            states.wait()
        assert 1 in states.steps()


def test_an_unusable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be made"):
        TrainingStates(tmp_path / "file" / "states")


SAVER = """
import sys, itertools
import jax.numpy as jnp
from jaxrecipes.checkpoint.training_state import TrainingStates
with TrainingStates(sys.argv[1], keep=1) as states:
    for step in itertools.count(int(sys.argv[2]) + 1):
        states.save(step, {"a": jnp.full((500, 1000), step, jnp.float32)}, {"step": step})
        if step % 2:
            states.wait()
            print(step, flush=True)
"""


@pytest.mark.long
def test_kill_9_never_loses_the_previous_state(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    wanted = {"a": jax.ShapeDtypeStruct((500, 1000), jnp.float32)}
    generator = random.Random(1)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    last = 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(folder), str(last)],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert process.stdout is not None
        confirmed = int(process.stdout.readline())
        time.sleep(generator.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        confirmed = max([confirmed, *map(int, process.stdout.read().split())])
        process.wait()
        with TrainingStates(folder, keep=1) as states:
            restored = states.restore(wanted)
        assert restored is not None
        assert restored.step >= confirmed > last
        assert restored.metadata == {"step": restored.step}
        assert_value(restored.state, restored.step)
        last = restored.step
