"""Bad inputs of every kind: each ends with its exit code and a message that names the thing."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from jaxrecipes import cli
from jaxrecipes.checkpoint.random_model import write_random_model
from tests.experiment.small import small_config, write_config
from tests.experiment.spoils import (
    NORM,
    WEIGHTS,
    Scene,
    Spoil,
    both,
    command,
    corrupt_parquet,
    extra_tensor,
    folder_without_files,
    foreign_output,
    freeze,
    gguf_garbage,
    learn_file,
    learn_source,
    lines,
    missing_tensor,
    model_key,
    model_smaller_than_tokenizer,
    not_a_number,
    other_letters_than_vocabulary,
    output_below_a_file,
    output_is_a_file,
    output_of_another_experiment,
    put,
    records,
    remove_from_checkpoint,
    rope_yarn,
    side_file,
    tensors,
    text,
    truncated_weights,
    wrong_shape,
)

USAGE, DATA, FAILURE = 2, 3, 1

ALL, NONE = {"pattern": ".*", "train": True}, {"pattern": ".*", "train": False}
FULL = {"recipe": "full"}
ITEM = {"question": "Which?", "choices": ["this", "that"], "answer": 5}
LONG = lines([*records(), {"id": "the-long-one", "text": "word " * 200}])

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
    (
        "perturb-option",
        put("train.perturb", {"method": "fgm", "alpha": 5.0}),
        "train.perturb.alpha: method fgm does not read it; it reads epsilon",
        USAGE,
    ),
    ("perturb-method", put("train.perturb", {"method": "fgsm"}), "train.perturb.method", USAGE),
    (
        "perturb-no-teacher",
        put("train.perturb", {"method": "kim_kang"}),
        "train.perturb.teacher: kim_kang attacks a model that was trained before",
        USAGE,
    ),
    (
        "perturb-other-teacher",
        put("train.perturb", {"method": "fgm", "teacher": "x"}),
        "is read by method kim_kang only",
        USAGE,
    ),
    (
        "perturb-new-leaves",
        put("train.perturb", {"method": "kim_kang", "teacher": "x"}),
        "trains leaves that the teacher's checkpoint does not have",
        USAGE,
    ),
    (
        "perturb-teacher-not-there",
        put(
            "compare",
            [{**FULL, "train": {"perturb": {"method": "kim_kang", "teacher": "/not/there"}}}],
        ),
        "arm full: train.perturb.teacher: checkpoint '/not/there' does not exist",
        DATA,
    ),
    (
        "perturb-rounded-away",
        both(
            put("train.perturb", {"method": "alum"}),
            put("model.compute_dtype", "bfloat16"),
        ),
        "does nothing in bfloat16",
        USAGE,
    ),
    (
        "penalty-coefficient",
        put("train.penalty", {"kind": "l2"}),
        "train.penalty.coefficient: kind l2 needs one",
        USAGE,
    ),
    (
        "penalty-option",
        put("train.penalty", {"kind": "kl", "coefficient": 1.0, "examples": 3}),
        "train.penalty.examples: is read by kind ewc only",
        USAGE,
    ),
    (
        "penalty-no-rows",
        put("train.penalty", {"kind": "ewc", "coefficient": 1.0}),
        "train.penalty.sources: kind ewc needs rows",
        USAGE,
    ),
    (
        "penalty-not-the-base",
        both(
            put("block_expansion.init", "copy"),
            put("train.penalty", {"kind": "kl", "coefficient": 1.0}),
        ),
        "begins as another function than the base; use l2 or ewc",
        USAGE,
    ),
    # The data.
    ("data-missing", learn_source("gone.jsonl"), "gone.jsonl", DATA),
    ("data-empty", learn_file("empty.jsonl", b""), "the file is empty", DATA),
    ("data-not-utf8", learn_file("bad.txt", b"gut\nsch\xf6n\n"), "bad.txt:2", DATA),
    (
        "data-truncated-line",
        learn_file("cut.jsonl", lines(records(2)).encode() + b'{"text": "wo'),
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
        learn_file("one.jsonl", lines(records(1)).encode()),
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
    ("model-nan", tensors(not_a_number), f"tensor {NORM} has", DATA),
    ("model-wrong-shape", tensors(wrong_shape), f"tensor {NORM} has shape [7]", DATA),
    ("model-missing-tensor", tensors(missing_tensor), NORM, DATA),
    ("model-extra-tensor", tensors(extra_tensor), "model.layers.1.adapter.weight", DATA),
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
        side_file("evaluate.choices", "items.jsonl", lines([ITEM])),
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
    learn.write_text(lines(records()), encoding="utf-8")
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
