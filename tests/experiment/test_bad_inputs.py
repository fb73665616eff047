"""Bad inputs of every kind: each ends with its exit code and a message that names the thing."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxrecipes import cli
from jaxrecipes.checkpoint.random_model import write_random_model
from tests.experiment.small import small_config, write_config

USAGE, DATA, FAILURE = 2, 3, 1
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


def _records(count: int = DOCUMENTS) -> list[dict[str, Any]]:
    return [{"id": f"d{number}", "text": f"document {number} says so"} for number in range(count)]


def _lines(records: list[dict[str, Any]]) -> str:
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


def _nan(arrays: dict[str, np.ndarray]) -> None:
    arrays[NORM] = np.full_like(arrays[NORM], np.nan)


def _wrong_shape(arrays: dict[str, np.ndarray]) -> None:
    arrays[NORM] = np.ones(7, np.float32)


def _missing(arrays: dict[str, np.ndarray]) -> None:
    del arrays[NORM]


def _extra(arrays: dict[str, np.ndarray]) -> None:
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
    table = pyarrow.table({"text": [record["text"] for record in _records()]})
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


ALL, NONE = {"pattern": ".*", "train": True}, {"pattern": ".*", "train": False}
FULL = {"recipe": "full"}
ITEM = {"question": "Which?", "choices": ["this", "that"], "answer": 5}
LONG = _lines([*_records(), {"id": "the-long-one", "text": "word " * 200}])

# Id, how to make it, what the message says, exit code.
CASES: list[tuple[str, Spoil, str, int]] = [
    # The config.
    ("config-missing", command("run", "{folder}/nope.yaml"), "nope.yaml: no such file", USAGE),
    ("config-folder", command("run", "{folder}"), "is a folder", USAGE),
    ("config-empty", text(b""), "the file is empty", USAGE),
    ("config-not-yaml", text(b"version: 1\nrecipe: [full\n"), "not valid YAML", USAGE),
    ("config-not-utf8", text(b"version: 1\nname: \xff\n"), "config.yaml:2: byte 0xff", USAGE),
    ("config-not-a-mapping", text(b"- full\n"), "a config is a mapping", USAGE),
    ("config-key-twice", text(b"seed: 1\nseed: 2\n"), "'seed' is given twice", USAGE),
    ("unknown-key", put("train.stepz", 3), "did you mean steps?", USAGE),
    ("wrong-type", put("train.batch_size", "many"), "train.batch_size: is 'many'", USAGE),
    ("unknown-recipe", put("recipe", "block_expansoin"), "did you mean block_expansion", USAGE),
    ("steps-and-epochs", put("train.epochs", 1.0), "train.steps: give either steps", USAGE),
    ("no-steps-no-epochs", put("train.steps", None), "neither is given", USAGE),
    ("batch-not-divisible", put("train.micro_batch_size", 3), "does not divide batch_size", USAGE),
    ("no-new-blocks", put("block_expansion.new_blocks", 0), "block_expansion.new_blocks", USAGE),
    ("too-many-blocks", put("block_expansion.new_blocks", 99), "the model has 6", USAGE),
    (
        "rule-matches-nothing",
        freeze({"pattern": "layer/5/.*", "train": True}, NONE),
        "rule 'layer/5/.*' matches no leaf",
        USAGE,
    ),
    ("no-rule-for-a-leaf", freeze({"pattern": "layers/.*", "train": True}), "no rule", USAGE),
    ("no-leaf-trains", freeze(NONE), "no leaf trains", USAGE),
    ("bad-regex", freeze({"pattern": "layers/(", "train": True}, NONE), "regular", USAGE),
    ("tracker-type", put("train.trackers", {"wandb": "yes"}), "train.trackers.wandb", USAGE),
    ("negative-rate", put("train.optimizer.learning_rate", -1e-3), "learning_rate: is -0.0", USAGE),
    (
        "arm-changes-steps",
        put("compare", [{"recipe": "full", "train": {"steps": 5}}]),
        "compare.0.train.steps",
        USAGE,
    ),
    ("arm-twice", put("compare", [FULL, dict(FULL)]), "the name 'full' is taken", USAGE),
    ("bad-override", command("run", "{config}", "train.stepz=1"), "did you mean", USAGE),
    # The data.
    ("data-missing", learn_source("gone.jsonl"), "gone.jsonl", DATA),
    ("data-empty", learn_file("empty.jsonl", b""), "the file is empty", DATA),
    ("data-not-utf8", learn_file("bad.txt", b"gut\nsch\xf6n\n"), "bad.txt:2", DATA),
    (
        "data-truncated-line",
        learn_file("cut.jsonl", _lines(_records(2)).encode() + b'{"text": "wo'),
        "cut.jsonl:3",
        DATA,
    ),
    ("data-not-an-object", learn_file("list.jsonl", b"[1, 2]\n"), "list.jsonl:1", DATA),
    ("data-wrong-type", learn_file("typ.jsonl", b'{"text": 7}\n'), "column 'text' holds", DATA),
    ("data-no-column", learn_file("col.jsonl", b'{"body": "b"}\n'), "columns found:  body", DATA),
    ("data-glob-empty", learn_source("*.nothing"), "*.nothing", DATA),
    ("data-folder-empty", folder_without_files, "void", DATA),
    (
        "data-overlong",
        both(learn_file("long.jsonl", LONG.encode()), put("data.overlong", "error")),
        "document 'the-long-one' has",
        DATA,
    ),
    ("data-only-empty", learn_file("blank.jsonl", b'{"text": ""}\n' * 3), "no document was", DATA),
    ("data-same-id", learn_file("twice.jsonl", b'{"id": "a", "text": "t"}\n' * 2), "id 'a'", DATA),
    ("data-csv-no-header", learn_file("raw.csv", b"one,two\nthree,four\n"), "not found", DATA),
    ("data-csv-ragged", learn_file("rag.csv", b"text,x\na,b,c\n"), "the row has 3 cells", DATA),
    ("data-parquet", learn_file("bad.parquet", corrupt_parquet()), "bad.parquet", DATA),
    (
        "data-one-split-side",
        learn_file("one.jsonl", _lines(_records(1)).encode()),
        "no document is left on the",
        DATA,
    ),
    # The checkpoint.
    ("model-missing", put("model.checkpoint", "./gone"), "'./gone' does not exist", DATA),
    ("model-no-config", remove_from_checkpoint("config.json"), "config.json is missing", DATA),
    ("model-no-weights", remove_from_checkpoint("*.safetensors"), WEIGHTS, DATA),
    ("model-no-tokenizer", remove_from_checkpoint("tokenizer*"), "tokenizer", DATA),
    ("model-family", model_key("model_type", "mamba"), "model_type is 'mamba'", DATA),
    ("model-config-type", model_key("hidden_size", "big"), "key 'hidden_size'", DATA),
    ("model-rope-yarn", rope_yarn, "rope_type is 'yarn'", DATA),
    ("model-truncated", truncated_weights, "not a complete safetensors file", DATA),
    ("model-nan", tensors(_nan), f"tensor {NORM} has", DATA),
    ("model-wrong-shape", tensors(_wrong_shape), f"tensor {NORM} has shape [7]", DATA),
    ("model-missing-tensor", tensors(_missing), NORM, DATA),
    ("model-extra-tensor", tensors(_extra), "model.layers.1.adapter.weight", DATA),
    ("model-gguf-garbage", gguf_garbage, "not a complete GGUF file", DATA),
    ("model-package", put("model.checkpoint", "package:no_such_model"), "no_such_model", DATA),
    ("model-random", put("model.checkpoint", "random:huge"), "random model 'huge'", USAGE),
    ("model-small-vocabulary", model_smaller_than_tokenizer, "vocabulary of 200", DATA),
    ("model-token-id", other_letters_than_vocabulary, "has the id 9999", DATA),
    # The output, and files beside the data.
    ("output-is-a-file", output_is_a_file, "output: cannot write into", FAILURE),
    ("output-unwritable", output_below_a_file, "output: cannot write into", FAILURE),
    ("output-of-another", output_of_another_experiment, "holds another experiment", USAGE),
    ("output-foreign", foreign_output, "is not empty", USAGE),
    (
        "prompts-missing",
        both(put("data.keep", {}), side_file("data.keep.prompts", "gone.txt", None)),
        "gone.txt",
        DATA,
    ),
    (
        "items-missing",
        side_file("evaluate.choices", "gone.jsonl", None),
        "gone.jsonl",
        DATA,
    ),
    (
        "items-wrong",
        side_file("evaluate.choices", "items.jsonl", _lines([ITEM])),
        "items.jsonl:1: answer is 5",
        DATA,
    ),
    (
        "last-words-not-json",
        side_file("evaluate.last_words", "words.jsonl", "{\n"),
        "words.jsonl:1: not JSON",
        DATA,
    ),
    # The other commands.
    ("export-nothing", command("export", "{folder}/no", "{folder}/to"), "is no run folder", USAGE),
    ("report-nothing", command("report", "{folder}/no"), "{folder}/no", USAGE),
    ("generate-no-prompt", command("generate", "{checkpoint}"), "no prompt", USAGE),
    ("generate-no-model", command("generate", "./gone", "hi"), "'./gone' does not exist", DATA),
    ("unknown-command", command("rum", "{config}"), "did you mean run?", USAGE),
    ("no-config", command("run"), "CONFIG", USAGE),
]


@pytest.fixture(scope="session")
def good_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "model"
    write_random_model(folder, "tiny-llama", seed=0)
    return folder


@pytest.fixture
def scene(tmp_path: Path, good_checkpoint: Path) -> Scene:
    checkpoint = tmp_path / "model"
    shutil.copytree(good_checkpoint, checkpoint)
    learn = tmp_path / "learn.jsonl"
    learn.write_text(_lines(_records()), encoding="utf-8")
    config = small_config(tmp_path / "out")
    config["model"]["checkpoint"] = str(checkpoint)
    config["train"]["steps"] = 1
    config["data"]["learn"] = [{"source": str(learn)}]
    config["data"]["keep"] = {"sources": [{"source": str(learn), "limit_documents": 2}]}
    return Scene(tmp_path, checkpoint, learn, config)


def _run(scene: Scene) -> int:
    path = scene.folder / "config.yaml"
    if scene.text is None:
        write_config(path, scene.config)
    else:
        path.write_bytes(scene.text)
    return cli.main(scene.arguments or ["run", str(path)])


@pytest.mark.parametrize(
    ("spoil", "message", "code"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input(
    spoil: Spoil,
    message: str,
    code: int,
    scene: Scene,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    spoil(scene)
    found = _run(scene)
    printed = capsys.readouterr()
    assert message.replace("{folder}", str(scene.folder)) in printed.err
    assert found == code, printed.err
    assert "Traceback" not in printed.out + printed.err
    assert not list(scene.folder.rglob("metrics.jsonl"))
    if code == USAGE:
        # A mistake in the config is found before the first work that takes time.
        assert "measuring" not in printed.out


def test_the_good_input_of_the_table_is_good(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    # Without this, every case above could fail for a reason that is not its own. And a prepared
    # set that is damaged afterwards is found, and not read.
    assert _run(scene) == 0, capsys.readouterr().err
    assert list(scene.output.glob("arms/*/metrics.jsonl"))
    shard = next(scene.output.glob("data/learn_train/*.array_record"))
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    assert _run(scene) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "prepared again, because" in out
    assert "truncated" in out
    assert shard.read_bytes() == content
