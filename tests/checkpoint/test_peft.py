"""Adapter folders against PEFT itself: tensors bit for bit, logits, and what PEFT lets pass."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxrecipes.checkpoint.huggingface import Imported, import_checkpoint
from jaxrecipes.checkpoint.peft import read_adapter, write_adapter
from jaxrecipes.checkpoint.peft_names import decoder_modules
from jaxrecipes.errors import CheckpointError, ConfigError
from jaxrecipes.params.lora import build_adapters, split_adapters
from jaxrecipes.params.lora_options import AdapterOptions
from jaxrecipes.params.lora_targets import select_modules
from jaxrecipes.params.partition import combine
from jaxrecipes.params.paths import flatten, unflatten
from tests.checkpoint.test_parity import our_logits

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")

QV = ("q_proj", "v_proj")
# Name -> (family of the base, our options, PEFT's options). "llama" is tied, "llama3" is not and
# has biases everywhere.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("llama", {"targets": QV}, {"target_modules": list(QV)}),
    "all_linear": ("llama3", {}, {"target_modules": "all-linear"}),
    "expression": (
        "llama",
        {"targets": r"model\.layers\.[02]\..*(up|o)_proj"},
        {"target_modules": r"model\.layers\.[02]\..*(up|o)_proj"},
    ),
    "rslora": ("llama", {"use_rslora": True}, {"target_modules": "all-linear", "use_rslora": True}),
    "dora": ("llama3", {"use_dora": True}, {"target_modules": "all-linear", "use_dora": True}),
    "patterns": (
        "llama",
        {
            "rank_pattern": {"q_proj": 2, r"layers\.1\..*down_proj": 6},
            "alpha_pattern": {"layers.0.mlp.up_proj": 3, "self_attn.v_proj": 5},
        },
        {
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 2, r"layers\.1\..*down_proj": 6},
            "alpha_pattern": {"layers.0.mlp.up_proj": 3, "self_attn.v_proj": 5},
        },
    ),
    "layers": (
        "llama",
        {"targets": QV, "layers_to_transform": (1,), "layers_pattern": ("layers",)},
        {"target_modules": list(QV), "layers_to_transform": [1], "layers_pattern": ["layers"]},
    ),
    "excluded": (
        "llama",
        {"exclude": ("layers.0.mlp.up_proj", "o_proj")},
        {"target_modules": "all-linear", "exclude_modules": ["layers.0.mlp.up_proj", "o_proj"]},
    ),
    "embeddings": (
        "llama3",
        {"targets": (*QV, "embed_tokens")},
        {"target_modules": [*QV, "embed_tokens"]},
    ),
    "tied_embeddings": (
        "llama",
        {"targets": (*QV, "embed_tokens"), "use_dora": True},
        {"target_modules": [*QV, "embed_tokens"], "use_dora": True},
    ),
    "scaled_embeddings": (
        "gemma3",
        {"targets": (*QV, "embed_tokens")},
        {"target_modules": [*QV, "embed_tokens"]},
    ),
    "modules_to_save": (
        "llama3",
        {"targets": QV, "modules_to_save": ("lm_head", "embed_tokens", "norm")},
        {"target_modules": list(QV), "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    ),
    "tied_modules_to_save": (
        "llama",
        {"targets": QV, "modules_to_save": ("embed_tokens",)},
        {
            "target_modules": list(QV),
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
    ),
    "tokens": (
        "llama3",
        {"targets": QV, "trainable_tokens": (5, 2, 260)},
        {"target_modules": list(QV), "trainable_token_indices": [5, 2, 260]},
    ),
    "tied_tokens": (
        "llama",
        {"targets": QV, "trainable_tokens": (5, 2, 260)},
        {"target_modules": list(QV), "trainable_token_indices": [5, 2, 260]},
    ),
}
RANK, ALPHA = 4, 6.0
TOKENS = np.random.default_rng(3).integers(0, 256, (2, 24))


def options_of(case: str) -> AdapterOptions:
    return AdapterOptions(**{"rank": RANK, "alpha": ALPHA, **CASES[case][1]})


def torch_base(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def peft_model(folder: Path, seed: int = 0, **changes: Any) -> Any:
    """An adapter that PEFT made, every trained value random."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(torch_base(folder), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def logits_of(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()


def load_strictly(folder: Path, adapter: Path) -> Any:
    """PEFT's own loading; its warning that keys are missing is an error here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Mm]issing.*")
        warnings.filterwarnings("error", message=".*[Uu]nexpected.*")
        return peft.PeftModel.from_pretrained(torch_base(folder), str(adapter)).eval()


def save(model: Any, folder: Path) -> dict[str, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(folder))
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_what_peft_wrote_is_read_and_written_bit_for_bit(
    case: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    family, _, theirs = CASES[case]
    folder = tiny_checkpoint(family)
    model = peft_model(folder, **theirs)
    tensors = save(model, tmp_path / "theirs")
    base = import_checkpoint(folder)
    loaded = read_adapter(tmp_path / "theirs", base.config, base.params)
    assert loaded.selection.parameters == model.get_nb_trainable_parameters()[0]
    expected = logits_of(model)
    assert np.max(np.abs(expected - logits_of(torch_base(folder)))) > 1e-2
    assert np.max(np.abs(our_logits(base.config, loaded.params, TOKENS) - expected)) < 1e-5
    write_adapter(tmp_path / "ours", base.config, loaded.params, loaded.options)
    written = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert set(written) == set(tensors)
    for name, tensor in tensors.items():
        assert written[name].dtype == tensor.dtype
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)
    again = load_strictly(folder, tmp_path / "ours")
    np.testing.assert_array_equal(logits_of(again), expected)


def our_adapters(base: Imported, options: AdapterOptions, seed: int = 0) -> tuple[Any, Any]:
    """Adapters that we made, with every trained value moved; (tree, initial)."""
    selection = select_modules(options, decoder_modules(base.config))
    made = build_adapters(base.params, options, selection, jax.random.key(seed))
    generator = np.random.default_rng(seed)
    leaves = flatten(combine(made.adapters, made.base))
    trained = {path for path in flatten(made.adapters) if path.endswith(("_a", "_b", "_delta"))}
    trained |= {path for path in leaves if path.endswith("_magnitude")}
    for path in sorted(trained | set(selection.saved_leaves)):
        noise = 0.1 * generator.standard_normal(leaves[path].shape).astype(np.float32)
        leaves[path] = np.asarray(leaves[path]) + noise
    return unflatten(leaves), made.initial


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_what_we_compute(
    case: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tiny_checkpoint(CASES[case][0])
    base = import_checkpoint(folder)
    options = options_of(case)
    params, _ = our_adapters(base, options)
    write_adapter(tmp_path / "adapter", base.config, params, options)
    model = load_strictly(folder, tmp_path / "adapter")
    difference = our_logits(base.config, params, TOKENS) - logits_of(model)
    assert np.max(np.abs(difference)) < 1e-5
    back = read_adapter(tmp_path / "adapter", base.config, base.params)
    expected = flatten(params)
    assert set(flatten(back.params)) == set(expected)
    for path, leaf in flatten(back.params).items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(expected[path]), err_msg=path)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 3.0}},
        {"targets": (*QV, "embed_tokens"), "modules_to_save": ("lm_head",)},
    ],
)
def test_adapters_that_took_from_the_base_are_written_as_plain_ones_of_twice_the_rank(
    init: str, changes: dict, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tiny_checkpoint("llama3")
    base = import_checkpoint(folder)
    options = AdapterOptions(**{"rank": RANK, "alpha": ALPHA, "init": init, **changes})
    params, initial = our_adapters(base, options)
    write_adapter(tmp_path / "adapter", base.config, params, options, initial=initial)
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (written["r"], written["init_lora_weights"]) == (2 * RANK, True)
    expected = our_logits(base.config, params, TOKENS)
    model = load_strictly(folder, tmp_path / "adapter")
    assert np.max(np.abs(logits_of(model) - expected)) < 1e-5
    back = read_adapter(tmp_path / "adapter", base.config, base.params)
    assert np.max(np.abs(our_logits(base.config, back.params, TOKENS) - expected)) < 1e-5
    with pytest.raises(CheckpointError, match="initial A and B are missing"):
        write_adapter(tmp_path / "other", base.config, params, options)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_unconverted_residual_adapter_of_peft_computes_what_peft_computes(
    init: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tiny_checkpoint("llama")
    model = peft_model(folder, target_modules="all-linear", init_lora_weights=init)
    save(model, tmp_path / "theirs")
    base = import_checkpoint(folder)
    loaded = read_adapter(tmp_path / "theirs", base.config, base.params)
    expected = logits_of(model)
    # Two libraries' decompositions: what they leave of the base differs by rounding times the
    # condition of the singular vectors.
    assert np.max(np.abs(our_logits(base.config, loaded.params, TOKENS) - expected)) < 1e-3
    # The trap: the same tensors on the whole base are another model.
    plain = combine(split_adapters(loaded.params)[0], base.params)
    assert np.max(np.abs(our_logits(base.config, plain, TOKENS) - expected)) > 1e-2


def edit(folder: Path, tensors: dict[str, np.ndarray] | None = None, **config: Any) -> None:
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**values, **config}))
    if tensors is not None:
        save_file(tensors, folder / "adapter_model.safetensors")


@pytest.fixture
def adapter(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> tuple[Imported, Path]:
    base = import_checkpoint(tiny_checkpoint("llama"))
    options = AdapterOptions(rank=2, targets=QV)
    params, _ = our_adapters(base, options)
    return base, write_adapter(tmp_path / "adapter", base.config, params, options)


def test_a_wrong_prefix_is_an_error_where_peft_computes_the_base(
    adapter: tuple[Imported, Path], tiny_checkpoint: Callable[[str], Path]
) -> None:
    base, folder = adapter
    tensors = load_file(folder / "adapter_model.safetensors")
    stripped = {name.removeprefix("base_model.model."): one for name, one in tensors.items()}
    edit(folder, stripped)
    with pytest.raises(CheckpointError, match=r"no tensor starts with 'base_model\.model\.'"):
        read_adapter(folder, base.config, base.params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        silent = peft.PeftModel.from_pretrained(torch_base(tiny_checkpoint("llama")), str(folder))
    theirs = logits_of(silent.eval())
    np.testing.assert_array_equal(theirs, logits_of(torch_base(tiny_checkpoint("llama"))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"lacks 1 tensors .*layers\.1\.self_attn\.q_proj\.lora_B\.weight"),
        ("spare", r"does not ask for: base_model\.model\.model\.layers\.9"),
        ("shape", r"layers\.1\.self_attn\.q_proj\.lora_B\.weight has shape \[3, 2\]"),
    ],
)
def test_every_tensor_is_asked_for_and_there(
    change: str, message: str, adapter: tuple[Imported, Path]
) -> None:
    base, folder = adapter
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    if change == "missing":
        del tensors[name]
    elif change == "spare":
        tensors[name.replace("layers.1", "layers.9")] = tensors[name]
    else:
        tensors[name] = np.zeros((3, 2), np.float32)
    edit(folder, tensors)
    with pytest.raises(CheckpointError, match=message):
        read_adapter(folder, base.config, base.params)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "'peft_type' is 'IA3'"),
        ({"bias": "all"}, "'bias' is 'all'"),
        ({"lora_bias": True}, "'lora_bias' is True; it may change"),
        ({"a_new_switch": 1}, "'a_new_switch' is 1; it may change"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "'layer_replication'"),
        ({"init_lora_weights": "pissa_niter_4"}, "'init_lora_weights' is 'pissa_niter_4'"),
        ({"target_modules": None}, "'target_modules' is None"),
        ({"target_modules": ["nothing"]}, "targets nothing match no module"),
        ({"r": "four"}, "'r' is 'four'"),
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"target_modules": ["q_proj", "v_proj", "lm_head"]}, "output head lm_head"),
        ({"modules_to_save": ["lm_head"]}, "tied to the input embedding"),
        ({"modules_to_save": ["embed_tokens"]}, "'ensure_weight_tying' is false"),
    ],
)
def test_what_would_compute_something_else_is_refused_by_its_key(
    values: dict[str, Any], message: str, adapter: tuple[Imported, Path]
) -> None:
    base, folder = adapter
    edit(folder, **values)
    with pytest.raises(CheckpointError, match=message):
        read_adapter(folder, base.config, base.params)


def test_keys_without_effect_are_read(adapter: tuple[Imported, Path]) -> None:
    base, folder = adapter
    edit(folder, lora_dropout=0.3, task_type=None, eva_config={"rho": 2.0}, a_new_switch=None)
    before = read_adapter(folder, base.config, base.params).options
    assert before == AdapterOptions(rank=2, targets=QV)


def test_a_minimal_config_has_pefts_defaults(
    adapter: tuple[Imported, Path], tmp_path: Path
) -> None:
    base, folder = adapter
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "target_modules": list(QV)})
    )
    with pytest.raises(CheckpointError, match=r"ask for \[8, 32\]"):
        read_adapter(folder, base.config, base.params)
    default = peft.LoraConfig()
    params, _ = our_adapters(base, AdapterOptions(rank=8, alpha=8, targets=QV))
    tensors = load_file(
        write_adapter(
            tmp_path / "eight", base.config, params, AdapterOptions(rank=8, alpha=8, targets=QV)
        )
        / "adapter_model.safetensors"
    )
    save_file(tensors, folder / "adapter_model.safetensors")
    options = read_adapter(folder, base.config, base.params).options
    assert (options.rank, options.alpha) == (default.r, default.lora_alpha)


def test_another_base_is_noticed_where_the_file_repeats_it(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    base = import_checkpoint(tiny_checkpoint("llama"))
    options = options_of("embeddings")
    params, _ = our_adapters(base, options)
    folder = write_adapter(tmp_path / "adapter", base.config, params, options)
    leaves = flatten(base.params)
    leaves["embedding/table"] = leaves["embedding/table"] + 1
    with pytest.raises(CheckpointError, match="not the base's embedding"):
        read_adapter(folder, base.config, unflatten(leaves))


def test_a_tree_that_is_not_what_the_options_say_is_not_written(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    base = import_checkpoint(tiny_checkpoint("llama"))
    params, _ = our_adapters(base, AdapterOptions(rank=2, targets=QV))
    for options, message in [
        (AdapterOptions(rank=2, targets=("q_proj",)), "does not name|do not name"),
        (AdapterOptions(rank=2, targets=(*QV, "k_proj")), "lacks layers/0/attention/key/lora_a"),
        (AdapterOptions(rank=4, targets=QV), "has shape"),
        (AdapterOptions(rank=2, alpha=1, targets=QV), "lora_scale"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            write_adapter(tmp_path / "adapter", base.config, params, options)
        assert not (tmp_path / "adapter").exists()
    with pytest.raises(ConfigError, match="output head"):
        select_modules(AdapterOptions(targets=("lm_head",)), decoder_modules(base.config))
