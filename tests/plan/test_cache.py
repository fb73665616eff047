from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from jaxrecipes.plan import cache
from jaxrecipes.plan.buffers import Buffer
from jaxrecipes.plan.cache import cache_folder, cached, content_key, is_cached
from jaxrecipes.plan.hlo import Account, Collective, CustomCall
from jaxrecipes.plan.measurement import Measurement, from_json, to_json

FOUND = Measurement(
    out_of_memory=None,
    peak_bytes=100,
    assigned_bytes=120,
    argument_bytes=60,
    temporary_bytes=40,
    host_bytes=0,
    peak_at="jit(step)/dot",
    largest=(Buffer(60, 0, "argument", "f32[15]", "p", "state", ""),),
    account=Account(
        7,
        8,
        (Collective("all-gather", ("fsdp", "context"), 4, 3, 10, 40),),
        (CustomCall("tpu_custom_call", "splash_mha_fwd", 2),),
        0,
    ),
    compile_seconds=1.5,
)


def refuse() -> Measurement:
    raise AssertionError("the entry was not found")


def entry(folder: Path) -> Path:
    (file,) = folder.glob("*.json")
    return file


def test_a_measurement_survives_json():
    assert from_json(json.loads(json.dumps(to_json(FOUND)))) == FOUND


def test_an_entry_is_read_instead_of_measured_again(tmp_path):
    assert not is_cached(tmp_path / "new", "key")
    assert cached(tmp_path / "new", "key", lambda: FOUND) == FOUND
    assert is_cached(tmp_path / "new", "key")
    assert cached(tmp_path / "new", "key", refuse) == FOUND
    with pytest.raises(AssertionError, match="not found"):
        cached(tmp_path / "new", "other", refuse)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["key.json"]


def test_without_a_folder_nothing_is_kept():
    other = replace(FOUND, peak_bytes=1)
    assert cached(None, "key", lambda: FOUND) == FOUND
    assert cached(None, "key", lambda: other) == other


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[1, 2]",
        lambda text: text.replace('"peak_bytes": 100', '"peak_bytes": 900'),
        lambda text: text.replace("account", "accounts"),
        lambda text: "\udcff",
    ],
)
def test_a_damaged_entry_is_measured_again(tmp_path, damage):
    cached(tmp_path, "key", lambda: FOUND)
    file = entry(tmp_path)
    changed = damage(file.read_text(encoding="utf-8"))
    file.write_text(changed, encoding="utf-8", errors="surrogateescape")
    other = replace(FOUND, peak_bytes=1)
    assert cached(tmp_path, "key", lambda: other) == other
    assert cached(tmp_path, "key", refuse) == other


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert cached(tmp_path / "file" / "below", "key", lambda: FOUND) == FOUND


def test_the_key_is_the_content(monkeypatch):
    keys = {
        content_key("module", "v5e:4x4", {"fsdp": 16}),
        content_key("module ", "v5e:4x4", {"fsdp": 16}),
        content_key("module", "v5e:4x8", {"fsdp": 16}),
        content_key("module", "v5e:4x4", {"data": 16}),
        content_key("module", "v5e:4x4", None),
    }
    assert len(keys) == 5
    assert content_key("module", "v5e:4x4", {"fsdp": 16}) in keys
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_enable_latency_hiding_scheduler=false")
    assert content_key("module", "v5e:4x4", {"fsdp": 16}) not in keys
    monkeypatch.delenv("LIBTPU_INIT_ARGS")
    monkeypatch.setattr(cache, "_version", lambda package: "another")
    assert content_key("module", "v5e:4x4", {"fsdp": 16}) not in keys


def test_the_folder_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path))
    assert cache_folder() == tmp_path / "jaxrecipes" / "plan"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache_folder() == Path.home() / ".cache" / "jaxrecipes" / "plan"
