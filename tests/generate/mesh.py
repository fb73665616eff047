"""What the engine writes on one device and on a mesh of four, as JSON."""

from __future__ import annotations

import json

import jax

from jaxrecipes.generate.engine import Engine
from jaxrecipes.generate.sampling import Sampling
from jaxrecipes.generate.tokens import TokenPrompt
from jaxrecipes.sharding.mesh import MeshShape, make_mesh
from jaxrecipes.sharding.rules import tree_shardings
from tests.tiny import tiny_config, tiny_params


def main() -> None:
    config = tiny_config(num_layers=2)
    params = jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim == 2 else leaf, tiny_params(config))
    prompts = [
        TokenPrompt(
            tuple(range(3, 3 + length)),
            40 if length == 5 else 6,
            Sampling(temperature=float(length % 2), repetition_penalty=1.1),
            seed=length,
        )
        for length in (1, 5, 12, 3, 8, 4)
    ]
    mesh = make_mesh(MeshShape(fsdp=2, tensor=2))
    found = []
    for weights in (params, jax.device_put(params, tree_shardings(params, mesh))):
        written: dict[int, list[int]] = {}
        Engine(config, weights, slots=4).write(
            prompts, lambda index, one, into=written: into.update({index: list(one.token_ids)})
        )
        found.append([written[index] for index in range(len(prompts))])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
