"""The schema of the adaptive recipes: defaults, arms, hashes, and the words about mistakes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from jaxrecipes.cli import main
from jaxrecipes.config import (
    AdaptiveConfig,
    adaptive_arms,
    config_hash,
    load_config,
    resolved_yaml,
)
from jaxrecipes.config.problems import dotted_keys, find_problems, sections_at
from jaxrecipes.errors import ConfigError

VALID = """\
version: 1
recipe: knn_tapt
output: runs/x
model: {checkpoint: random:tiny-masked-bert}
task:
  train: {source: train.jsonl}
  dev: {source: dev.jsonl}
  test: {source: test.jsonl}
domain:
  sources: [{source: pool.jsonl}]
knn: {encoder: random:tiny-bert}
phases:
  - kind: pretrain
    name: first
    read: [task, selected]
    epochs: 2
  - kind: finetune
    epochs: 3
compare:
  - control: none
  - control: random
  - control: equal_compute
  - control: tapt
"""
PHASE = "{kind: pretrain, name: a, read: [task], steps: 2}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(VALID)
    return file


def loaded(path: Path, *overrides: str) -> AdaptiveConfig:
    config = load_config(path, overrides)
    assert isinstance(config, AdaptiveConfig)
    return config


def test_without_phases_the_papers_are_taken(path):
    arms = {}
    for recipe in ("dapt", "tapt", "curated_tapt", "knn_tapt"):
        changes = [f"recipe={recipe}", "phases=null", "compare=[]"]
        changes += [] if recipe == "knn_tapt" else ["knn=null"]
        changes += ["domain=null"] if recipe == "tapt" else []
        (arms[recipe],) = adaptive_arms(loaded(path, *changes))
    found = {
        name: (*one.read, one.epochs, one.batch_size, one.optimizer.learning_rate)
        for name, arm in arms.items()
        for one in arm.pretraining
    }
    assert found == {
        "dapt": ("domain", 1, 2048, 5e-4),
        "tapt": ("task", 100, 256, 1e-4),
        "curated_tapt": ("task", "domain", 100, 256, 1e-4),
        "knn_tapt": ("task", "selected", 100, 256, 1e-4),
    }
    tuned = arms["tapt"].finetune
    assert (tuned.epochs, tuned.patience, tuned.batch_size) == (10, 3, 16)
    optimizer = tuned.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.beta2) == (2e-5, 0.1, 0.98)
    masking = arms["tapt"].pretraining[0].masking
    assert (masking.rate, masking.mask_share, masking.random_share) == (0.15, 0.8, 0.1)


def test_controls_change_one_thing(path):
    main_arm, none, random, equal, tapt = adaptive_arms(loaded(path))
    assert [arm.name for arm in (main_arm, none, random, equal, tapt)] == [
        *("knn_tapt", "none", "random", "equal_compute", "tapt")
    ]
    assert all(arm.finetune == main_arm.finetune for arm in (none, random, equal, tapt))
    assert none.pretraining == equal.pretraining == ()
    assert equal.equal_compute and not none.equal_compute
    for arm, read in ((random, ["task", "random"]), (tapt, ["task"])):
        (phase,) = arm.pretraining
        (of_main,) = main_arm.pretraining
        assert phase.read == read
        same = {"name", "read"}
        assert phase.model_dump(exclude=same) == of_main.model_dump(exclude=same)


def test_an_arm_can_have_phases_of_its_own(path):
    own = f"compare=[{{name: mine, phases: [{PHASE}, {{kind: finetune, epochs: 1}}]}}]"
    arm = adaptive_arms(loaded(path, own))[1]
    assert (arm.name, arm.pretraining[0].steps, arm.finetune.epochs) == ("mine", 2, 1)


SPOILS = [
    ("recipe=tapd", "recipe: is 'tapd'", "did you mean tapt?"),
    ("knn.neighbours=5", "knn.neighbours: unknown key", "did you mean neighbors?"),
    ("knn.neighbors='5'", "knn.neighbors: is '5'; expected a whole number", "remove the quotes"),
    ("phases.0.maskin={}", "phases.0.maskin: unknown key", "did you mean masking?"),
    ("phases.0.masking.rate=1", "phases.0.masking.rate: is 1; must be less than 1", ""),
    ("phases.0.masking={mask_share: 0.9, random_share: 0.2}", "masking.mask_share", "more than 1"),
    ("phases.0.steps=3", "phases.0.steps", "give either steps or epochs; both are given"),
    ("phases.0.epochs=null", "phases.0.steps", "neither is given"),
    ("phases.0.kind=null", "phases.0.kind", "expected pretrain | finetune"),
    ("phases.0={name: a}", "phases.0.kind: is missing", "pretrain | finetune"),
    ("phases.0.kind=train", "phases.0.kind: is 'train'", "pretrain | finetune"),
    ("phases.0.read=[tasks]", "phases.0.read.0: is 'tasks'", "did you mean task?"),
    ("phases.0.read=[]", "phases.0.read", "at least 1"),
    ("phases.0.read=[task, task, selected]", "phases.0.read", "twice"),
    ("phases.0.replay=0.1", "phases.0.replay", "needs the section replay"),
    ("phases.0.micro_batch_size=100", "micro_batch_size: 100 does not divide batch_size", ""),
    ("phases.0.reset_optimizer=false", "phases.0.reset_optimizer", "no phase before"),
    ("phases.0.optimizer={}", "phases.0.optimizer.learning_rate: is missing", ""),
    (f"phases=[{PHASE}]", "phases: the last phase, and no other, must be of kind finetune", ""),
    (f"phases=[{PHASE}, {PHASE}, {{kind: finetune}}]", "phases.1.name", "taken by another"),
    ("phases.1.patience=0", "phases.1.patience: is 0; must be 1 or more", ""),
    ("phases.1.perturb={method: fgm, alpha: 1}", "phases.1.perturb.alpha", "does not read it"),
    ("phases.1.perturb={method: kim_kang, teacher: x}", "phases.1.perturb.method", "works with"),
    ("domain=null", "phases.0.read", "needs the section domain"),
    ("knn=null", "phases.0.read", "need the section knn"),
    ("phases.0.read=[task]", "domain", "no phase reads it"),
    ("compare.0.name=knn_tapt", "compare.0.name", "taken by another arm"),
    ("compare.0.phases=[{kind: finetune}]", "compare.0", "either control or phases; both"),
    ("compare.0={}", "compare.0", "either control or phases; neither"),
    ("compare.0.control=non", "compare.0.control: is 'non'", "did you mean none?"),
    ("compare=[{phases: [{kind: finetune}]}]", "compare.0.name", "needs a name"),
    ("task.train=train.jsonl", "task.train: is 'train.jsonl'; expected a section", ""),
    ("task.score=f1", "task.score: is 'f1'", "macro_f1"),
    ("task.train.shape=chat", "task.train.shape: is chat", "classification or sentence_pair"),
    ("domain.sources.0.shape=chat", "domain.sources.0.shape: is chat", "documents"),
    ("task.dev.subset=x", "task.dev.subset", "read only for a hub dataset"),
    ("seeds=0", "seeds: is 0; must be 1 or more", ""),
    ("train.steps=3", "train: unknown key", ""),
    ("model.checkpoint=null", "model.checkpoint: is null; expected text", ""),
]


@pytest.mark.parametrize(("override", "key", "words"), SPOILS, ids=[one[0] for one in SPOILS])
def test_a_mistake_is_named_with_its_key_and_what_to_do(path, override, key, words):
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    message = str(caught.value)
    assert key in message and words in message, message
    assert str(path) in message or "command line" in message


def test_all_mistakes_of_a_file_come_with_their_lines(path, capsys):
    path.write_text(VALID.replace("epochs: 2", "epoch: 2"))
    assert main(["validate", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"{path}:16: phases.0.epoch: unknown key; did you mean epochs?" in error


def test_validate_names_the_arms_and_resolved_reads_back(path, tmp_path, capsys):
    assert main(["validate", str(path)]) == 0
    assert "Arms: knn_tapt, none, random, equal_compute, tapt." in capsys.readouterr().out
    config = loaded(path, "seed=4")
    again = tmp_path / "again.yaml"
    again.write_text(resolved_yaml(config))
    assert "seed: 4  # command line (seed=4)" in again.read_text()
    assert loaded(again).model_dump() == config.model_dump()
    assert config_hash(loaded(again)) == config_hash(config)


def test_the_hash_follows_what_can_change_a_result(path):
    base = config_hash(loaded(path))
    for same in ("output=runs/y", "seeds=2", "compare=[]", "name=x", "checkpoint.every_steps=7"):
        assert config_hash(loaded(path, same)) == base, same
    for other in ("seed=1", "phases.0.epochs=3", "task.train_rows=5", "model.head=mean"):
        assert config_hash(loaded(path, other)) != base, other


@pytest.mark.parametrize("verb", ["plan", "preview", "eval"])
def test_verbs_that_know_no_phases_say_so(path, verb, capsys):
    assert main([verb, str(path)]) == 2
    assert "does not know the config of recipe knn_tapt" in capsys.readouterr().err


def test_every_key_is_described_and_odd_values_are_explained():
    raw = yaml.safe_load(VALID)
    for key in dotted_keys(AdaptiveConfig):
        parts = key.replace("[]", "").split(".")
        owners = sections_at(tuple(parts[:-1]), AdaptiveConfig)
        fields = [one.model_fields[parts[-1]] for one in owners if parts[-1] in one.model_fields]
        assert fields and all(field.description for field in fields), key
        for odd in (None, -1, "x", [], {}, [{"kind": 1}], True, float("inf")):
            data = copy.deepcopy(raw)
            target = data
            for part in key.replace("[]", ".0").split(".")[:-1]:
                if isinstance(target, list):
                    target = target[0] if target and isinstance(target[0], dict) else {}
                else:
                    target = target.setdefault(part, {}) if isinstance(target, dict) else {}
            if isinstance(target, dict):
                target[parts[-1]] = odd
            problems = find_problems(data)
            assert all(problem.message for problem in problems)
            if not problems:
                assert adaptive_arms(AdaptiveConfig.model_validate(data))
