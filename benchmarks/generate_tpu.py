"""What one decoding step moves on a TPU, as its compiler has it, against what it has to move.

    python benchmarks/generate_tpu.py [--topology v5e:1x1]

A step has to read all weights and the cache once, the rest is small. The program is the engine's
own, compiled for the TPU without one (`libtpu`), in bfloat16; bytes are counted in the optimised
HLO (`jaxrecipes.plan.hlo`), for one round of its loop over steps.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A model and a size of the cache."""

    model: str
    slots: int
    columns: int


SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "Llama-3.2-1B": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    },
}
CASES = (
    Case("SmolLM2-135M", 16, 512),
    Case("Llama-3.2-1B", 32, 1024),
    Case("Llama-3.2-1B", 64, 2048),
)


def measure(case: Case, topology: str) -> tuple[int, int, int]:
    """Returns the bytes of the weights, of the cache, and those that the compiled step moves."""
    from jaxrecipes.plan.topology import parse_topology, topology_devices

    devices = topology_devices(parse_topology(topology))  # before anything else loads libtpu

    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from jaxrecipes.checkpoint.model_config import parse_model_config
    from jaxrecipes.generate.sampling import GREEDY, sampling_rows
    from jaxrecipes.generate.slots import Slots, write_tokens
    from jaxrecipes.models.decoder import abstract_params
    from jaxrecipes.models.layers import LayerCache
    from jaxrecipes.plan.hlo import account

    settings = {
        "model_type": "llama",
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        **SHAPES[case.model],
    }
    config = parse_model_config(settings, where=case.model)
    sharding = SingleDeviceSharding(devices[0])

    def shape(*sizes: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    params = jax.tree.map(
        lambda leaf: shape(*leaf.shape, dtype=leaf.dtype), abstract_params(config, jnp.bfloat16)
    )
    one = shape(case.slots, config.num_kv_heads, case.columns, config.head_dim, dtype=jnp.bfloat16)
    caches = [LayerCache(one, one)] * config.num_layers

    def greedy(params: Any, caches: Any, slots: Any, *scalars: Any) -> Any:
        # Constants: the compiler drops the branches that greedy rows never take.
        slots = Slots(*slots, sampling_rows([GREEDY] * case.slots))
        return write_tokens(
            params,
            caches,
            None,
            slots,
            *scalars,
            False,
            config=config,
            compute_dtype=jnp.dtype(jnp.bfloat16),
            most=32,
        )

    slots = (*[shape(case.slots)] * 4, shape(case.slots, 1), shape(case.slots, 2, dtype=jnp.uint32))
    lowered = jax.jit(greedy, donate_argnums=1).lower(params, caches, slots, *[shape()] * 3)
    moved = account(lowered.compile().as_text())
    assert moved.unknown_loops == 1, "the loop over steps counts as one round"

    def size(tree: Any) -> int:
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    return size(params), size(caches), moved.hbm_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--topology", default="v5e:1x1")
    parser.add_argument("--case", type=int, help="only this row")
    chosen = parser.parse_args()
    print("| model | slots x columns | weights MiB | cache MiB | moved MiB | ratio |")
    print("|---|---|---|---|---|---|")
    for case in CASES if chosen.case is None else [CASES[chosen.case]]:
        weights, cache, moved = measure(case, chosen.topology)
        mib = 2**20
        print(
            f"| {case.model} | {case.slots} x {case.columns} | {weights / mib:,.0f} "
            f"| {cache / mib:,.0f} | {moved / mib:,.0f} | {moved / (weights + cache):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
