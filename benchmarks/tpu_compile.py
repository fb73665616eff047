"""What training takes on TPU slices, according to the TPU compiler. No TPU is needed, nothing runs.

    python benchmarks/tpu_compile.py                       every row: hours on two cores
    python benchmarks/tpu_compile.py --only Llama-3.1-8B/full
    python benchmarks/tpu_compile.py --cached              compile nothing: rows that are known

The real step of each recipe is compiled for each slice: float32 AdamW, clipping on, bfloat16
products, FSDP over all chips, rows of 4096 tokens. Measurements are kept in the cache of
`jaxrecipes plan`, so that a run that was stopped goes on. Models are shapes: no weights are read.
Each row has a process of its own, because libtpu aborts its process where a check of it fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxrecipes.checkpoint.model_config import parse_model_config
from jaxrecipes.config import Config
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.plan.cache import cache_folder, is_cached
from jaxrecipes.plan.step import PlannedStep, lower_planned, plan_step
from jaxrecipes.plan.target import find_target
from jaxrecipes.plan.topology import parse_topology

LENGTH = 4096
_LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 500000.0}
_LLAMA |= {"vocab_size": 128256, "max_position_embeddings": 131072}
# The `config.json` of each model, as far as a forward pass reads it.
MODELS: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        **{"model_type": "llama", "vocab_size": 49152, "hidden_size": 576},
        **{"intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
        **{"num_key_value_heads": 3, "rope_theta": 100000.0, "max_position_embeddings": 8192},
        **{"tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    },
    "Llama-3.2-1B": {
        **_LLAMA,
        **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64},
        **{"tie_word_embeddings": True},
    },
    "Qwen3-4B": {
        **{"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 2560},
        **{"intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "head_dim": 128, "rope_theta": 1000000.0},
        **{"max_position_embeddings": 40960, "tie_word_embeddings": True, "rms_norm_eps": 1e-6},
    },
    "Llama-3.1-8B": {
        **_LLAMA,
        **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
        **{"tie_word_embeddings": False},
    },
    "Gemma-3-12B": {
        **{"model_type": "gemma3_text", "vocab_size": 262208, "hidden_size": 3840},
        **{"intermediate_size": 15360, "num_hidden_layers": 48, "num_attention_heads": 16},
        **{"num_key_value_heads": 8, "head_dim": 256, "sliding_window": 1024},
        **{"query_pre_attn_scalar": 256, "max_position_embeddings": 131072},
        **{"rms_norm_eps": 1e-6},
    },
    "Llama-3.1-70B": {
        **_LLAMA,
        **{"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80},
        **{"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128},
        **{"tie_word_embeddings": False},
    },
}
# One new block above every fourth or fifth; with Gemma's period of six layers, every sixth.
NEW_BLOCKS = {
    "SmolLM2-135M": 6,
    "Llama-3.2-1B": 4,
    "Qwen3-4B": 9,
    "Llama-3.1-8B": 8,
    "Gemma-3-12B": 8,
    "Llama-3.1-70B": 20,
}
RECIPES = ("full", "block_expansion", "freeze-top")


@dataclass(frozen=True)
class Case:
    """One row: a model, a recipe, a slice, rows a chip and `train.remat`."""

    model: str
    recipe: str
    topology: str
    rows: int = 1
    remat: str = "full"


# Most important first.
CASES = (
    Case("Llama-3.1-8B", "full", "v5e:4x4"),
    Case("Llama-3.1-8B", "block_expansion", "v5e:4x4"),
    Case("Llama-3.1-8B", "full", "v5e:4x4", remat="offload"),
    Case("Llama-3.1-8B", "full", "v5e:4x4", rows=4),
    Case("Llama-3.1-8B", "block_expansion", "v5e:4x4", rows=8),
    Case("Llama-3.1-8B", "block_expansion", "v5e:4x4", rows=8, remat="offload"),
    Case("Llama-3.1-8B", "block_expansion", "v5e:4x4", rows=8, remat="groups"),
    Case("Llama-3.1-70B", "block_expansion", "v5p:4x4x8"),
    Case("Llama-3.1-70B", "block_expansion", "v6e:16x16"),
    Case("Llama-3.1-8B", "freeze-top", "v5e:4x4"),
    *(Case("SmolLM2-135M", recipe, "v5e:2x2") for recipe in RECIPES),
    *(Case("Llama-3.2-1B", recipe, "v5e:2x2") for recipe in RECIPES),
    *(Case("Qwen3-4B", recipe, "v6e:2x2") for recipe in RECIPES),
    *(Case("Gemma-3-12B", recipe, "v5e:4x8") for recipe in RECIPES),
    *(Case("Llama-3.1-8B", recipe, "v6e:2x4") for recipe in RECIPES),
    *(Case("Llama-3.1-8B", recipe, "v4:2x2x4") for recipe in RECIPES),
    *(Case("Llama-3.1-8B", recipe, "tpu7x:2x2x1") for recipe in RECIPES),
    *(Case("Llama-3.1-70B", recipe, "v5p:4x4x8") for recipe in ("full", "freeze-top")),
)


def experiment(case: Case, model: ModelConfig) -> Config:
    """Returns the config of a row."""
    recipe = "freeze" if case.recipe == "freeze-top" else case.recipe
    rows = case.rows * parse_topology(case.topology).devices
    data: dict[str, Any] = {
        **{"version": 1, "recipe": recipe, "output": "nowhere"},
        "model": {"checkpoint": case.model},
        "data": {
            "length": LENGTH,
            "held_out": 0.1,
            "learn": [{"source": "topics"}],
            "keep": {"limit_prompts": 2, "max_new_tokens": 4},
        },
        "train": {
            **{"steps": 100, "batch_size": rows, "remat": case.remat, "loss_chunk": 256},
            "optimizer": {"learning_rate": 1e-4},
        },
    }
    if recipe == "block_expansion":
        data["block_expansion"] = {"new_blocks": NEW_BLOCKS[case.model]}
    if recipe == "freeze":
        top = "|".join(str(at) for at in range(3 * model.num_layers // 4, model.num_layers))
        rules = [{"pattern": rf"layers/({top})/.*", "train": True}]
        data["freeze"] = {"rules": [*rules, {"pattern": ".*", "train": False}]}
    return Config.model_validate(data)


def compile_case(case: Case, *, cached_only: bool, cache: Path) -> PlannedStep | None:
    """Compiles a row, or returns None where it is not in the cache and only that is asked for."""
    model = parse_model_config(MODELS[case.model], where=case.model)
    config = experiment(case, model)
    target = find_target(case.topology)
    lowered = lower_planned(config, model, 100, target)
    if cached_only and not is_cached(cache, lowered.key):
        return None
    return plan_step(f"{case.model}/{case.recipe}", config, model, target, lowered, cache)


TITLES = (
    *("model", "recipe", "slice", "rows a chip", "`remat`", "peak GiB", "host GiB", "fits"),
    *("products TFLOP", "sent GiB", "bound s (sequential)", "tokens/s a chip", "MFU", "compile s"),
)


def compile_apart(case: Case) -> bool:
    """Compiles a row in another process, into the cache; returns whether that ended well."""
    command = [sys.executable, __file__, "--here", "--only", f"{case.model}/{case.recipe}"]
    command += ["--topology", case.topology, "--rows", str(case.rows), "--remat", case.remat]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0


def cells(case: Case, step: PlannedStep | None, missing: str) -> list[str]:
    """Formats a row of the table; a row that was not compiled says so."""
    start = [case.model, case.recipe, case.topology, str(case.rows), case.remat]
    if step is None:
        return [*start, missing, *[""] * (len(TITLES) - len(start) - 1)]
    found, bound = step.measurement, step.bound
    assert bound is not None and step.limit_bytes is not None
    gib = 2**30
    sent = sum(one.sent_bytes for one in found.account.collectives)
    return [
        *start,
        f"{found.peak_bytes / gib:.2f}",
        f"{found.host_bytes / gib:.2f}",
        f"{'yes' if step.fits else 'no'}, of {step.limit_bytes / gib:.2f}",
        f"{found.account.matmul_flops / 1e12:.1f}",
        f"{sent / gib:.1f}",
        f"{bound.overlapped:.2f} {bound.limit} ({bound.sequential:.2f})",
        f"{bound.tokens_per_second / parse_topology(case.topology).chips:,.0f}",
        f"{bound.model_flops_utilisation:.0%}",
        f"{found.compile_seconds:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="model/recipe, or the start of it")
    parser.add_argument("--topology", help="only rows of this slice")
    parser.add_argument("--rows", type=int, help="only rows with so many sequences a chip")
    parser.add_argument("--remat", help="only rows with this train.remat")
    parser.add_argument("--cached", action="store_true", help="compile nothing")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    progress = Console(stderr=True, soft_wrap=True)
    lines = []
    for case in CASES:
        wanted = (
            f"{case.model}/{case.recipe}".startswith(chosen.only)
            and chosen.topology in (None, case.topology)
            and chosen.rows in (None, case.rows)
            and chosen.remat in (None, case.remat)
        )
        if not wanted:
            continue
        began = time.monotonic()
        step = compile_case(case, cached_only=not chosen.here, cache=cache_folder())
        missing = "not run"
        if step is None and not chosen.cached:
            if compile_apart(case):
                step = compile_case(case, cached_only=True, cache=cache_folder())
            missing = "the compiler failed"
        lines.append(cells(case, step, missing))
        progress.print(f"{' | '.join(lines[-1])}   ({time.monotonic() - began:.0f} s)")
    if not lines:
        sys.exit("no row matches")
    print("|", " | ".join(TITLES), "|")
    print("|" + "---|" * len(TITLES))
    for line in lines:
        print("|", " | ".join(line), "|")


if __name__ == "__main__":
    main()
