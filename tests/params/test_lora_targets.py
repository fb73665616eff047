"""Which modules get an adapter, and how many values train: against PEFT's own functions."""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.checkpoint.model_config import parse_model_config
from jaxrecipes.checkpoint.peft_names import decoder_modules
from jaxrecipes.errors import ConfigError
from jaxrecipes.params.lora_explain import explain
from jaxrecipes.params.lora_options import AdapterOptions
from jaxrecipes.params.lora_targets import (
    Module,
    pattern_value,
    select_modules,
    verdict,
    written_options,
)
from tests.tiny import tiny_config

# SmolLM2-135M, as its config.json says.
SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
WORDS = (
    "q_proj",
    "v_proj",
    "proj",
    "layers",
    "h",
    "mlp",
    "norm",
    "experts",
    "0",
    "1",
    "12",
    "lm_head",
)
NAMES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(".".join)
EXPRESSIONS = st.sampled_from(
    [
        r".*proj",
        r"layers\.\d+\..*",
        r".*\.(q|v)_proj",
        r"q_proj",
        r".*",
        r".*layers\.(0|12)\..*",
        "norm",
    ]
)
TARGETS = st.one_of(EXPRESSIONS, st.lists(NAMES, min_size=1, max_size=3).map(tuple))


def peft_verdict(options: AdapterOptions, name: str) -> str:
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

    def plain(value: Any) -> Any:
        return value if isinstance(value, str) else list(value)

    config = SimpleNamespace(
        target_modules=plain(options.targets),
        exclude_modules=plain(options.exclude) or None,
        modules_to_save=list(options.modules_to_save) or None,
        layers_to_transform=list(options.layers_to_transform) or None,
        layers_pattern=list(options.layers_pattern) or None,
        target_parameters=None,
    )
    found = check_target_module_exists(config, name)
    if isinstance(found, _ExcludedModule):
        return "excluded"
    return "matched" if found else "unmatched"


@settings(max_examples=600, deadline=None)
@given(
    name=NAMES,
    targets=TARGETS,
    exclude=st.one_of(st.just(()), TARGETS),
    saved=st.lists(st.sampled_from(["norm", "lm_head", "mlp", r"layers\.1"]), max_size=2).map(
        tuple
    ),
    layers=st.lists(st.integers(0, 12), max_size=3).map(tuple),
    pattern=st.lists(st.sampled_from(["layers", "h", "experts"]), max_size=2).map(tuple),
)
def test_matching_is_pefts(name, targets, exclude, saved, layers, pattern) -> None:
    pytest.importorskip("peft")
    if isinstance(targets, str):
        layers = ()
    options = AdapterOptions(
        targets=targets,
        exclude=exclude,
        modules_to_save=saved,
        layers_to_transform=layers,
        layers_pattern=pattern if layers else (),
    )
    assert verdict(options, options.targets, name) == peft_verdict(options, name)


@settings(max_examples=300, deadline=None)
@given(
    name=NAMES,
    patterns=st.dictionaries(st.one_of(NAMES, EXPRESSIONS), st.integers(1, 9), max_size=4),
)
def test_patterns_are_pefts(name, patterns) -> None:
    other = pytest.importorskip("peft.utils.other")
    expected = patterns.get(other.get_pattern_key(patterns.keys(), name), 8)
    assert pattern_value(patterns, name, 8) == expected


def gpt2_modules(layers: int, width: int) -> list[Module]:
    shapes = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }
    blocks = [
        Module(f"transformer.h.{index}.{name}", "linear", "", *shape)
        for index in range(layers)
        for name, shape in shapes.items()
    ]
    return [*blocks, Module("lm_head", "head", "", width, 50257)]


def peft_count(config: Any, **options: Any) -> int:
    """PEFT's own count, on a model without memory."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(config)
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    return adapted.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(("layers", "width", "count"), [(24, 1024, 393_216), (36, 1280, 737_280)])
def test_gpt2_counts_are_those_of_peft_not_of_the_well_known_table(layers, width, count) -> None:
    options = AdapterOptions(rank=4, targets=("c_attn",))
    assert select_modules(options, gpt2_modules(layers, width)).parameters == count
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64)
    assert peft_count(config, r=4, target_modules=["c_attn"], fan_in_fan_out=True) == count
    # Two separate matrices of the same width, as in the paper, have as many.
    paper = [
        Module(f"{index}.{name}", "linear", "", width, width)
        for index in range(layers)
        for name in ("q", "v")
    ]
    assert select_modules(AdapterOptions(rank=4), paper).parameters == count


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (AdapterOptions(rank=8, targets=("q_proj", "v_proj")), 460_800),
        (AdapterOptions(rank=16), 4_884_480),
        (AdapterOptions(rank=64), 19_537_920),
    ],
)
def test_smollm2_counts(options: AdapterOptions, count: int) -> None:
    modules = decoder_modules(parse_model_config(SMOLLM2, where="SmolLM2"))
    selection = select_modules(options, modules)
    assert selection.parameters == count
    assert sum(row.parameters for row in explain(selection)) == count
    transformers = pytest.importorskip("transformers")
    targets = options.targets if isinstance(options.targets, str) else list(options.targets)
    config = transformers.AutoConfig.for_model(**SMOLLM2)
    assert peft_count(config, r=options.rank, target_modules=targets) == count


@pytest.mark.parametrize(
    "options",
    [
        AdapterOptions(rank=4, use_dora=True, rank_pattern={"down_proj": 7}),
        AdapterOptions(rank=4, targets=("q_proj", "embed_tokens"), use_dora=True),
        AdapterOptions(rank=4, targets=("q_proj",), modules_to_save=("norm",)),
        AdapterOptions(rank=4, targets=("q_proj",), modules_to_save=("mlp", "lm_head")),
        AdapterOptions(rank=4, targets=("q_proj",), trainable_tokens=(1, 5, 7)),
        AdapterOptions(rank=3, targets=r".*\.1\..*_proj", exclude=("up_proj",)),
    ],
    ids=str,
)
def test_counts_of_every_kind_are_pefts(options: AdapterOptions, tiny_configs: dict) -> None:
    config = parse_model_config(tiny_configs["llama3"], where="llama3")
    selection = select_modules(options, decoder_modules(config))
    transformers = pytest.importorskip("transformers")
    plain = {
        "target_modules": options.targets,
        "exclude_modules": options.exclude,
        "modules_to_save": options.modules_to_save,
        "trainable_token_indices": options.trainable_tokens,
    }
    expected = peft_count(
        transformers.AutoConfig.for_model(**tiny_configs["llama3"]),
        r=options.rank,
        use_dora=options.use_dora,
        rank_pattern=dict(options.rank_pattern),
        **{key: list(v) if isinstance(v, tuple) else v for key, v in plain.items() if v},
    )
    assert selection.parameters == expected
    assert sum(row.parameters for row in explain(selection)) == expected


def test_the_modules_are_those_of_transformers(tiny_configs: dict) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    for family, values in tiny_configs.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
        theirs = {name: module for name, module in model.named_modules() if name}
        ours = {one.name: one for one in decoder_modules(parse_model_config(values, where=family))}
        # What we leave out has no weights.
        assert set(ours) <= set(theirs)
        for name in set(theirs) - set(ours):
            assert not list(theirs[name].parameters()), name
        for name, module in ours.items():
            linear = isinstance(theirs[name], torch.nn.Linear)
            assert linear == (module.kind in ("linear", "head")), name
            if linear:
                shape = (theirs[name].in_features, theirs[name].out_features)
                assert (module.inputs, module.outputs) == shape
            inside = sum(parameter.numel() for parameter in theirs[name].parameters())
            assert sum(module.leaves.values()) == inside, name


MODULES = decoder_modules(tiny_config("untied", num_layers=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("q_proj", "w_proj")}, "target 'w_proj' matches no module"),
        ({"targets": r"q_proj"}, "targets 'q_proj' match no module"),
        ({"targets": ("mlp",)}, r"targets match model\.layers\.0\.mlp"),
        ({"targets": r".*(norm|q_proj)"}, "no linear layer and no embedding"),
        ({"targets": ("lm_head",)}, "output head lm_head"),
        ({"targets": "(("}, "not a regular expression"),
        ({"exclude": ("x_proj",)}, "exclude 'x_proj' matches no module"),
        ({"modules_to_save": ("classifier",)}, "'classifier' matches no module"),
        ({"rank_pattern": {"z_proj": 3}}, "rank_pattern 'z_proj' matches no module"),
        ({"alpha_pattern": {"lm_head": 3.0}}, "alpha_pattern 'lm_head' matches no module"),
        ({"modules_to_save": ("mlp", "mlp.up_proj")}, "which contains it"),
        ({"modules_to_save": ("_proj",)}, "has an adapter"),
        ({"trainable_tokens": (3, 61)}, "the vocabulary has 61"),
        ({"trainable_tokens": (3,), "embeddings": True}, "choose one"),
        ({"embeddings": True, "exclude": ("embed_tokens",)}, "embeddings is set"),
        ({"init": "orthogonal", "rank_pattern": {"q_proj": 3}}, "even rank; .*q_proj has 3"),
        ({"init": "pissa", "rank": 17}, "at most 16"),
        ({"rank": 0}, "a rank is at least 1"),
        ({"init": "best"}, "expected one of kaiming"),
        ({"init": "pissa", "alpha": -1}, "one above 0"),
        ({"layers_to_transform": (1,)}, "with a list of names"),
        ({"targets": ("q_proj",), "layers_pattern": ("layers",)}, "needs layers_to_transform"),
        ({"trainable_tokens": (3, 3)}, "each once"),
    ],
)
def test_options_that_do_nothing_or_cannot_be_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select_modules(AdapterOptions(**changes), MODULES)


def test_a_tied_head_does_not_train_alone() -> None:
    modules = decoder_modules(tiny_config("llama"))
    with pytest.raises(ConfigError, match="tied to the input embedding"):
        select_modules(AdapterOptions(modules_to_save=("lm_head",)), modules)
    both = select_modules(AdapterOptions(modules_to_save=("lm_head", "embed_tokens")), modules)
    assert both.saved_leaves == {"embedding/table": 61 * 32}


def test_explain_lists_what_matched_and_what_not() -> None:
    options = AdapterOptions(
        rank=4,
        alpha=8,
        targets=("q_proj", "v_proj"),
        rank_pattern={r"layers\.2\..*v_proj": 2},
        modules_to_save=("model.norm",),
    )
    rows = {
        (row.modules.rpartition("*.")[2], row.what, row.rank): row
        for row in explain(select_modules(options, MODULES))
    }
    assert rows["self_attn.q_proj", "adapter", 4].count == 3
    assert rows["self_attn.v_proj", "adapter", 4].count == 2
    assert rows["self_attn.v_proj", "adapter", 2].parameters == 2 * (32 + 16)
    assert rows["self_attn.v_proj", "adapter", 2].scale == 4.0
    assert rows["model.norm", "whole", None].parameters == 32
    unmatched = {name for name, what, _ in rows if what == "unmatched"}
    assert unmatched == {
        "self_attn.k_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    }


@pytest.mark.parametrize(
    "options",
    [
        AdapterOptions(),
        AdapterOptions(embeddings=True),
        AdapterOptions(exclude=r".*\.0\..*"),
        AdapterOptions(targets=("q_proj",), embeddings=True, layers_to_transform=(1,)),
        AdapterOptions(targets=r".*layers\.1\..*_proj", embeddings=True),
    ],
    ids=str,
)
def test_what_a_file_says_selects_the_same_modules(options: AdapterOptions) -> None:
    selection = select_modules(options, MODULES)
    written = written_options(options, selection, MODULES)
    assert not written.embeddings and not written.takes_all_linear
    again = select_modules(written, MODULES, strict=False)
    assert [one.module.name for one in again.adapters] == [
        one.module.name for one in selection.adapters
    ]
    if isinstance(written.targets, tuple):
        assert all(re.fullmatch(r"[\w.]+", name) for name in written.targets)
