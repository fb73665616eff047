r"""Training speed and memory on a GPU against PyTorch, and what XLA's flags change.

    python benchmarks/vs_torch.py --device gpu [--model SmolLM2-135M] [--arms full,expansion]
        [--sides ours,torch] [--presets all] [--rounds 3] [--steps 10] [--limit-s 560]
    python benchmarks/vs_torch.py --device gpu --dry      the whole path with a tiny model on a CPU

bfloat16 products, rows of 2048 tokens, several documents packed into a row and kept apart on both
sides. Each measurement is a process of its own; a round runs all of them in turn, so that a slow
minute of the machine meets every side. Warm-up and compilation are left out. The median over
rounds and windows is shown, with the slowest and the fastest window. A process that fails (a flag
that XLA does not know, a side that runs out of memory) is one row, "refused: <reason>".

MFU is the model's operations (`jaxrecipes.plan.flops`: two a multiply-add, products with weights
and causal attention as if a row were one document, no recomputation, no gradient of what is
frozen) over the time and the chip's dense bfloat16 peak (`jaxrecipes.plan.chips`). Both sides have
the same numerator. Peak memory: XLA's and PyTorch's own allocator statistics; on a CPU the
process's resident memory.

On a machine that reaches no package registry and has JAX, PyTorch and `transformers`, but not all
that jaxrecipes imports: fetch the wheels where a registry is (about 3 MiB; for Python 3.12),

    echo /.whl/ >> .git/info/exclude
    python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 \
        --implementation cp --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
        -c constraints.txt -d .whl pydantic pydantic-core annotated-types typing-inspection gguf

bring `.whl` along with the checkout, and run there, for one model at a time (below 10 minutes):

    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target /tmp/site \
        .whl/*.whl && export PYTHONPATH=/tmp/site:$PWD PYTHONUNBUFFERED=1 && python3 \
        benchmarks/vs_torch.py --device gpu --model SmolLM2-135M --rounds 2 --limit-s 560 \
        --output $OUT/smollm2.json
    ... --model Llama-3.2-1B --rounds 2 --limit-s 560 --output $OUT/llama.json
    ... --model SmolLM2-135M --sides ours --arms full --presets all --limit-s 560 --output ...
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu_sides import Case
from tpu_compile import MODELS, NEW_BLOCKS

TINY = {
    **{"model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"rope_theta": 10000.0, "max_position_embeddings": 2048, "tie_word_embeddings": True},
    **{"rms_norm_eps": 1e-5},
}
# One process may not take the time of all others.
PROCESS_S = 300.0


@dataclass(frozen=True)
class Size:
    """A model and how much of it a step sees."""

    shape: dict[str, Any]
    new_blocks: int
    rows: int
    length: int


SIZES = {
    "SmolLM2-135M": Size(MODELS["SmolLM2-135M"], NEW_BLOCKS["SmolLM2-135M"], 16, 2048),
    "Llama-3.2-1B": Size(MODELS["Llama-3.2-1B"], NEW_BLOCKS["Llama-3.2-1B"], 8, 2048),
}
DRY = {"tiny": Size(TINY, 1, 2, 64)}
# The new blocks are there; they alone train.
ARMS = {
    "full": (False, False),
    "expansion": (True, True),
    # What expansion would be without freezing: the same depth, everything trains.
    "full-deep": (True, False),
}
# What the fields of a case say about a side. PyTorch with bfloat16 weights does less than ours: its
# optimizer loses updates that are below a weight's precision.
SIDES: dict[str, dict[str, Any]] = {
    "ours": {"side": "ours"},
    "ours-reference": {"side": "ours", "attention": "reference"},
    "torch": {"side": "torch"},
    "torch-compiled": {"side": "torch", "compiled": "default"},
    "torch-graphs": {"side": "torch", "compiled": "reduce-overhead"},
    "torch-bf16": {"side": "torch", "weights": "bfloat16"},
    "torch-bf16-compiled": {"side": "torch", "weights": "bfloat16", "compiled": "default"},
}
DEFAULT_SIDES = ("ours", "ours-reference", "torch", "torch-compiled")
# Names and values that jaxlib 0.10.2, 0.11.2 and 0.12 accept. XLA's own text about each is printed
# by a program that sets an unknown value, such as --xla_gpu_enable_command_buffer=+NONE.
PRESETS = {
    "default": "",
    "latency-hiding": "--xla_gpu_enable_latency_hiding_scheduler=true",
    # Command buffers are CUDA graphs. By default loops stay outside of them.
    "no-graphs": "--xla_gpu_enable_command_buffer=",
    "loops-in-graphs": "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL",
    "cublas-only": "--xla_gpu_enable_triton_gemm=false",
    "triton-any": "--xla_gpu_triton_gemm_any=true",
    "cudnn-fusions": "--xla_gpu_cudnn_gemm_fusion_level=3",
    "no-autotuning": "--xla_gpu_autotune_level=0",
    "exhaustive-tiling": "--xla_gpu_exhaustive_tiling_search=true",
    "double-buffering": "--xla_gpu_enable_while_loop_double_buffering=true",
    # What published GPU configurations of large models set, as far as it concerns one GPU.
    "published": "--xla_gpu_enable_latency_hiding_scheduler=true --xla_gpu_enable_triton_gemm=false"
    " --xla_gpu_enable_while_loop_double_buffering=true --xla_gpu_enable_command_buffer=",
}


@dataclass
class Row:
    """One line of a table and what was measured for it."""

    model: str
    arm: str
    side: str
    preset: str
    case: Case
    flops: int
    found: list[dict[str, Any]] = field(default_factory=list)
    refused: str | None = None

    @property
    def seconds(self) -> list[float]:
        """Seconds a step of every window of every round."""
        return [one for found in self.found for one in found["seconds"]]

    @property
    def speed(self) -> float | None:
        """Tokens per second: the median of all windows."""
        tokens = self.case.rows * self.case.length
        return tokens / statistics.median(self.seconds) if self.found else None

    @property
    def peak_gib(self) -> float:
        """Peak memory, the largest of the rounds."""
        return max(found["peak"] for found in self.found) / 2**30

    @property
    def utilisation(self) -> float | None:
        """MFU; None where nothing was measured or the chip's peak is not known."""
        from jaxrecipes.plan.chips import chip_of

        chip = chip_of(self.found[0]["device"]) if self.found else None
        if chip is None or chip.bf16_flops is None:
            return None
        return self.flops / statistics.median(self.seconds) / chip.bf16_flops


def make_rows(options: argparse.Namespace) -> list[Row]:
    """Lists what is measured: every side without flags, and our first side with each preset."""
    rows = []
    for model in options.models:
        size = (SIZES | DRY)[model]
        for arm in options.arms:
            for side in options.sides:
                case = make_case(size, arm, side, options)
                flops = model_flops(case)
                presets = options.presets if side == "ours" else ["default"]
                for preset in presets:
                    rows.append(Row(model, arm, side, preset, case, flops))
    return rows


def make_case(size: Size, arm: str, side: str, options: argparse.Namespace) -> Case:
    """Puts a case together from a model, an arm and a side."""
    from jaxrecipes.params.expansion import block_order

    deep, only_new = ARMS[arm]
    order = block_order(size.shape["num_hidden_layers"], size.new_blocks, "interleaved", 1)
    new_at = tuple(at for at, (_, is_new) in enumerate(order) if is_new)
    fields: dict[str, Any] = {"attention": "auto", "weights": "mixed", "compiled": None}
    return Case(
        **fields | SIDES[side],
        shape=size.shape,
        new_at=new_at if deep else (),
        only_new=only_new,
        device="cpu" if options.dry else "gpu",
        rows=options.rows or size.rows,
        length=size.length,
        documents=options.documents,
        steps=options.steps,
        remat=options.remat,
        loss_chunk=options.loss_chunk,
    )


def model_flops(case: Case) -> int:
    """Counts the model's operations of a step, by hand, for either side."""
    from jaxrecipes.checkpoint.model_config import parse_model_config
    from jaxrecipes.params.surgery import layers_pattern
    from jaxrecipes.plan.flops import step_flops

    model = parse_model_config(case.shape | {"num_hidden_layers": case.layers}, where="shape")
    pattern = re.compile(layers_pattern(case.new_at) if case.only_new else ".*")
    return step_flops(
        model,
        tokens=case.rows * case.length,
        row_length=case.length,
        trains=lambda path: pattern.fullmatch(path) is not None,
    ).model


def measure(row: Row, caches: Path, timeout: float) -> None:
    """Runs one process and keeps what it found, or why it found nothing."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu" if row.case.device == "cpu" else "cuda",
        "XLA_FLAGS": PRESETS[row.preset],
        "TF_CPP_MIN_LOG_LEVEL": "2",
        # Later rounds find what the first one compiled. JAX's key includes the flags.
        "JAX_COMPILATION_CACHE_DIR": str(caches / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
    }
    if row.case.device == "cpu":
        # Threads of a tiny model wait for each other longer than they compute.
        environment |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    root = Path(__file__).parent
    paths = [str(root.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sys.executable, str(root / "gpu_sides.py"), json.dumps(asdict(row.case))]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        row.refused = f"not finished after {timeout:.0f} s"
        return
    if done.returncode:
        row.refused = reason(done.stderr) or f"exit status {done.returncode}"
    else:
        row.found.append(json.loads(done.stdout.splitlines()[-1]))


def reason(messages: str) -> str:
    """Picks the line of a process's messages that says why it ended; one cell of a table."""
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    # XLA prints all its flags after the line that names the one it does not know.
    telling = [line for line in lines if "Unknown flag" in line or "Failed to parse" in line]
    chosen = (telling or lines or [""])[0 if telling else -1]
    return chosen.split("] ", 1)[-1].replace("|", "/")[:160]


def run_rounds(rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Measures all rows, a round after the other, until the time is over."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as caches:
        for number in range(options.rounds):
            for row in rows:
                left = options.limit_s - (time.monotonic() - began)
                if row.refused is not None and not row.found:
                    continue
                if left <= 0:
                    if not row.found:
                        row.refused = f"not started: {options.limit_s:.0f} s were over"
                    continue
                measure(row, Path(caches), min(left, PROCESS_S))
                names = f"{row.model} {row.arm} {row.side} {row.preset}"
                state = row.refused or f"{row.speed:,.0f} tokens/s so far"
                print(f"round {number + 1}: {names}: {state}", file=sys.stderr)
                if options.output:
                    options.output.write_text(json.dumps([asdict(one) for one in rows], indent=1))


TITLES = ("model", "arm", "side", "tokens/s", "slowest-fastest", "ms a step", "MFU", "peak GiB")
RATIO_TITLES = ("to torch", "to torch-compiled", "compile s", "windows")
PRESET_TITLES = ("model", "arm", "preset", "tokens/s", "slowest-fastest", "to default", "peak GiB")


def ratio(row: Row, others: Sequence[Row]) -> str:
    """Says how many times as fast a row is as the only one of others; "" where unknown."""
    if len(others) != 1 or row.speed is None or others[0].speed is None:
        return ""
    return f"{row.speed / others[0].speed:.2f}"


def speed_cells(row: Row) -> list[str]:
    """Formats the speed and its spread, or why there is none."""
    if row.speed is None:
        return [f"refused: {row.refused}", ""]
    tokens = row.case.rows * row.case.length
    slowest, fastest = tokens / max(row.seconds), tokens / min(row.seconds)
    return [f"{row.speed:,.0f}", f"{slowest:,.0f}-{fastest:,.0f}"]


def side_cells(row: Row, rows: Sequence[Row]) -> list[str]:
    """Formats a line of the table of sides."""
    start = [row.model, row.arm, row.side, *speed_cells(row)]
    if not row.found:
        return [*start, *[""] * (len(TITLES) + len(RATIO_TITLES) - len(start))]
    same = [one for one in rows if (one.model, one.arm) == (row.model, row.arm)]
    mfu = row.utilisation
    return [
        *start,
        f"{1000 * statistics.median(row.seconds):.1f}",
        "not known" if mfu is None else f"{mfu:.1%}",
        f"{row.peak_gib:.2f}",
        ratio(row, [one for one in same if one.side == "torch"]),
        ratio(row, [one for one in same if one.side == "torch-compiled"]),
        f"{row.found[0]['compile']:.0f}",
        str(len(row.seconds)),
    ]


def preset_cells(row: Row, rows: Sequence[Row]) -> list[str]:
    """Formats a line of the table of presets."""
    key = (row.model, row.arm, row.side, "default")
    plain = [one for one in rows if (one.model, one.arm, one.side, one.preset) == key]
    peak = f"{row.peak_gib:.2f}" if row.found else ""
    return [row.model, row.arm, row.preset, *speed_cells(row), ratio(row, plain), peak]


def print_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    print("|", " | ".join(titles), "|")
    print("|" + "---|" * len(titles))
    for line in lines:
        print("|", " | ".join(line), "|")
    print()


def print_results(rows: Sequence[Row]) -> None:
    """Prints conditions, sides, step times of the arms, and presets."""
    for found in {json.dumps([o["device"], o["versions"]]) for row in rows for o in row.found}:
        print(found)
    first = rows[0].case
    print(
        f"{first.documents} documents a row, remat {first.remat}, loss chunk {first.loss_chunk}, "
        f"windows of {first.steps} steps; rows x tokens:",
        ", ".join(sorted({f"{r.model} {r.case.rows} x {r.case.length}" for r in rows})),
        end="\n\n",
    )
    plain = [row for row in rows if row.preset == "default"]
    print_table((*TITLES, *RATIO_TITLES), [side_cells(row, plain) for row in plain])
    for row in plain:
        for other in plain:
            if (row.arm, row.model, row.side) != ("expansion", other.model, other.side):
                continue
            if other.arm != "expansion" and row.speed and other.speed:
                share = other.speed / row.speed
                print(f"{row.model}, {row.side}: step of expansion / {other.arm}: {share:.2f}")
    if len(plain) < len(rows):
        print()
        print_table(PRESET_TITLES, [preset_cells(row, rows) for row in rows if row.side == "ours"])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; names that do not exist are usage errors."""

    def names(known: Sequence[str]) -> Any:
        def split(text: str) -> list[str]:
            chosen = list(known) if text == "all" else text.split(",")
            wrong = [name for name in chosen if name not in known]
            if wrong:
                raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(known)}, all")
            return chosen

        return split

    parser = argparse.ArgumentParser(
        prog="vs_torch.py --device gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", dest="models", type=names(list(SIZES)), default=list(SIZES))
    parser.add_argument("--arms", type=names(list(ARMS)), default=["full", "expansion"])
    parser.add_argument("--sides", type=names(list(SIDES)), default=list(DEFAULT_SIDES))
    parser.add_argument("--presets", type=names(list(PRESETS)), default=["default"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="steps of a timed window")
    parser.add_argument("--rows", type=int, help="rows a step; as many as suit the model")
    parser.add_argument("--documents", type=int, default=4, help="documents packed into a row")
    parser.add_argument("--remat", default="none", help="train.remat of our side")
    parser.add_argument("--loss-chunk", type=int, default=1024, help="train.loss_chunk of our side")
    parser.add_argument("--limit-s", type=float, default=3600, help="start nothing after this")
    parser.add_argument("--output", type=Path, help="JSON file with every measurement")
    parser.add_argument("--dry", action="store_true", help="a tiny model on the CPU")
    options = parser.parse_args(arguments)
    if options.dry:
        options.models = list(DRY)
    if "default" not in options.presets:
        options.presets = ["default", *options.presets]
    return options


def main(arguments: Sequence[str]) -> int:
    """Measures and prints; returns 1 where nothing could be measured."""
    options = parse(arguments)
    rows = make_rows(options)
    run_rounds(rows, options)
    print_results(rows)
    return 0 if any(row.found for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
