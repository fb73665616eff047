"""The GPU benchmark against PyTorch: the same work on both sides, and the whole path on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
if not FOLDER.is_dir():
    pytest.skip("there are no benchmarks beside the tests", allow_module_level=True)
sys.path.insert(0, str(FOLDER))

import gpu_sides  # noqa: E402
import vs_torch_gpu  # noqa: E402

from jaxrecipes.checkpoint.model_config import parse_model_config  # noqa: E402
from jaxrecipes.checkpoint.names import tensor_names  # noqa: E402
from jaxrecipes.models.decoder import abstract_params  # noqa: E402
from jaxrecipes.models.row_order import in_row_order  # noqa: E402
from jaxrecipes.params.paths import flatten  # noqa: E402
from jaxrecipes.plan.flops import step_flops  # noqa: E402
from jaxrecipes.train.causal_loss import batch_loss  # noqa: E402


def tiny(arm: str = "full", side: str = "ours", documents: int = 4) -> gpu_sides.Case:
    options = vs_torch_gpu.parse(["--dry", "--steps", "1", "--documents", str(documents)])
    return vs_torch_gpu.make_case(vs_torch_gpu.DRY["tiny"], arm, side, options)


@pytest.mark.parametrize("documents", [1, 4])
def test_both_sides_compute_the_same_loss_on_the_same_packed_rows(documents: int) -> None:
    torch = pytest.importorskip("torch")
    case = tiny("full-deep", documents=documents)
    shape = case.shape | {"num_hidden_layers": case.layers}
    config = parse_model_config(shape, where="tiny")
    params = gpu_sides.random_leaves(abstract_params(config), 0)
    leaves = flatten(params)
    model = gpu_sides.torch_model(case)
    weights = {}
    for name in tensor_names(config).values():
        value = np.asarray(leaves[name.canonical])
        weights[name.huggingface] = torch.tensor(value.T if name.transposed else value)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected  # tied to the embedding
    with torch.no_grad():
        theirs = model(**gpu_sides.torch_batch(case)).loss.item()
    rows = gpu_sides.packed_rows(case)
    batch = {key: jnp.asarray(value) for key, value in rows.items()}
    ours = float(batch_loss(config, params, batch)) / rows["loss_mask"].sum()
    assert ours == pytest.approx(theirs, rel=1e-5)
    # Packing matters: one document over the whole row gives another loss.
    if documents > 1:
        alone = gpu_sides.torch_batch(replace(case, documents=1))
        assert abs(model(**alone).loss.item() - theirs) > 1e-4


@pytest.mark.parametrize("arm", list(vs_torch_gpu.ARMS))
def test_both_sides_train_the_same_and_mfu_counts_it(arm: str) -> None:
    pytest.importorskip("torch")
    case = tiny(arm)
    _, program, _ = gpu_sides.our_program(case)
    trained = sum(leaf.size for leaf in jax.tree.leaves(program.trainable))
    model = gpu_sides.torch_model(case)
    assert sum(leaf.numel() for leaf in model.parameters() if leaf.requires_grad) == trained
    frozen = sum(leaf.size for leaf in jax.tree.leaves(program.frozen))
    assert sum(leaf.numel() for leaf in model.parameters()) == trained + frozen
    counted = step_flops(
        program.config,
        tokens=case.rows * case.length,
        row_length=case.length,
        trains=lambda path: program.labels[path][0],
    )
    assert vs_torch_gpu.model_flops(case) == counted.model


def test_rows_hold_the_documents_that_were_asked_for() -> None:
    rows = gpu_sides.packed_rows(tiny(documents=4))
    assert rows["segment_ids"].max(axis=1).tolist() == [4, 4]
    assert bool(jnp.all(in_row_order(rows["segment_ids"], rows["positions"])))
    assert rows["loss_mask"].sum() == rows["token_ids"].size - 4 * 2


def test_a_reason_is_one_cell_that_names_the_flag() -> None:
    messages = (
        "warning\nF1121 12:27:54.46 12799 parse.cc:234] Unknown flag in XLA_FLAGS: --a|b\nz\n"
    )
    assert vs_torch_gpu.reason(messages) == "Unknown flag in XLA_FLAGS: --a/b"
    assert vs_torch_gpu.reason("Traceback\nRuntimeError: out of memory\n").endswith("of memory")
    assert vs_torch_gpu.reason("") == ""


def test_a_name_that_does_not_exist_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        vs_torch_gpu.parse(["--presets", "turbo"])
    assert "'turbo' is none of default, latency-hiding" in capsys.readouterr().err


def test_ratios_and_spread_come_from_the_windows() -> None:
    case = tiny()
    slow = vs_torch_gpu.Row("tiny", "full", "torch", "default", case, 10**12)
    fast = vs_torch_gpu.Row("tiny", "full", "ours", "default", case, 10**12)
    result = {"peak": 2**30, "compile": 0.0, "versions": {}}
    slow.found.append(result | {"device": "NVIDIA H200", "seconds": [0.2, 0.4, 0.2]})
    fast.found.append(result | {"device": "NVIDIA H200", "seconds": [0.1, 0.1, 0.1]})
    cells = dict(
        zip(
            (*vs_torch_gpu.TITLES, *vs_torch_gpu.RATIO_TITLES),
            vs_torch_gpu.side_cells(fast, [slow, fast]),
            strict=True,
        )
    )
    assert (cells["tokens/s"], cells["to torch"], cells["to torch-compiled"]) == (
        "1,280",
        "2.00",
        "",
    )
    assert cells["MFU"] == "1.0%"  # 10 TFLOP/s of 989.4
    assert vs_torch_gpu.speed_cells(slow) == ["640", "320-640"]


@pytest.mark.long
def test_the_whole_path_runs_on_a_cpu(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    command = [sys.executable, str(FOLDER / "vs_torch.py"), "--device", "gpu", "--dry"]
    command += ["--arms", "expansion", "--sides", "ours,torch", "--presets", "no-graphs"]
    command += ["--rounds", "1", "--steps", "1", "--output", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "found.json").read_text())
    assert [(row["side"], row["preset"]) for row in rows] == [
        ("ours", "default"),
        ("ours", "no-graphs"),
        ("torch", "default"),
    ]
    assert all(len(row["found"][0]["seconds"]) == gpu_sides.WINDOWS for row in rows)
    assert rows[0]["found"][0]["attention"] == "reference"
    assert "| tiny | expansion | torch |" in done.stdout
    assert "| tiny | expansion | no-graphs |" in done.stdout
    assert "refused" not in done.stdout


@pytest.mark.slow
def test_a_flag_that_xla_does_not_know_is_one_refused_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vs_torch_gpu.PRESETS, "unknown", "--xla_gpu_no_such_flag=true")
    row = vs_torch_gpu.Row("tiny", "full", "ours", "unknown", tiny(), 1)
    vs_torch_gpu.measure(row, tmp_path, 200)
    assert row.refused == "Unknown flag in XLA_FLAGS: --xla_gpu_no_such_flag=true"
    cells = vs_torch_gpu.preset_cells(row, [row])
    assert cells[3] == f"refused: {row.refused}"
