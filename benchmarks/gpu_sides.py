"""One measurement of `vs_torch_gpu.py`: a training step of one side, in a process of its own.

    python benchmarks/gpu_sides.py '<case as JSON>'

prints one line of JSON. Both sides get the same model shape, the same packed rows, the same
supervised tokens, AdamW and clipping at 1. Weights are random and no array is all zero: a GPU
multiplies zeros faster than what training meets.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

WARMUP_STEPS, WINDOWS = 3, 3
IGNORED = -100  # the label that `transformers` does not count


@dataclass(frozen=True)
class Case:
    """What one process measures.

    Attributes:
        shape: `config.json` of the base model, as far as a forward pass reads it.
        new_at: Indices of the new blocks in the deepened model; () leaves the depth alone.
        only_new: Train the new blocks alone; False trains everything.
        side: "ours" or "torch".
        attention: Ours: `model.attention`.
        weights: PyTorch: "mixed" (float32 weights and optimizer, bfloat16 products, frozen weights
            bfloat16: as ours) or "bfloat16" (everything).
        compiled: PyTorch: mode of `torch.compile`; None runs eagerly.
        device: "gpu" or "cpu".
        rows: Rows a step.
        length: Tokens a row.
        documents: Documents packed into a row. 1 lets PyTorch do without a mask.
        steps: Steps of one timed window.
        remat: Ours: `train.remat`. PyTorch recomputes nothing.
        loss_chunk: Ours: `train.loss_chunk`.
    """

    shape: dict[str, Any]
    new_at: tuple[int, ...]
    only_new: bool
    side: str
    attention: str
    weights: str
    compiled: str | None
    device: str
    rows: int
    length: int
    documents: int
    steps: int
    remat: str
    loss_chunk: int

    @property
    def layers(self) -> int:
        """Depth of the model that trains."""
        return self.shape["num_hidden_layers"] + len(self.new_at)


def packed_rows(case: Case) -> dict[str, np.ndarray]:
    """Draws the rows of a case."""
    return draw_rows(case.rows, case.length, case.documents, case.shape["vocab_size"])


def draw_rows(rows: int, length: int, documents: int, vocab_size: int) -> dict[str, np.ndarray]:
    """Draws rows of random tokens, cut into documents of random lengths.

    Returns:
        `token_ids`, `segment_ids`, `positions` (int32) and `loss_mask` (bool), [rows, length].
    """
    generator = np.random.default_rng(0)
    size = (rows, length)
    starts = np.zeros(size, bool)
    starts[:, 0] = True
    for row in starts:
        cuts = generator.choice(np.arange(1, length), documents - 1, replace=False)
        row[cuts] = True
    columns = np.broadcast_to(np.arange(length), size)
    first = np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
    return {
        "token_ids": generator.integers(0, vocab_size, size, dtype=np.int32),
        "segment_ids": np.cumsum(starts, axis=1, dtype=np.int32),
        "positions": (columns - first).astype(np.int32),
        "loss_mask": ~starts,
    }


def timed(
    run: Callable[[], None], wait: Callable[[], None], steps: int
) -> tuple[list[float], float]:
    """Times windows of steps that follow each other without a pause, as in a training loop.

    Args:
        run: Starts one step.
        wait: Returns when all steps are done.
        steps: Steps of a window.

    Returns:
        Seconds a step, one number a window, and the seconds of the first step.
    """
    began = time.perf_counter()
    run()
    wait()
    first = time.perf_counter() - began
    for _ in range(WARMUP_STEPS - 1):
        run()
    wait()
    seconds = []
    for _ in range(WINDOWS):
        began = time.perf_counter()
        for _ in range(steps):
            run()
        wait()
        seconds.append((time.perf_counter() - began) / steps)
    return seconds, first


def torch_model(case: Case) -> Any:
    """Builds the model of `transformers` with its dtypes and with what trains."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    given = {key: value for key, value in case.shape.items() if key != "model_type"}
    config = LlamaConfig(**given | {"num_hidden_layers": case.layers, "use_cache": False})
    config._attn_implementation = "sdpa"
    with torch.device("cuda" if case.device == "gpu" else "cpu"):
        model = LlamaForCausalLM(config)
    for path, leaf in model.named_parameters():
        parts = path.split(".")
        new = parts[1] == "layers" and int(parts[2]) in case.new_at
        leaf.requires_grad_(new or not case.only_new)
        if case.weights == "bfloat16" or not leaf.requires_grad:
            leaf.data = leaf.data.to(torch.bfloat16)
    return model.train()


def torch_batch(case: Case) -> dict[str, Any]:
    """Returns the rows as arguments of the model.

    The mask that keeps documents apart is computed once, outside the timed steps. Rows of one
    document need none: then SDPA may take its causal flash kernel.
    """
    import torch

    device = "cuda" if case.device == "gpu" else "cpu"
    rows = {key: torch.from_numpy(value).to(device) for key, value in packed_rows(case).items()}
    tokens, segments = rows["token_ids"].long(), rows["segment_ids"]
    batch = {"input_ids": tokens, "labels": tokens.masked_fill(~rows["loss_mask"], IGNORED)}
    if case.documents > 1:
        mask = segments[:, None, :, None] == segments[:, None, None, :]
        batch["attention_mask"] = mask.tril()
        batch["position_ids"] = rows["positions"].long()
    return batch


def torch_side(case: Case) -> dict[str, Any]:
    """Measures `transformers` with SDPA attention and the fused AdamW."""
    import torch
    import transformers

    on_gpu = case.device == "gpu"
    if on_gpu and not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU")
    torch.manual_seed(0)
    model, batch = torch_model(case), torch_batch(case)
    trained = [leaf for leaf in model.parameters() if leaf.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    called = model if case.compiled is None else torch.compile(model, mode=case.compiled)
    kind = "cuda" if on_gpu else "cpu"

    def run() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(kind, torch.bfloat16, enabled=case.weights == "mixed"):
            loss = called(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    seconds, first = timed(run, torch.cuda.synchronize if on_gpu else lambda: None, case.steps)
    return {
        "seconds": seconds,
        "compile": first if case.compiled is not None else 0.0,
        "peak": torch.cuda.max_memory_allocated() if on_gpu else resident_bytes(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def experiment(case: Case) -> Any:
    """Returns the config of our side."""
    from jaxrecipes.config import Config

    data: dict[str, Any] = {
        "version": 1,
        "recipe": "block_expansion" if case.only_new else "full",
        "output": "nowhere",
        "model": {"checkpoint": "shape", "attention": case.attention},
        "data": {
            "length": case.length,
            "held_out": 0.1,
            "learn": [{"source": "topics"}],
            "keep": {"limit_prompts": 2, "max_new_tokens": 4},
        },
        "train": {
            "steps": 1000,
            "batch_size": case.rows,
            "remat": case.remat,
            "loss_chunk": case.loss_chunk,
            "optimizer": {"learning_rate": 1e-4, "weight_decay": 0.1},
        },
    }
    if case.only_new:
        data["block_expansion"] = {"new_blocks": len(case.new_at)}
    return Config.model_validate(data)


def our_program(case: Case) -> tuple[Any, Any, Any]:
    """Builds our step from shapes, as `jaxrecipes run` does.

    Returns:
        The config, the program and its devices.
    """
    from jaxrecipes.checkpoint.model_config import parse_model_config
    from jaxrecipes.experiment.devices import choose_devices
    from jaxrecipes.experiment.program import build_program
    from jaxrecipes.plan.step import shape_base

    # Block expansion inserts its blocks itself; everything else trains a model of that depth.
    depth = case.shape["num_hidden_layers"] if case.only_new else case.layers
    model = parse_model_config(case.shape | {"num_hidden_layers": depth}, where="shape")
    config = experiment(case)
    devices = choose_devices(config, model)
    program = build_program(config, shape_base(model), 1000, devices.execution)
    if case.only_new and program.config.new_blocks != case.new_at:
        raise ValueError(f"the new blocks are {program.config.new_blocks}, not {case.new_at}")
    return config, program, devices


def random_leaves(shapes: Any, seed: int) -> Any:
    """Fills a tree of shapes: norm scales near 1, everything else near 0, nothing at it."""
    import jax

    def fill() -> Any:
        leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
        filled = []
        for index, (path, leaf) in enumerate(leaves):
            key = jax.random.fold_in(jax.random.key(seed), index)
            centre = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
            noise = 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype)
            filled.append((centre + noise).astype(leaf.dtype))
        return jax.tree_util.tree_unflatten(structure, filled)

    return jax.jit(fill)()


def our_side(case: Case) -> dict[str, Any]:
    """Measures the step that `jaxrecipes run` executes."""
    import jax

    from jaxrecipes.experiment.program import compile_step, first_state

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # by whether JAX's GPU plugin is installed
        sys.exit(f"JAX sees no {case.device.upper()} {error}".strip())
    config, program, devices = our_program(case)
    compiled = compile_step(config, program)
    state = first_state(config, program, random_leaves(program.trainable, 0))
    frozen = random_leaves(program.frozen, 1)
    batch = jax.device_put(packed_rows(case))
    metrics: dict[str, jax.Array] = {}

    def run() -> None:
        nonlocal state, metrics
        state, metrics = compiled.step(state, frozen, batch)

    seconds, _ = timed(run, lambda: jax.block_until_ready(state) and None, case.steps)
    if not np.isfinite(float(metrics["loss"])):
        sys.exit(f"the loss is {float(metrics['loss'])}: this speed means nothing")
    statistics = jax.devices()[0].memory_stats() or {}
    return {
        "seconds": seconds,
        "compile": compiled.seconds,
        "peak": statistics.get("peak_bytes_in_use", resident_bytes()),
        "compiler_peak": compiled.peak_bytes,
        "device": devices.kind,
        "attention": devices.execution.attention,
        "versions": {"jax": jax.__version__},
    }


def resident_bytes() -> int:
    """Returns the most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    given = json.loads(sys.argv[1])
    case = Case(**given | {"new_at": tuple(given["new_at"])})
    print(json.dumps(torch_side(case) if case.side == "torch" else our_side(case)))


if __name__ == "__main__":
    main()
