"""Programs whose collectives and operations are known by hand, compiled in a process of their own.

Run as `python -m tests.plan.programs cpu` (8 simulated devices) or with a TPU topology; prints for
each program the account and the buffers as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any

LAYERS, BATCH, WIDTH, WIDE = 5, 256, 128, 256


def programs(mesh: Any) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    def array(*shape: int, spec: tuple[Any, ...] = ()) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    def mapped(function: Any, in_specs: tuple[Any, ...], out_specs: tuple[Any, ...]) -> Any:
        return jax.jit(
            jax.shard_map(
                function,
                mesh=mesh,
                in_specs=tuple(PartitionSpec(*spec) for spec in in_specs),
                out_specs=PartitionSpec(*out_specs),
                check_vma=False,
            )
        )

    def gathered(states: Any, weights: Any) -> Any:
        def layer(states: Any, weight: Any) -> tuple[Any, None]:
            return jnp.tanh(states @ jax.lax.all_gather(weight, "fsdp", tiled=True)), None

        return jax.lax.scan(layer, states, weights)[0]

    def nested(states: Any, weights: Any) -> Any:
        def outer(states: Any, _: None) -> tuple[Any, None]:
            return jax.lax.scan(lambda s, w: (jnp.tanh(s @ w), None), states, weights)[0], None

        return jax.lax.scan(outer, states, None, length=3)[0]

    def rematerialised(states: Any, up: Any, down: Any) -> Any:
        @jax.checkpoint
        def layer(states: Any, weights: Any) -> Any:
            return jnp.tanh(states @ weights[0]) @ weights[1]

        def loss(states: Any, weights: Any) -> Any:
            states = jax.lax.scan(lambda s, w: (layer(s, w), None), states, weights)[0]
            return (states**2).sum()

        return jax.grad(loss, (0, 1))(states, (up, down))

    rows = ("data", "fsdp")
    return {
        "gathered": (
            mapped(gathered, ((rows,), (None, "fsdp")), (rows,)),
            (array(BATCH, WIDTH, spec=(rows,)), array(LAYERS, WIDTH, WIDTH, spec=(None, "fsdp"))),
        ),
        "summed": (
            mapped(lambda x: jax.lax.psum(x, "data"), ((rows,),), ("fsdp",)),
            (array(BATCH, WIDTH, spec=(rows,)),),
        ),
        "scattered": (
            mapped(
                lambda x: jax.lax.psum_scatter(jnp.tanh(x), "fsdp", tiled=True),
                ((),),
                ("fsdp",),
            ),
            (array(BATCH, WIDTH),),
        ),
        "permuted": (
            mapped(
                lambda x: jax.lax.ppermute(
                    jnp.tanh(x),
                    "fsdp",
                    [(i, (i + 1) % mesh.shape["fsdp"]) for i in range(mesh.shape["fsdp"])],
                ),
                ((rows,),),
                (rows,),
            ),
            (array(BATCH, WIDTH, spec=(rows,)),),
        ),
        "exchanged": (
            mapped(
                lambda x: jax.lax.all_to_all(jnp.tanh(x), "fsdp", 1, 0, tiled=True),
                ((rows,),),
                (("data", "fsdp"),),
            ),
            (array(BATCH, WIDTH, spec=(rows,)),),
        ),
        "nested": (
            jax.jit(nested),
            (array(BATCH, WIDTH), array(LAYERS, WIDTH, WIDTH)),
        ),
        "rematerialised": (
            jax.jit(rematerialised),
            (
                array(BATCH, WIDTH),
                array(LAYERS, WIDTH, WIDE),
                array(LAYERS, WIDE, WIDTH),
            ),
        ),
        "batched": (
            jax.jit(lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k)),
            (array(2, 128, 4, 64), array(2, 128, 4, 64)),
        ),
        # More than a v5e's memory; the process on the CPU never gets to it.
        "too_large": (
            jax.jit(lambda x, w: jnp.tanh(x @ w) @ w.T),
            (array(2**20, 8192), array(8192, 8192)),
        ),
        "branching": (
            jax.jit(
                lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: jnp.tanh(x @ w @ w), lambda: x @ w)
            ),
            (array(BATCH, WIDTH), array(WIDTH, WIDTH)),
        ),
    }


def main() -> None:
    name, *chosen = sys.argv[1:]
    os.environ["JAX_PLATFORMS"] = "cpu"
    if name == "cpu":
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh

    from jaxrecipes.plan.buffers import compile_with_buffers
    from jaxrecipes.plan.hlo import account
    from jaxrecipes.plan.topology import parse_topology, topology_devices

    devices = jax.devices() if name == "cpu" else topology_devices(parse_topology(name))
    shape = (len(devices) // 4, 4)
    mesh = Mesh(np.array(devices).reshape(shape), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    results = {}
    for key, (function, arguments) in programs(mesh).items():
        if key not in chosen and (chosen or key == "too_large"):
            continue
        compilation = compile_with_buffers(function.lower(*arguments))
        found = account(compilation.hlo_text, dict(mesh.shape))
        memory = compilation.compiled.memory_analysis() if compilation.compiled else None
        results[key] = {
            "account": asdict(found),
            "sent": [one.sent_bytes for one in found.collectives],
            "buffers": asdict(compilation.buffers) if compilation.buffers else None,
            "peak": memory.peak_memory_in_bytes if memory else None,
            # Not in jax 0.10.
            "reserved": getattr(memory, "total_allocation_bytes", None),
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
