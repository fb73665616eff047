"""Two simulated hosts with two devices each: the same run, the same end, and no host that hangs."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from jaxrecipes.train.metrics import read_records
from tests.experiment.hosts import SILENT_SECONDS, start_hosts, wait_for
from tests.experiment.small import chat_config, small_config, write_config

pytestmark = pytest.mark.slow
ARM = "block_expansion"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def write(folder: Path, steps: int) -> Path:
    """Three ways of freezing as three arms; nothing but training takes time."""
    data = small_config(folder / "out")
    data["train"] |= {"steps": steps, "checkpoint": {"every_steps": 5}}
    data["data"]["keep"]["limit_prompts"] = 2
    return write_config(folder / "config.yaml", data)


ARMS = (
    "compare=[{recipe: full}, {recipe: freeze, freeze: {rules: "
    "[{pattern: 'layers/[23]/.*', train: true}, {pattern: '.*', train: false}]}}]"
)


def losses(output: Path, arm: str = ARM) -> list[float]:
    return [record["loss"] for record in read_records(output / "arms" / arm / "metrics.jsonl")]


def run(config, output, logs, cache, *arguments, hosts, devices, different=None):
    processes = start_hosts(
        [str(config), f"output={output}", *arguments],
        logs,
        hosts=hosts,
        devices=devices,
        cache=cache,
        different=different,
    )
    codes = wait_for(processes)
    printed = [(logs / f"{index}.log").read_text() for index in range(hosts)]
    return codes, printed


@pytest.mark.long
def test_two_hosts_learn_what_one_device_learns(tmp_path, cache):
    config = write(tmp_path, steps=20)
    one, two = tmp_path / "one", tmp_path / "two"
    codes, printed = run(config, one, tmp_path / "1", cache, ARMS, hosts=1, devices=1)
    assert codes == [0], printed[0][-3000:]
    codes, printed = run(
        config, two, tmp_path / "2", cache, ARMS, "mesh.tensor=2", hosts=2, devices=2
    )
    assert codes == [0, 0], printed[0][-3000:] + printed[1][-3000:]
    assert "(fsdp 2 x tensor 2), attention: reference" in " ".join(printed[0].split())
    for arm in (ARM, "full", "freeze"):
        expected, found = losses(one, arm), losses(two, arm)
        assert len(found) == len(expected) == 20
        assert max(abs(a - b) for a, b in zip(expected, found, strict=True)) < 1e-5, arm
    # One writer: every record once, and one finished model an arm.
    assert all((two / "arms" / arm / "final" / "model").is_dir() for arm in (ARM, "full"))


@pytest.mark.long
def test_two_hosts_weigh_what_is_supervised_as_one_device_does(tmp_path, cache):
    """Some rows have much to learn and some little, so that a mean of hosts' means differs."""
    answers = [f"Number {n}: " + "very warm, " * (1 if n % 3 else 9) for n in range(24)]
    data = chat_config(tmp_path, answers)
    data["data"]["length"] = 256
    data["train"] |= {"steps": 6, "micro_batch_size": 2}
    config = write_config(tmp_path / "config.yaml", data)
    one, two = tmp_path / "one", tmp_path / "two"
    whole = "train.micro_batch_size=4"
    codes, printed = run(config, one, tmp_path / "1", cache, whole, hosts=1, devices=1)
    assert codes == [0], printed[0][-3000:]
    codes, printed = run(config, two, tmp_path / "2", cache, hosts=2, devices=1)
    assert codes == [0, 0], printed[0][-3000:] + printed[1][-3000:]
    records = read_records(one / "arms" / "full" / "metrics.jsonl")
    # Not every step has as many targets, so weights matter.
    assert len({record["supervised_tokens"] for record in records}) > 1
    expected, found = losses(one, "full"), losses(two, "full")
    assert len(found) == len(expected) == 6
    assert max(abs(a - b) for a, b in zip(expected, found, strict=True)) < 1e-5


@pytest.mark.long
def test_a_run_goes_on_with_other_hosts_and_devices(tmp_path, cache):
    """Saved on 1 x 4 after ten steps; ended on 2 x 2 and on 1 x 1: the same losses."""
    config = write(tmp_path, steps=20)
    begun = tmp_path / "begun"
    processes = start_hosts(
        [str(config), f"output={begun}", "mesh.tensor=2"],
        tmp_path / "0",
        hosts=1,
        devices=4,
        cache=cache,
    )
    metrics = begun / "arms" / ARM / "checkpoints" / "10"
    deadline = time.monotonic() + 300
    while not metrics.exists() and time.monotonic() < deadline and processes[0].poll() is None:
        time.sleep(0.002)
    processes[0].send_signal(signal.SIGTERM)
    [code] = wait_for(processes)
    printed = (tmp_path / "0" / "0.log").read_text()
    assert code == 75, printed[-3000:]
    ends = {}
    for hosts, devices, tensor in ((2, 2, 2), (1, 1, 1)):
        output = tmp_path / f"ended-{hosts}x{devices}"
        subprocess.run(["cp", "-r", str(begun), str(output)], check=True)
        codes, printed = run(
            config,
            output,
            tmp_path / f"log-{hosts}",
            cache,
            f"mesh.tensor={tensor}",
            hosts=hosts,
            devices=devices,
        )
        assert codes == [0] * hosts, printed[0][-3000:]
        assert "goes on after step" in printed[0]
        ends[hosts] = losses(output)
    assert len(ends[1]) == 20
    assert max(abs(a - b) for a, b in zip(ends[1], ends[2], strict=True)) < 1e-5


def test_hosts_that_disagree_are_named_before_anything_is_trained(tmp_path, cache):
    config = write(tmp_path, steps=20)
    output = tmp_path / "out"
    codes, printed = run(
        config,
        output,
        tmp_path / "logs",
        cache,
        hosts=2,
        devices=1,
        different={1: ["train.optimizer.learning_rate=0.5"]},
    )
    assert codes == [2, 2]
    for text in printed:
        assert "the hosts of this run disagree: host 1" in " ".join(text.split())
    assert not (output / "arms").exists()


def _wait_for_step(output: Path, processes: list, step: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and all(one.poll() is None for one in processes):
        path = output / "arms" / ARM / "checkpoints" / str(step)
        if path.exists():
            return
        time.sleep(0.005)
    raise AssertionError("the run never came to its first saved state")


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_dies_ends_the_others_and_the_run_goes_on(tmp_path, cache, victim):
    config = write(tmp_path, steps=400)
    output = tmp_path / "out"
    processes = start_hosts(
        [str(config), f"output={output}"], tmp_path / "logs", hosts=2, devices=1, cache=cache
    )
    _wait_for_step(output, processes, 5)
    processes[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    code = processes[1 - victim].wait(20 * SILENT_SECONDS)
    printed = (tmp_path / "logs" / f"{1 - victim}.log").read_text()
    wait_for(processes)
    assert code == 75, printed[-3000:]
    assert f"host {victim}" in printed and "start the same command" in " ".join(printed.split())
    assert time.monotonic() - began < 10 * SILENT_SECONDS


@pytest.mark.long
def test_a_signal_to_one_host_saves_one_state_on_all(tmp_path, cache):
    config = write(tmp_path, steps=400)
    output = tmp_path / "out"
    processes = start_hosts(
        [str(config), f"output={output}"], tmp_path / "logs", hosts=2, devices=1, cache=cache
    )
    _wait_for_step(output, processes, 5)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert wait_for(processes) == [75, 75]
    texts = [" ".join((tmp_path / "logs" / f"{n}.log").read_text().split()) for n in range(2)]
    said = [text.split("asked to end, ")[1].split(";")[0] for text in texts]
    assert said[0] == said[1] and said[0].startswith("saved at step")
    saved = max(int(path.name) for path in (output / "arms" / ARM / "checkpoints").iterdir())
    assert f"saved at step {saved} of" in said[0]
    assert json.loads((output / "identity.json").read_text())
