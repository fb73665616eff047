from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxrecipes.checkpoint.tokenizer import copy_tokenizer, load_tokenizer, tokenizer_fingerprint
from jaxrecipes.errors import CheckpointError


@pytest.fixture
def folder(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "copy"))


def test_the_fingerprint_is_of_the_tokenizer_alone(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder)
    fingerprint = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == fingerprint
    tokenizer.chat_template = "other"
    assert tokenizer_fingerprint(tokenizer) == fingerprint
    tokenizer.save_pretrained(tmp_path / "saved")
    assert tokenizer_fingerprint(load_tokenizer(tmp_path / "saved")) == fingerprint


def test_the_fingerprint_notices_a_token_and_an_end(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    fingerprint = tokenizer_fingerprint(tokenizer)
    tokenizer.eos_token = "<s>"
    other_end = tokenizer_fingerprint(tokenizer)
    tokenizer.eos_token = "</s>"
    assert tokenizer_fingerprint(tokenizer) == fingerprint != other_end
    tokenizer.add_tokens(["new"])
    assert tokenizer_fingerprint(tokenizer) != fingerprint


def test_copies_are_byte_equal(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ 2 }}")
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    target = tmp_path / "target"
    target.mkdir()
    copy_tokenizer(folder, target)
    for path in target.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (folder / path.relative_to(target)).read_bytes()
    assert {path.name for path in target.rglob("*") if path.is_file()} >= {
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "rag.jinja"),
        "generation_config.json",
    }
    assert not list(target.glob("*.safetensors"))


def test_a_missing_tokenizer_is_an_error(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer; expected tokenizer.json"):
        load_tokenizer(folder)
    with pytest.raises(CheckpointError, match="no tokenizer files to copy"):
        copy_tokenizer(folder, tmp_path)


@pytest.mark.parametrize("content", ["", "{", '{"model": 3}'])
def test_a_damaged_tokenizer_is_an_error(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer in .*copy cannot be read"):
        load_tokenizer(folder)
