import pytest

from jaxrecipes.errors import ConfigError
from jaxrecipes.params.rules import label

TREE = {"layers": {"1": {"up": 1}, "10": {"up": 2}}, "norm": 3}


def test_the_first_match_wins_and_a_rule_matches_the_whole_path():
    labels = label(TREE, [("layers/1/.*", "one"), (".*/up", "up"), (".*", "rest")])
    assert labels == {"layers/1/up": "one", "layers/10/up": "up", "norm": "rest"}


def test_an_unmatched_leaf_is_an_error_that_names_it():
    with pytest.raises(ConfigError, match="no rule matches 1 of 3 leaves.*'norm'"):
        label(TREE, [("layers/.*", True)])


def test_a_rule_that_matches_nothing_is_an_error_because_it_is_a_typing_mistake():
    with pytest.raises(ConfigError, match="'layer/.*' matches no leaf.*layers/1/up"):
        label(TREE, [("layer/.*", True), (".*", False)])


def test_a_rule_behind_another_that_takes_all_its_leaves_is_allowed():
    assert label(TREE, [("layers/.*", 1), ("layers/1/.*", 2), (".*", 3)])["layers/1/up"] == 1


def test_a_broken_expression_is_named():
    with pytest.raises(ConfigError, match=r"'\(' is not a regular expression"):
        label(TREE, [("(", True)])
