"""The schema, the file reader, overrides, arms, and the words about mistakes."""

import copy
import string

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.config import Config, config_hash, expand_arms, load_config, resolved_yaml
from jaxrecipes.config.problems import dotted_keys, find_problems
from jaxrecipes.config.yaml_text import ConfigDumper, parse_yaml
from jaxrecipes.errors import ConfigError

VALID = """\
version: 1
recipe: block_expansion
output: runs/x
model:
  checkpoint: random:tiny-llama
block_expansion:
  new_blocks: 4
data:
  learn:
    - source: topics
train:
  steps: 10
  batch_size: 8
  optimizer:
    learning_rate: 1e-3
"""


@pytest.fixture
def write(tmp_path):
    def write_file(text: str | bytes):
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_file


def error_of(path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def data(**changes) -> dict:
    return {**parse_yaml(VALID, "valid").data, **changes}


def test_a_valid_config_has_its_values_and_the_documented_defaults(write):
    config = load_config(write(VALID))
    assert config.train.optimizer.learning_rate == 0.001
    assert config.data.keep.kind == "own_answers"
    assert config.seed == 0
    assert [(rule.pattern, rule.decay) for rule in config.train.optimizer.decay_rules] == [
        (".*/(scale|bias|lora_magnitude)", False),
        (".*", True),
    ]


# Replaced text, what replaces it, line of the error, words that the message must have.
MISTAKES = [
    ("recipe: block_expansion", "recipe: block_expanson", 2, ["did you mean block_expansion?"]),
    ("output: runs/x", "ouput: runs/x", 3, ["ouput", "did you mean output?"]),
    ("steps: 10", "stpes: 10", 12, ["train.stpes", "did you mean steps?"]),
    ("steps: 10", "learning_rate: 1", 12, ["did you mean train.optimizer.learning_rate?"]),
    ("steps: 10", "zzz: 1", 12, ["unknown key", "batch_size, micro_batch_size"]),
    ("batch_size: 8", 'batch_size: "8"', 13, ["expected a whole number (remove the quotes)"]),
    ("batch_size: 8", "batch_size: 8.5", 13, ["8.5", "expected a whole number"]),
    ("batch_size: 8", "batch_size: true", 13, ["is true", "expected a whole number"]),
    ("batch_size: 8", "batch_size: 0", 13, ["is 0", "must be 1 or more"]),
    ("batch_size: 8", "batch_size: [8]", 13, ["is a list", "expected a whole number"]),
    ("batch_size: 8", "batch_size:", 13, ["is null", "expected a whole number"]),
    ("learning_rate: 1e-3", "learning_rate: 1e-3x", 15, ["expected a number"]),
    ("learning_rate: 1e-3", "learning_rate: -1", 15, ["must be greater than 0"]),
    ("learning_rate: 1e-3", "learning_rate: .inf", 15, ["expected a number"]),
    ("learning_rate: 1e-3", "learning_rate: 1e999", 15, ["finite"]),
    ("learning_rate: 1e-3", "schedule: cosin", 15, ["did you mean cosine?", "linear"]),
    ("version: 1", "version: 2", 1, ["version", "expected 1"]),
    ("steps: 10", "steps: 10\n  epochs: 1", 12, ["steps or epochs; both are given"]),
    ("steps: 10", "remat: none", 11, ["steps or epochs; neither is given"]),
    ("batch_size: 8", "batch_size: 8\n  micro_batch_size: 3", 14, ["3 does not divide"]),
    ("new_blocks: 4", "new_blocks: 4\n  per_group: 3", 8, ["3 does not divide new_blocks (4)"]),
    ("new_blocks: 4", "new_blocks: 4\n  placement: [1, 2]", 8, ["2 positions", "new_blocks is 4"]),
    ("new_blocks: 4", "new_blocks: 2\n  placement: [2, 1]", 8, ["increasing"]),
    ("new_blocks: 4", "new_blocks: 2\n  placement: sufix", 8, ["prefix | suffix", "or a list"]),
    (
        "new_blocks: 4",
        "new_blocks: 2\n  placement: prefix\n  per_group: 2",
        9,
        ["only where placement is interleaved"],
    ),
    ("recipe: block_expansion", "recipe: full", 6, ["recipe full does not read it"]),
    ("recipe: block_expansion", "recipe: freeze", 6, ["needs the section freeze"]),
    ("- source: topics", "- source: topics\n      subset: en", 11, ["only for a hub dataset"]),
    ("- source: topics", "- source: topics\n      shape: chats", 11, ["did you mean chat?"]),
    (
        "data:",
        "data:\n  attend: context\n  supervise: {turns: lats}",
        10,
        ["is 'lats'", "did you mean last?"],
    ),
    (
        "  learn:\n    - source: topics",
        "  attend: context\n  learn:\n    - source: topics\n      shape: chat",
        12,
        ["must not see each other"],
    ),
    (
        "  learn:\n    - source: topics",
        "  supervise: {overlong: drop}\n  learn:\n    - {source: topics, shape: documents}",
        9,
        ["data.supervise.overlong", "every source holds documents"],
    ),
    ("- source: topics", "- sourec: topics", 10, ["did you mean source?"]),
    ("    - source: topics", "    source: topics", 9, ["is a section; expected a list"]),
    ("    - source: topics", "    []", 9, ["at least 1"]),
    ("  checkpoint: random:tiny-llama", "  checkpoint: ''", 5, ["must not be empty"]),
    ("version: 1", "version: 1\nversion: 1", 2, ["given twice (first in line 1)"]),
    ("version: 1", "version: &a 1", 1, ["anchors"]),
    ("version: 1", "version: !!python/name:os.system 1", 1, ["tags are not used"]),
    ("version: 1", "? [a, b]\n: 1", 1, ["a key must be a word"]),
    ("version: 1", "version: [1", None, ["not valid YAML"]),
    ("  steps: 10", "\tsteps: 10", 12, ["not valid YAML", "spaces only"]),
    ("output: runs/x", "output: runs/x\nname: a/b", 4, ["letters, digits"]),
    (
        "learning_rate: 1e-3",
        "learning_rate: 1e-3\n    decay_rules: [{pattern: '(', decay: true}]",
        16,
        ["not a regular expression"],
    ),
    ("data:", "data:\n  keep: {kind: documnts}", 9, ["expected own_answers | documents"]),
    ("data:", "data:\n  keep: {sources: []}", 9, ["at least 1"]),
]


@pytest.mark.parametrize(("old", "new", "line", "words"), MISTAKES)
def test_every_mistake_is_named_with_its_line_and_the_way_out(write, old, new, line, words):
    assert old in VALID
    path = write(VALID.replace(old, new, 1))
    message = error_of(path)
    for word in words:
        assert word in message
    if line is not None:
        assert f"{path}:{line}: " in message


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file(write):
    text = VALID.replace("output", "ouput").replace("steps", "stpes").replace("1e-3", "x")
    lines = error_of(write(text + "extra: 1\n")).splitlines()
    assert "has 5 problems" in lines[0]
    numbers = [line.split(":")[1] for line in lines[1:]]
    assert numbers[:4] == ["3", "12", "15", "16"]
    assert "output: is missing" in lines[5]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- a\n", "mapping of keys to values"),
        (b"hello", "mapping of keys to values"),
        (VALID.encode() + b"name: \xff\n", "0xff is not UTF-8"),
        (b"\x00", "not valid YAML"),
        (b"[" * 700 + b"]" * 700, "nested too deeply"),
        (b"a: " + b"x" * 1_000_001, "larger than 1 MB"),
    ],
)
def test_files_that_are_no_configs(write, content, words):
    assert words in error_of(write(content))


def test_missing_files_name_the_nearest(write, tmp_path):
    write(VALID)
    assert "did you mean" in error_of(tmp_path / "confg.yaml")
    assert "jaxrecipes new" in error_of(tmp_path / "other" / "x.yaml")
    assert "is a folder" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-2", -2),
        ("1_000", 1000),
        ("010", "010"),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("off", "off"),
        ("none", "none"),
        ("null", None),
        ("~", None),
        ("true", True),
        ("2024-01-01", "2024-01-01"),
        ("'1e-3'", "1e-3"),
        ("0x1F", "0x1F"),
    ],
)
def test_scalars_read_as_a_person_reads_them(text, value):
    found = parse_yaml(text, "x").data
    assert found == value and type(found) is type(value)


def test_overrides_win_and_later_ones_win_over_earlier_ones(write):
    config = load_config(
        write(VALID),
        [
            "train.steps=3",
            "train.steps=4",
            "train.optimizer.learning_rate=1e-5",
            "data.learn.0.source=docstrings:json",
            "evaluate.limit_items=20",
            "data.keep={max_new_tokens: 3}",
            "compare=[{recipe: full}]",
        ],
    )
    assert config.train.steps == 4
    assert config.train.optimizer.learning_rate == 1e-5
    assert config.data.learn[0].source == "docstrings:json"
    assert config.evaluate.limit_items == 20
    assert config.data.keep.kind == "own_answers"
    assert config.compare[0].recipe == "full"
    assert config.origins["train.steps"] == "command line (train.steps=4)"
    assert config.origins["train.batch_size"].endswith("config.yaml:13")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps", "expected key.sub=value"),
        ("=3", "expected key.sub=value"),
        ("train..steps=3", "expected key.sub=value"),
        ("train.stepz=3", "command line (train.stepz=3): train.stepz: unknown key"),
        ("trian.steps=3", "command line (trian.steps=3): trian: unknown key; did you mean train?"),
        ("train.steps=soon", "expected a whole number"),
        ("data.learn.1.source=x", "expected an index from 0 to 0"),
        ("data.learn.x=1", "expected an index"),
        ("seed.deep=1", "command line (seed.deep=1): seed: is a section"),
        ("output.deep=1", "output is a value, not a section"),
        ("train.steps=[", "not valid YAML"),
    ],
)
def test_wrong_overrides_are_named_as_typed(write, override, words):
    assert words in error_of(write(VALID), override)


def test_arms_share_everything_but_their_recipe_and_update(write):
    text = VALID + (
        "compare:\n"
        "  - recipe: full\n"
        "    learning_rates: [1e-4, 3e-4]\n"
        "  - {name: copy, recipe: block_expansion, block_expansion: {new_blocks: 4, init: copy}}\n"
        "  - {name: again, recipe: block_expansion, train: {optimizer: {beta1: 0.8}}}\n"
    )
    config = load_config(write(text))
    arms = {arm.name: arm.config for arm in expand_arms(config)}
    assert list(arms) == ["block_expansion", "full-lr0.0001", "full-lr0.0003", "copy", "again"]
    assert arms["full-lr0.0003"].train.optimizer.learning_rate == 3e-4
    assert arms["full-lr0.0003"].block_expansion is None
    assert arms["copy"].block_expansion.init == "copy"
    assert arms["again"].block_expansion == config.block_expansion
    assert arms["again"].train.optimizer.beta1 == 0.8
    assert arms["again"].train.optimizer.learning_rate == 1e-3
    assert arms["again"].origins["recipe"].endswith(":20")
    for arm in arms.values():
        assert arm.data == config.data and arm.compare == []
        assert (arm.train.steps, arm.train.batch_size) == (10, 8)


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("{recipe: full, train: {steps: 5}}", "compare.0.train.steps: unknown key"),
        ("{recipe: full, train: {batch_size: 5}}", "compare.0.train.batch_size: unknown key"),
        ("{recipe: full, data: {length: 8}}", "compare.0.data: unknown key"),
        ("{recipe: full, train: {optimizer: {lr: 1}}}", "compare.0.train.optimizer.lr: unknown"),
        (
            "{recipe: full, train: {optimizer: {learning_rate: x}}}",
            "compare.0.train.optimizer.learning_rate: is 'x'; expected a number",
        ),
        ("{recipe: full, train: {micro_batch_size: 3}}", "3 does not divide batch_size"),
        ("{recipe: freeze}", "compare.0.freeze: recipe freeze needs the section freeze"),
        ("{recipe: full, freeze: {rules: []}}", "compare.0.freeze.rules"),
        ("{recipe: block_expansion}", "the name 'block_expansion' is taken"),
        ("{recipe: full, learning_rates: [1, 1]}", "is taken by another arm"),
        (
            "{recipe: full, learning_rates: [1], train: {optimizer: {learning_rate: 1}}}",
            "either learning_rates or",
        ),
    ],
)
def test_wrong_arms_are_named_at_their_own_line(write, arm, words):
    path = write(VALID + f"compare:\n  - {arm}\n")
    message = error_of(path)
    assert words in message
    assert f"{path}:17: " in message


def test_a_mistake_in_the_main_part_is_not_repeated_for_each_arm(write):
    text = (
        VALID.replace("steps: 10", "steps: 0")
        + "compare: [{recipe: full}, {name: b, recipe: full}]"
    )
    assert len(error_of(write(text)).splitlines()) == 1


def test_the_resolved_config_reads_back_as_the_same_with_the_origin_of_each_value(write, tmp_path):
    config = load_config(write(VALID + "compare: [{recipe: full}]\n"), ["seed=7"])
    text = resolved_yaml(config)
    assert "seed: 7  # command line (seed=7)" in text
    assert "remat: dots  # default" in text
    second = tmp_path / "run.yaml"
    second.write_text(text)
    assert load_config(second).model_dump() == config.model_dump()
    assert config_hash(load_config(second)) == config_hash(config)


def test_the_hash_sees_what_changes_results_and_nothing_else(write):
    path = write(VALID)
    base = config_hash(load_config(path))
    for override in [
        "output=elsewhere",
        "name=x",
        "train.trackers.tensorboard=true",
        "train.remat=dots",
    ]:
        assert config_hash(load_config(path, [override])) == base, override
    for override in ["seed=1", "train.steps=11", "train.optimizer.beta1=0.8", "data.held_out=0.1"]:
        assert config_hash(load_config(path, [override])) != base, override


def test_configs_cannot_be_changed_in_place(write):
    with pytest.raises(ValueError, match="frozen"):
        load_config(write(VALID)).train.steps = 3


def test_every_key_has_a_description():
    def check(section, prefix=""):
        from jaxrecipes.config.problems import section_types

        for name, field in section.model_fields.items():
            assert field.description, prefix + name
            for inner in section_types(field.annotation):
                check(inner, f"{prefix}{name}.")

    check(Config)


def test_the_schema_forbids_unknown_keys_everywhere():
    schema = Config.model_json_schema()
    objects = [schema, *schema["$defs"].values()]
    assert len(objects) > 15
    assert all(entry["additionalProperties"] is False for entry in objects if "properties" in entry)


WORDS = st.text(string.ascii_lowercase + "_", min_size=1, max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(dotted_keys()), VALUES)
def test_any_value_at_any_key_is_either_accepted_or_explained(key, value):
    raw = copy.deepcopy(data())
    target = raw
    *parents, last = key.replace("[]", ".0").split(".")
    for part in parents:
        if isinstance(target, list):
            target = target[0] if target and isinstance(target[0], dict) else {}
        else:
            target = target.setdefault(part, [{}] if part == "rules" else {})
    if isinstance(target, dict):
        target[last] = value
    problems = find_problems(raw)
    if problems:
        assert all(problem.message for problem in problems)
    else:
        assert expand_arms(Config.model_validate(raw))


FINITE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(FINITE)
def test_what_the_writer_writes_the_reader_reads_back(value):
    assert parse_yaml(yaml.dump(value, Dumper=ConfigDumper), "x").data == value
