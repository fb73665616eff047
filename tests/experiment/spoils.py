"""Ways to spoil the input of a good experiment, one function each."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

DOCUMENTS = 24
WEIGHTS = "model.safetensors"


@dataclass
class Scene:
    """What a case may spoil before the command runs.

    Attributes:
        folder: A fresh folder.
        checkpoint: A copy of a good checkpoint in it.
        learn: A good JSONL file in it.
        config: Plain data of a good config that reads both.
        text: Content of the config file instead of `config`.
        arguments: The command line; None for `run` with the config.
    """

    folder: Path
    checkpoint: Path
    learn: Path
    config: dict[str, Any]
    text: bytes | None = None
    arguments: list[str] | None = None

    @property
    def output(self) -> Path:
        """The output folder."""
        return self.folder / "out"


Spoil = Callable[[Scene], None]


def records(count: int = DOCUMENTS) -> list[dict[str, Any]]:
    return [{"id": f"d{number}", "text": f"document {number} says so"} for number in range(count)]


def lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def text(content: bytes) -> Spoil:
    """Replaces the config file."""

    def spoil(scene: Scene) -> None:
        scene.text = content

    return spoil


def put(key: str, value: Any) -> Spoil:
    """Sets a dotted key of the config."""

    def spoil(scene: Scene) -> None:
        *parents, last = key.split(".")
        target: Any = scene.config
        for part in parents:
            target = target[int(part)] if isinstance(target, list) else target[part]
        target[last] = value

    return spoil


def both(*spoils: Spoil) -> Spoil:
    """Does several things."""

    def spoil(scene: Scene) -> None:
        for part in spoils:
            part(scene)

    return spoil


def learn_file(name: str, content: bytes) -> Spoil:
    """Makes the config learn from a file with this content."""

    def spoil(scene: Scene) -> None:
        path = scene.folder / name
        path.write_bytes(content)
        scene.config["data"]["learn"][0]["source"] = str(path)

    return spoil


def learn_source(name: str) -> Spoil:
    """Makes the config learn from a path below the folder, which may not exist."""

    def spoil(scene: Scene) -> None:
        scene.config["data"]["learn"][0]["source"] = str(scene.folder / name)

    return spoil


def side_file(key: str, name: str, content: str | None) -> Spoil:
    """Names a file under a key of the config, and writes it if there is content."""

    def spoil(scene: Scene) -> None:
        path = scene.folder / name
        if content is not None:
            path.write_text(content, encoding="utf-8")
        put(key, str(path))(scene)

    return spoil


def freeze(*rules: dict[str, Any]) -> Spoil:
    """Turns the config into one of recipe freeze with these rules."""

    def spoil(scene: Scene) -> None:
        scene.config["recipe"] = "freeze"
        del scene.config["block_expansion"]
        scene.config["freeze"] = {"rules": list(rules)}

    return spoil


def model_key(key: str, value: Any) -> Spoil:
    """Changes a key of the checkpoint's config.json."""

    def spoil(scene: Scene) -> None:
        path = scene.checkpoint / "config.json"
        found = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**found, key: value}), encoding="utf-8")

    return spoil


def rope_yarn(scene: Scene) -> None:
    path = scene.checkpoint / "config.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    key = "rope_parameters" if "rope_parameters" in found else "rope_scaling"
    found[key] = {**(found.get(key) or {}), "rope_type": "yarn", "factor": 4.0}
    path.write_text(json.dumps(found), encoding="utf-8")


def tensors(change: Callable[[dict[str, np.ndarray]], None]) -> Spoil:
    """Changes the checkpoint's tensors."""

    def spoil(scene: Scene) -> None:
        path = scene.checkpoint / WEIGHTS
        arrays = load_file(path)
        change(arrays)
        save_file(arrays, path, metadata={"format": "pt"})

    return spoil


NORM = "model.layers.1.input_layernorm.weight"


def not_a_number(arrays: dict[str, np.ndarray]) -> None:
    arrays[NORM] = np.full_like(arrays[NORM], np.nan)


def wrong_shape(arrays: dict[str, np.ndarray]) -> None:
    arrays[NORM] = np.ones(7, np.float32)


def missing_tensor(arrays: dict[str, np.ndarray]) -> None:
    del arrays[NORM]


def extra_tensor(arrays: dict[str, np.ndarray]) -> None:
    arrays["model.layers.1.adapter.weight"] = np.ones(3, np.float32)


def truncated_weights(scene: Scene) -> None:
    path = scene.checkpoint / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


def remove_from_checkpoint(pattern: str) -> Spoil:
    def spoil(scene: Scene) -> None:
        for path in scene.checkpoint.glob(pattern):
            path.unlink()

    return spoil


def gguf_garbage(scene: Scene) -> None:
    path = scene.folder / "model.gguf"
    path.write_bytes(b"not a model at all" * 100)
    scene.config["model"]["checkpoint"] = str(path)


def model_smaller_than_tokenizer(scene: Scene) -> None:
    """Cuts the vocabulary below the tokenizer's ids of letters, EOS included."""
    model_key("vocab_size", 200)(scene)

    def cut(arrays: dict[str, np.ndarray]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in arrays:
                arrays[name] = arrays[name][:200].copy()

    tensors(cut)(scene)


def other_letters_than_vocabulary(scene: Scene) -> None:
    """Gives one letter an id that the model has no row for; EOS stays valid."""
    path = scene.checkpoint / "tokenizer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["model"]["vocab"]["d"] = 9999
    path.write_text(json.dumps(found), encoding="utf-8")


def corrupt_parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    table = pyarrow.table({"text": [record["text"] for record in records()]})
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()[:-20]


def folder_without_files(scene: Scene) -> None:
    (scene.folder / "void").mkdir()
    learn_source("void")(scene)


def output_is_a_file(scene: Scene) -> None:
    scene.output.write_text("mine", encoding="utf-8")


def output_below_a_file(scene: Scene) -> None:
    (scene.folder / "file").write_text("mine", encoding="utf-8")
    scene.config["output"] = str(scene.folder / "file" / "out")


def output_of_another_experiment(scene: Scene) -> None:
    scene.output.mkdir()
    identity = {"main": "0" * 64, "arms": {"block_expansion": "0" * 64}}
    (scene.output / "identity.json").write_text(json.dumps(identity), encoding="utf-8")


def foreign_output(scene: Scene) -> None:
    (scene.output / "arms").mkdir(parents=True)


def command(*arguments: str) -> Spoil:
    """Another command; {folder}, {checkpoint} and {config} are filled in."""

    def spoil(scene: Scene) -> None:
        paths = {
            "folder": scene.folder,
            "checkpoint": scene.checkpoint,
            "config": scene.folder / "config.yaml",
        }
        scene.arguments = [argument.format(**paths) for argument in arguments]

    return spoil
