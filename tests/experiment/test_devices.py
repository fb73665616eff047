from dataclasses import replace
from pathlib import Path

import pytest

from jaxrecipes.config import Config
from jaxrecipes.errors import ConfigError
from jaxrecipes.experiment.devices import choose_devices
from jaxrecipes.plan.topology import parse_topology, topology_devices
from tests.experiment.small import small_config
from tests.tiny import tiny_config

MODEL = replace(tiny_config("llama"), vocab_size=64)


def config(**changes):
    data = small_config(Path("out"))
    for key, value in changes.items():
        section, _, name = key.partition("__")
        data.setdefault(section, {})[name] = value
    return Config.model_validate(data)


def test_one_device_needs_no_mesh():
    devices = choose_devices(config(), MODEL)
    assert devices.execution.mesh is None and devices.count == 1
    assert devices.execution.attention == "reference" and "CPU" in devices.attention_reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__batch_size": 6}, "train.batch_size: 6 rows cannot be shared by 4 devices"),
        ({"train__micro_batch_size": 2}, "train.micro_batch_size: 2 rows cannot be shared by 4"),
        ({"mesh__context": 3, "mesh__fsdp": 1}, "mesh: .* is 3 devices; there are 4"),
        ({"mesh__tensor": 4}, r"mesh.tensor: 4 does not divide the model's num_kv_heads \(2\)"),
        ({"data__length": 126, "mesh__context": 4}, "mesh.context: 4 does not divide data.length"),
        ({"model__attention": "cudnn"}, "model.attention: cudnn runs on GPU, and this run is on"),
    ],
)
def test_a_mesh_that_does_not_fit_the_run_is_refused(tpu_topology, changes, message):
    tpu_topology("v5e:2x2")
    with pytest.raises(ConfigError, match=message):
        choose_devices(config(**changes), MODEL, topology_devices(parse_topology("v5e:2x2")))


def test_a_tpu_gets_its_kernel_and_all_chips(tpu_topology):
    tpu_topology("v5e:2x2")
    chosen = choose_devices(config(), MODEL, topology_devices(parse_topology("v5e:2x2")))
    assert chosen.execution.attention == "splash"
    assert chosen.execution.mesh is not None and chosen.execution.mesh.shape["fsdp"] == 4
