"""What freezing costs: executed FLOPs, optimizer state and memory of block expansion against full.

    python benchmarks/freezing.py

Nothing runs: FLOPs are counted in the jaxpr of the real training step with loops multiplied out,
memory is the compiler's. 8 new blocks on 32 against full training of the same 40 layers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxrecipes.models.config import FULL_ATTENTION, ModelConfig
from jaxrecipes.models.decoder import abstract_params
from jaxrecipes.params.expansion import block_order
from jaxrecipes.params.layout import plan_layout, to_runtime
from jaxrecipes.params.partition import partition
from jaxrecipes.params.rules import label
from jaxrecipes.params.surgery import layers_pattern
from jaxrecipes.train.flops import count_flops
from jaxrecipes.train.optimizer import (
    OptimizerSettings,
    count_bytes,
    learning_rate_schedule,
    make_optimizer,
)
from jaxrecipes.train.state import create_state
from jaxrecipes.train.step import make_train_step

ROWS, LENGTH = 4, 256


def shape(layers: int) -> ModelConfig:
    """A model of SmolLM2-135M's width."""
    return ModelConfig(
        family="llama",
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_layers=layers,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        layer_types=(FULL_ATTENTION,) * layers,
        query_scale=64**-0.5,
    )


def measure(rules: list[tuple[str, bool]], remat: str) -> dict[str, int]:
    """Builds the step of a 40-layer model from shapes and asks jaxpr and compiler about it."""
    config = shape(40)
    params = abstract_params(config)
    trains = label(params, rules)
    layout = plan_layout(config, trains)
    trainable, frozen = partition(params, lambda path: trains[path])
    trainable, frozen = to_runtime(layout, trainable), to_runtime(layout, frozen)
    settings = OptimizerSettings(total_steps=10)
    decays = {path: path.endswith("kernel") for path, wanted in trains.items() if wanted}
    optimizer = make_optimizer(settings, layout=layout, decays=decays)
    state = jax.eval_shape(lambda tree: create_state(tree, optimizer, spike_window=128), trainable)
    step = make_train_step(
        config, optimizer, learning_rate_schedule(settings), layout=layout, remat=remat
    )
    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    batch = dict.fromkeys(("token_ids", "segment_ids", "positions", "loss_mask"), tokens)
    compiled = jax.jit(step, donate_argnums=0).lower(state, frozen, batch).compile()
    return {
        "flops": count_flops(step, state, frozen, batch),
        "state": count_bytes(state.optimizer_state),
        "trainable": count_bytes(trainable),
        "frozen": count_bytes(frozen),
        "temp": compiled.memory_analysis().temp_size_in_bytes,
    }


def main() -> None:
    new = [
        index for index, (_, is_new) in enumerate(block_order(32, 8, "interleaved", 1)) if is_new
    ]
    expansion = [(layers_pattern(new), True), (".*", False)]
    table = Table(title="8 new of 40 layers, SmolLM2-135M width, 4 x 256 tokens, float32")
    titles = ("remat", "arm", "GFLOP", "ratio", "trained MiB", "optimizer MiB", "frozen MiB")
    for title in (*titles, "temp MiB"):
        table.add_column(title, justify="right")
    for remat in ("none", "dots", "full"):
        full = measure([(".*", True)], remat)
        for name, found in (("full", full), ("expansion", measure(expansion, remat))):
            cells = [f"{found['flops'] / 1e9:,.0f}", f"{found['flops'] / full['flops']:.3f}"]
            sizes = [found[key] / 2**20 for key in ("trainable", "state", "frozen", "temp")]
            table.add_row(remat, name, *cells, *(f"{size:,.0f}" for size in sizes))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
