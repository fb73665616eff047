"""Values of a sequence of tasks that are right alone and wrong together."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxrecipes.config import config_hash, load_config
from jaxrecipes.config.rehearsal import RehearsalConfig, rehearsal_arms
from jaxrecipes.errors import ConfigError

TINY = Path(__file__).parents[2] / "configs" / "self_synthesized_rehearsal" / "tiny.yaml"


def load(*overrides: str) -> RehearsalConfig:
    config = load_config(TINY, overrides)
    assert isinstance(config, RehearsalConfig)
    return config


def test_the_main_arm_comes_first_and_each_has_a_section_of_its_own():
    arms = rehearsal_arms(load())
    assert [arm.name for arm in arms] == ["ssr", "nothing", "real", "ewc", "at_once"]
    assert [arm.rehearsal.method for arm in arms] == [
        "synthetic",
        "none",
        "real",
        "none",
        "multitask",
    ]
    assert arms[2].rehearsal.refine == "never" and arms[0].rehearsal.refine == "after_selection"


def test_the_hash_leaves_out_what_changes_no_result():
    plain = config_hash(load())
    assert config_hash(load("output=elsewhere", "compare=[]", "mesh.fsdp=1")) == plain
    assert config_hash(load("rehearsal.share=0.5")) != plain


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("tasks.1.name=texts", "tasks.1.name", "is taken by another"),
        ("tasks.0.train.shape=chat", "tasks.0.train.shape", "tasks are read as one of"),
        ("compare.0.name=ssr", "compare.0.name", "is taken by another arm"),
        ("rehearsal.method=none", "rehearsal.share", "repeats nothing and does not read it"),
        ("rehearsal.selection=random", "rehearsal.clusters", "is read by selection kmeans only"),
        ("tuning.train.penalty={kind: l2, coefficient: 1}", "tuning.train.penalty", "to an arm"),
        ("rehearsal.penalty={kind: l2}", "rehearsal.penalty.coefficient", "kind l2 needs one"),
        (
            "rehearsal.penalty={kind: ewc, coefficient: 1, sources: [{source: x}]}",
            "rehearsal.penalty.sources",
            "of the tasks before; remove it",
        ),
        (
            "compare.3.rehearsal.penalty={kind: l2, coefficient: 1}",
            "compare.3.rehearsal.penalty",
            "multitask has no second task",
        ),
        ("tuning.method=lora", "tuning.lora", "needs this section"),
        ("tasks=[]", "tasks", ""),
    ],
)
def test_what_does_not_fit_is_refused(override, key, message):
    with pytest.raises(ConfigError) as error:
        load(override)
    assert f"{key}: " in str(error.value) and message in str(error.value)


def test_information_about_adapters_does_not_outlive_them():
    third = "{name: third, train: {source: x}, test: {source: x}}"
    names = ("texts", "tests")
    tasks = ", ".join(f"{{name: {n}, train: {{source: x}}, test: {{source: x}}}}" for n in names)
    lora = ("tuning.method=lora", "tuning.lora={rank: 2}")
    load(f"tasks=[{tasks}]", *lora)
    with pytest.raises(ConfigError, match=r"more than two tasks needs tuning\.method: full"):
        load(f"tasks=[{tasks}, {third}]", *lora)
