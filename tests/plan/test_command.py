from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from rich.console import Console

from jaxrecipes import cli
from jaxrecipes.config import Config
from jaxrecipes.errors import ConfigError, DeviceMemoryError, UsageError
from jaxrecipes.experiment.base_model import peek_model_config
from jaxrecipes.plan import step as step_module
from jaxrecipes.plan import target as target_module
from jaxrecipes.plan.candidates import Trial
from jaxrecipes.plan.changes import remat_change
from jaxrecipes.plan.chips import Chip
from jaxrecipes.plan.command import plan
from jaxrecipes.plan.target import Target
from tests.conftest import TINY_CONFIGS
from tests.experiment.small import small_config, write_config

ROOT = Path(__file__).parents[2]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "cache"))


@pytest.fixture
def console(tmp_path):
    with (tmp_path / "printed.txt").open("w", encoding="utf-8") as file:
        yield Console(file=file, width=200)


def printed(tmp_path: Path) -> str:
    return (tmp_path / "printed.txt").read_text(encoding="utf-8")


def small_data(tmp_path: Path, **train: Any) -> dict[str, Any]:
    """Full training of two layers of which only `config.json` is there: compiled in seconds."""
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(TINY_CONFIGS["llama"] | {"num_hidden_layers": 2}))
    data = small_config(tmp_path / "run")
    data.pop("block_expansion")
    data["recipe"] = "full"
    data["model"]["checkpoint"] = os.fspath(model)
    data["train"] |= train
    return data


def small(tmp_path: Path, **train: Any) -> Config:
    return Config.model_validate(small_data(tmp_path, **train))


def test_a_folder_with_only_a_config_is_enough(tmp_path, console):
    plan(small(tmp_path), console=console, json_file=tmp_path / "plan.json")
    console.file.flush()
    text = printed(tmp_path)
    assert "2 -> 2" in text
    assert "Nothing was run" in text
    # Neither data nor weights were made.
    assert not (tmp_path / "run").exists()
    (arm,) = json.loads((tmp_path / "plan.json").read_text())["arms"]
    assert arm["fits"] and arm["bound"] is None
    memory = arm["measurement"]
    assert memory["argument_bytes"] + memory["temporary_bytes"] <= memory["peak_bytes"]
    # Attention of the reference backend is counted by the compiler: all pairs of a row, where the
    # hand count has the visible half; and the passes that remat repeats come on top.
    assert 1 < arm["flops"]["executed"] / arm["flops"]["model"] < 1.8


def test_the_second_time_nothing_is_compiled(tmp_path, console, monkeypatch):
    config = small(tmp_path, remat="full")
    plan(config, console=console, json_file=tmp_path / "first.json")

    def refuse(*_: Any) -> Any:
        raise AssertionError("it was compiled again")

    measure = step_module.measure
    monkeypatch.setattr(step_module, "measure", refuse)
    plan(config, console=console, json_file=tmp_path / "second.json")
    first, second = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("first", "second"))
    for arms in (first["arms"], second["arms"]):
        arms[0].pop("lower_seconds")
    assert first == second
    with pytest.raises(AssertionError, match="compiled again"):
        plan(config, console=console, cache=False)
    (entry,) = (tmp_path / "cache").rglob("*.json")
    entry.write_text("{")
    with pytest.raises(AssertionError, match="compiled again"):
        plan(config, console=console)
    monkeypatch.setattr(step_module, "measure", measure)
    plan(config, console=console)
    assert json.loads(entry.read_text())["measurement"]["peak_bytes"] > 0


@pytest.mark.slow
def test_what_does_not_fit_gets_a_list_of_changes(tmp_path, console, monkeypatch):
    """A processor that claims to have a byte less than the config needs as it is."""
    config = small(tmp_path, remat="none", loss_chunk=256)
    plan(config, console=console, json_file=tmp_path / "plan.json")
    (arm,) = json.loads((tmp_path / "plan.json").read_text())["arms"]
    needed = arm["measurement"]["assigned_bytes"]
    chip = Chip(name="little", device_kind="cpu", memory_bytes=needed - 1)
    monkeypatch.setattr(target_module, "chip_of", {"cpu": chip}.get)
    with pytest.raises(DeviceMemoryError, match="The fastest change that fits: train"):
        plan(config, console=console, json_file=tmp_path / "plan.json", limit=2)
    console.file.flush()
    (arm,) = json.loads((tmp_path / "plan.json").read_text())["arms"]
    assert not arm["fits"]
    changes = arm["changes"]
    verdicts = [one["fits"] for one in changes]
    assert len(changes) == 2 and verdicts[0] and verdicts == sorted(verdicts, reverse=True)
    text = printed(tmp_path)
    assert "NO, of" in text and "full: changes, each compiled" in text
    assert all(one["change"] in text for one in changes)
    # What the list says holds: the config with the change fits, and without it exit code 4.
    file = write_config(tmp_path / "config.yaml", small_data(tmp_path))
    given = ["train.remat=none", "train.loss_chunk=256"]
    assert cli.main(["plan", os.fspath(file), *given, *changes[0]["change"].split()]) == 0
    assert cli.main(["plan", os.fspath(file), *given, "--limit", "1"]) == 4


def test_the_search_finds_what_fits(tmp_path, console):
    plan(small(tmp_path), console=console, search_best=True, limit=2, json_file=tmp_path / "p.json")
    (arm,) = json.loads((tmp_path / "p.json").read_text())["arms"]
    found = arm["search"]
    assert len({one["change"] for one in found}) == 2
    assert all(one["fits"] for one in found)


def test_a_state_that_cannot_fit_is_not_compiled(tmp_path, console, monkeypatch):
    chip = Chip(name="little", device_kind="cpu", memory_bytes=2**16)
    target = Target(tuple(jax.devices()[:1]), None, chip)
    config = small(tmp_path)
    model = peek_model_config(config.model.checkpoint, None)
    monkeypatch.setattr(step_module, "measure", lambda *_: pytest.fail("compiled"))
    trial = Trial("main", config, model, 3, target, None, console)
    tried = trial.run(remat_change(config, "full"), "1 of 1")
    assert tried.step is None and not tried.fits
    assert tried.least_bytes > 2**16
    assert "alone take" in tried.reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5e:3x3"], "no such slice"),
        (["--topology", "v9:2x2"], "there is no TPU 'v9'"),
        (["--limit", "0"], "--limit 0"),
        (["--json", "no/such/folder/plan.json"], "does not exist"),
        (["mesh.fsdp=3"], "mesh"),
    ],
)
def test_wrong_requests_are_errors_of_usage(tmp_path, capsys, arguments, message):
    file = write_config(tmp_path / "config.yaml", small_data(tmp_path))
    assert cli.main(["plan", os.fspath(file), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_libtpu_the_extra_is_named(tmp_path, console, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"jaxrecipes\[tpu\]"):
        plan(small(tmp_path), console=console, topology="v5e:2x2")


def test_a_folder_for_json_must_exist(tmp_path, console):
    with pytest.raises(UsageError, match="does not exist"):
        plan(small(tmp_path), console=console, json_file=tmp_path / "no" / "plan.json")


def run_plan(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command: libtpu wants a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "jaxrecipes", "plan", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_compiler_that_is_aborted_is_explained(tmp_path):
    file = write_config(tmp_path / "config.yaml", small_data(tmp_path))
    # What libtpu does where one of its checks fails.
    code = (
        "import os, sys; from jaxrecipes import cli\n"
        "class Abort:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'jaxrecipes.plan.command': os.abort()\n"
        "sys.meta_path.insert(0, Abort())\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "plan", os.fspath(file), "--topology", "v5e:2x2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "the TPU compiler was aborted" in done.stderr


@pytest.mark.slow
@needs_libtpu
def test_a_plan_for_a_tpu_slice(tmp_path):
    file = write_config(tmp_path / "config.yaml", small_data(tmp_path))
    done = run_plan(tmp_path, str(file), "--topology", "v5e:2x2", "--json", "plan.json")
    assert done.returncode == 0, done.stderr
    assert "yes, of 15.75 GiB" in done.stdout
    assert "mesh fsdp 4, attention: splash" in done.stdout
    (arm,) = json.loads((tmp_path / "plan.json").read_text())["arms"]
    assert arm["summary"]["devices"] == 4
    assert arm["flops"]["kernels"] > 0
    assert arm["bound"]["sequential"] >= arm["bound"]["overlapped"] > 0
    kinds = {one["kind"] for one in arm["measurement"]["account"]["collectives"]}
    assert "all-gather" in kinds
    # float32 products with weights, counted by hand and in the compiled program.
    products = sum(arm["flops"][k] for k in ("forward", "input_gradient", "weight_gradient"))
    assert arm["measurement"]["account"]["matmul_flops"] >= products


@pytest.mark.long
@needs_libtpu
def test_what_does_not_fit_a_tpu(tmp_path):
    data = small_data(tmp_path, batch_size=2**17, remat="none")
    data["model"]["compute_dtype"] = "bfloat16"
    file = write_config(tmp_path / "config.yaml", data)
    done = run_plan(tmp_path, str(file), "--topology", "v5e:1x1", "--limit", "2")
    assert done.returncode == 4, done.stderr
    assert "NO, of 15.75 GiB" in done.stdout
    assert "train.remat=full" in done.stdout and "train.remat=groups" in done.stdout
    assert "does not fit: it needs" in done.stderr
