"""A whole experiment, in this process: what it leaves behind, and what a second run does."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrecipes import cli
from jaxrecipes.checkpoint.delta import read_delta
from jaxrecipes.checkpoint.huggingface import import_checkpoint
from jaxrecipes.experiment.run import enable_compilation_cache
from jaxrecipes.params.delta import merge_delta
from jaxrecipes.params.paths import flatten
from jaxrecipes.shipped_configs import shipped_config
from tests.experiment.small import small_config, write_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The config of an experiment that ran to its end, and its output folder."""
    folder = tmp_path_factory.mktemp("experiment")
    config = write_config(folder / "small.yaml", small_config(folder / "out"))
    assert cli.main(["run", str(config)]) == 0
    return config, folder / "out"


def _final(output: Path) -> Path:
    return output / "arms" / "block_expansion" / "final"


def test_inherited_blocks_are_the_bases_and_new_blocks_trained(
    finished: tuple[Path, Path],
) -> None:
    _, output = finished
    base = import_checkpoint(output / "base" / "model")
    final = import_checkpoint(_final(output) / "model")
    delta = read_delta(next(_final(output).glob("*.safetensors")))
    assert len(delta.positions) == 2
    assert final.config.num_layers == base.config.num_layers + 2

    base_leaves, final_leaves = flatten(base.params), flatten(final.params)
    inherited = [i for i in range(final.config.num_layers) if i not in delta.positions]
    compared = 0
    for path, leaf in final_leaves.items():
        parts = path.split("/")
        if parts[0] == "layers":
            if int(parts[1]) in delta.positions:
                continue
            parts[1] = str(inherited.index(int(parts[1])))
        original = np.asarray(base_leaves["/".join(parts)])
        assert original.dtype == leaf.dtype, path
        assert original.tobytes() == np.asarray(leaf).tobytes(), path
        compared += 1
    assert compared == len(base_leaves)

    # A new block starts with these kernels at zero; training must have moved every one.
    for index in delta.positions:
        for name in ("attention/output/kernel", "mlp/down/kernel"):
            assert np.any(np.asarray(final_leaves[f"layers/{index}/{name}"])), (index, name)


def test_delta_merges_back_to_the_exported_model(finished: tuple[Path, Path]) -> None:
    _, output = finished
    base = import_checkpoint(output / "base" / "model")
    final = import_checkpoint(_final(output) / "model")
    delta = read_delta(next(_final(output).glob("*.safetensors")))
    config, merged = merge_delta(base.config, base.params, delta)
    assert config.num_layers == final.config.num_layers
    merged_leaves, final_leaves = flatten(merged), flatten(final.params)
    assert merged_leaves.keys() == final_leaves.keys()
    for path, leaf in merged_leaves.items():
        assert np.asarray(leaf).tobytes() == np.asarray(final_leaves[path]).tobytes(), path


def test_a_second_run_reuses_everything(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, output = finished
    kept = [
        path
        for folder in (output / "base", output / "data", output / "arms")
        for path in folder.rglob("*")
        if path.suffix != ".lock"  # opened, and left empty, by every run
    ]
    assert _final(output) in kept
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert cli.main(["run", str(config)]) == 0
    assert "block_expansion: done before" in capsys.readouterr().out
    changed = [str(path) for path in kept if path.stat().st_mtime_ns != before[path]]
    assert changed == []


def test_export_and_report(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, output = finished
    target = tmp_path / "exported"
    assert cli.main(["export", str(output), str(target)]) == 0
    exported = flatten(import_checkpoint(target).params)
    original = flatten(import_checkpoint(_final(output) / "model").params)
    assert exported.keys() == original.keys()
    for path, leaf in exported.items():
        assert np.array_equal(np.asarray(leaf), np.asarray(original[path])), path

    page = output / "report.html"
    page.unlink()
    assert cli.main(["report", str(output)]) == 0
    assert "block_expansion" in page.read_text(encoding="utf-8")
    assert "Traceback" not in capsys.readouterr().err


def test_programs_are_kept_beside_the_run_unless_the_user_has_a_place_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    try:
        enable_compilation_cache(tmp_path)
        assert jax.config.jax_compilation_cache_dir == before  # type: ignore[attr-defined]
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        jax.config.update("jax_compilation_cache_dir", None)
        enable_compilation_cache(tmp_path)
        found = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        assert found == str(tmp_path / "cache")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.slow
@pytest.mark.long
def test_all_controls_run_to_their_ends(tmp_path: Path) -> None:
    config = shipped_config("block_expansion", "controls")
    assert cli.main(["run", str(config), f"output={tmp_path / 'run'}"]) == 0
    arms = {path.name for path in (tmp_path / "run" / "arms").iterdir()}
    assert {"strided_freeze", "prefix_stacking", "suffix_stacking", "copy_init"} < arms
    assert all((tmp_path / "run" / "arms" / arm / "final" / "model").is_dir() for arm in arms)
