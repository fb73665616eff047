"""Writing text against `transformers.generate`: SmolLM2-135M, float32, mixed lengths.

    python benchmarks/generate.py [--batch 1 16 64] [--rounds 2]
    python benchmarks/generate.py --device gpu --batch 256     (bfloat16, its static cache, too)

Prompts are random tokens of 16 to 256 (log-uniform), answers end after a number of tokens that is
drawn beforehand: geometric, 32 on average, at most 128. Both sides write the same number of tokens
for the same prompts, greedily. `transformers` sorts the prompts by length, takes as many as the
batch has rows, pads them on the left, and goes on until the last of them has ended; ours has as
many slots. Tokens of answers are counted, not what is computed beyond them.

Each side is a process of its own that first warms up: ours does the whole work once, to compile,
theirs a part. Then they take turns, one of them waiting; the table has medians of the rounds, by
the clock and by the CPU seconds of all cores. `--quiet-file` exists while this runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 49_152
AVERAGE, LONGEST = 32, 128  # tokens of an answer
# Requests for each batch size: several batches where that is affordable.
REQUESTS = {1: 4, 16: 64, 64: 128, 256: 1024}


def work(batch: int) -> tuple[list[list[int]], list[int]]:
    """Draws prompts and the lengths of their answers."""
    generator = np.random.default_rng(batch)
    requests = REQUESTS.get(batch, 2 * batch)
    lengths = np.exp(generator.uniform(np.log(16), np.log(256), requests)).astype(int)
    answers = np.minimum(generator.geometric(1 / AVERAGE, requests), LONGEST)
    prompts = [generator.integers(0, VOCABULARY, length).tolist() for length in lengths]
    return prompts, answers.tolist()


def settings() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }


def torch_side(batch: int, device: str, static: bool) -> Callable[..., None]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteria, StoppingCriteriaList

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**settings())).eval()
    if device == "gpu":
        model = model.to("cuda", torch.bfloat16)
    model.generation_config.eos_token_id = None
    prompts, answers = work(batch)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))

    class Ends(StoppingCriteria):
        """Ends each row after as many tokens as its answer has."""

        def __init__(self, start: int, ends: list[int]) -> None:
            self.ends = start + torch.tensor(ends, device=model.device)

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return input_ids.shape[1] >= self.ends

    def run(most: int = LONGEST) -> None:
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            length = max(len(prompts[index]) for index in chosen)
            token_ids = torch.zeros((len(chosen), length), dtype=torch.long)
            mask = torch.zeros_like(token_ids)
            for row, index in enumerate(chosen):
                token_ids[row, length - len(prompts[index]) :] = torch.tensor(prompts[index])
                mask[row, length - len(prompts[index]) :] = 1
            ends = [min(answers[index], most) for index in chosen]
            with torch.inference_mode():
                model.generate(
                    token_ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    max_new_tokens=max(ends),
                    do_sample=False,
                    pad_token_id=0,
                    stopping_criteria=StoppingCriteriaList([Ends(length, ends)]),
                    **({"cache_implementation": "static"} if static else {}),
                )

    return run


def our_side(batch: int, device: str) -> Callable[..., None]:
    import jax
    import jax.numpy as jnp

    from jaxrecipes.checkpoint.model_config import parse_model_config
    from jaxrecipes.generate.engine import Engine
    from jaxrecipes.generate.tokens import TokenPrompt
    from jaxrecipes.models.decoder import init_params

    config = parse_model_config({"model_type": "llama", **settings()}, where="benchmark")
    dtype = jnp.float32 if device == "cpu" else jnp.bfloat16
    params = jax.jit(lambda: init_params(config, jax.random.key(0), dtype))()
    prompts, answers = work(batch)
    asked = [
        TokenPrompt(tuple(prompt), length) for prompt, length in zip(prompts, answers, strict=True)
    ]
    engine = Engine(config, params, slots=batch, compute_dtype=dtype)

    def run() -> None:
        written: dict[int, int] = {}
        engine.write(asked, lambda index, one: written.update({index: len(one.token_ids)}))
        assert [written[index] for index in range(len(asked))] == answers

    return run


def serve(side: str, batch: int, device: str) -> None:
    """Warms up, says so, and then does the work once for each line of the input."""
    run = our_side(batch, device) if side == "ours" else torch_side(batch, device, side == "static")
    if side == "theirs":
        run(3)
    else:
        run()  # both compile
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter(), time.process_time()
        run()
        print(json.dumps([time.perf_counter() - began[0], time.process_time() - began[1]]))
        sys.stdout.flush()


@contextmanager
def quiet(path: Path | None) -> Iterator[None]:
    if path is not None:
        path.touch()
    try:
        yield
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def measure(sides: list[str], batch: int, device: str, rounds: int) -> dict[str, Any]:
    """Returns for each side (seconds, CPU seconds) of each round."""
    processes: dict[str, Any] = {}
    for side in sides:
        command = [sys.executable, __file__, "--side", side, "--device", device]
        processes[side] = subprocess.Popen(
            [*command, "--batch", str(batch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # One after the other: they would disturb each other's compilation and memory.
        assert processes[side].stdout.readline().strip() == "ready"
    found: dict[str, Any] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, process in processes.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            found[side].append(json.loads(process.stdout.readline()))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--quiet-file", type=Path, help="exists while the rounds are timed")
    parser.add_argument("--side", choices=["ours", "theirs", "static"], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        serve(chosen.side, chosen.batch[0], chosen.device)
        return
    if importlib.util.find_spec("torch") is None:
        sys.exit("PyTorch is not installed, which is what this compares with")
    sides = ["ours", "theirs"] + (["static"] if chosen.device == "gpu" else [])
    titles = ("batch", "requests", "tokens", "ours tokens/s", "transformers tokens/s", "ratio")
    print("|", " | ".join((*titles, "ratio by CPU seconds")), "|")
    print("|" + "---|" * (len(titles) + 1), flush=True)
    with quiet(chosen.quiet_file):
        for batch in chosen.batch:
            found = measure(sides, batch, chosen.device, chosen.rounds)
            _, answers = work(batch)
            clock, cpu = (
                {side: statistics.median(one[kind] for one in found[side]) for side in sides}
                for kind in (0, 1)
            )
            for side in sides[1:]:
                label = "" if side == "theirs" else " (static cache)"
                print(
                    f"| {batch} | {len(answers)} | {sum(answers):,} "
                    f"| {sum(answers) / clock['ours']:.1f} "
                    f"| {sum(answers) / clock[side]:.1f}{label} "
                    f"| {clock[side] / clock['ours']:.2f} | {cpu[side] / cpu['ours']:.2f} |",
                    flush=True,
                )
            print(json.dumps({"batch": batch, "seconds": found}), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
