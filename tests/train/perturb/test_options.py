"""The methods by name: the config's table of options is theirs, and each option arrives."""

import pytest

from jaxrecipes.config.perturb import METHOD_OPTIONS, NOT_OPTIONS, PerturbSection
from jaxrecipes.errors import ConfigError
from jaxrecipes.train.perturb.options import build_method, method_options

METHODS = [name for name in METHOD_OPTIONS if name != "none"]


@pytest.mark.parametrize("name", METHODS)
def test_the_config_lists_the_options_that_a_method_has(name):
    assert METHOD_OPTIONS[name] == method_options(name)


def test_the_config_has_no_option_that_no_method_reads():
    every = {option for options in METHOD_OPTIONS.values() for option in options}
    assert set(PerturbSection.model_fields) - NOT_OPTIONS == every


@pytest.mark.parametrize("name", METHODS)
def test_every_option_of_a_method_reaches_it(name):
    for option in method_options(name):
        value = {"norm": "linf", "relative": True, "clean": False}.get(option, 2)
        assert build_method(name, {option: value}) != build_method(name, {}), option


def test_what_there_is_not_is_named():
    with pytest.raises(ConfigError, match="fgm has no option alpha; it has epsilon"):
        build_method("fgm", {"alpha": 5.0})
    with pytest.raises(ConfigError, match="no method 'fgsm'; there are fgm, pgd"):
        build_method("fgsm", {})
