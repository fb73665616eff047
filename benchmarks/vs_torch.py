"""Training speed and memory against PyTorch: SmolLM2-135M's shape, float32, 4 x 256 tokens, CPU.

    python benchmarks/vs_torch.py [--steps 6] [--rounds 3] [--remat dots]
    python benchmarks/vs_torch.py --device gpu        larger models on a GPU: see vs_torch_gpu.py

Both sides run interleaved, each round in processes of their own on all cores; the ratio of the
median step times and of the peak resident memory is printed. PyTorch: `transformers`' model, SDPA
attention, AdamW, clipping at 1. Weights are random on both sides: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

ROWS, LENGTH, VOCABULARY = 4, 256, 49_152
NEW_BLOCKS = (6, 13, 20, 27, 34)


def torch_side(arm: str, steps: int) -> dict[str, Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=35 if arm == "expansion" else 30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).float()
    if arm == "expansion":
        model.requires_grad_(False)
        for index in NEW_BLOCKS:
            model.model.layers[index].requires_grad_(True)
    trained = [leaf for leaf in model.parameters() if leaf.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.1)
    tokens = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds[1:]}


def our_side(arm: str, steps: int, remat: str) -> dict[str, Any]:
    import jax
    import numpy as np
    from freezing import shape

    from jaxrecipes.models.decoder import abstract_params
    from jaxrecipes.params.layout import plan_layout, to_runtime
    from jaxrecipes.params.partition import partition
    from jaxrecipes.params.rules import label
    from jaxrecipes.params.surgery import layers_pattern
    from jaxrecipes.train.optimizer import (
        OptimizerSettings,
        learning_rate_schedule,
        make_optimizer,
    )
    from jaxrecipes.train.state import create_state
    from jaxrecipes.train.step import make_train_step

    generator = np.random.default_rng(0)
    config = shape(35 if arm == "expansion" else 30)
    rules = [(".*", True)]
    if arm == "expansion":
        rules = [(layers_pattern(NEW_BLOCKS), True), (".*", False)]
    params = jax.tree.map(
        lambda leaf: 0.02 * generator.standard_normal(leaf.shape, np.float32),
        abstract_params(config),
    )
    trains = label(params, rules)
    layout = plan_layout(config, trains)
    trainable, frozen = partition(params, lambda path: trains[path])
    del params
    trainable = jax.device_put(to_runtime(layout, trainable))
    frozen = jax.device_put(to_runtime(layout, frozen))
    settings = OptimizerSettings(total_steps=100)
    decays = {path: path.endswith("kernel") for path, wanted in trains.items() if wanted}
    optimizer = make_optimizer(settings, layout=layout, decays=decays)
    state = create_state(trainable, optimizer, spike_window=128)
    del trainable
    step = make_train_step(
        config, optimizer, learning_rate_schedule(settings), layout=layout, remat=remat
    )
    tokens = generator.integers(0, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    ones = np.ones_like(tokens)
    batch = {
        "token_ids": tokens,
        "segment_ids": ones,
        "positions": positions,
        "loss_mask": ones.astype(bool),
    }
    began = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, frozen, batch).compile()
    compile_seconds = time.perf_counter() - began
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        state, _ = compiled(state, frozen, batch)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds[1:], "compile": compile_seconds}


def main() -> None:
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--device", choices=("cpu", "gpu"))
    chosen, rest = chooser.parse_known_args()
    if chosen.device == "gpu":
        import vs_torch_gpu

        sys.exit(vs_torch_gpu.main(rest))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--remat", default="dots")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        if options.side == "torch":
            found = torch_side(options.arm, options.steps)
        else:
            found = our_side(options.arm, options.steps, options.remat)
        found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(found))
        return
    for arm in ("full", "expansion"):
        results: dict[str, list[dict[str, Any]]] = {"ours": [], "torch": []}
        for _ in range(options.rounds):
            for side, found in results.items():
                command = [sys.executable, __file__, "--side", side, "--arm", arm]
                command += ["--steps", str(options.steps), "--remat", options.remat]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found.append(json.loads(output.splitlines()[-1]))
        speed = {
            side: ROWS * LENGTH / statistics.median(s for one in found for s in one["seconds"])
            for side, found in results.items()
        }
        peak = {side: max(one["peak"] for one in found) for side, found in results.items()}
        print(
            f"{arm:9}  tokens/s ours {speed['ours']:.0f}, PyTorch {speed['torch']:.0f}: ratio "
            f"{speed['ours'] / speed['torch']:.2f}   peak GiB {peak['ours'] / 2**30:.2f}, "
            f"{peak['torch'] / 2**30:.2f}: ratio {peak['ours'] / peak['torch']:.2f}   compile "
            f"{results['ours'][0]['compile']:.1f} s"
        )


if __name__ == "__main__":
    main()
