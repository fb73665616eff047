"""Losses, gradients and training on several devices against one; prints how far they are apart."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxrecipes.config.recipe_options import LoraSection
from jaxrecipes.models.execution import Execution
from jaxrecipes.params.paths import flatten
from jaxrecipes.recipes.lora import build
from jaxrecipes.sharding.mesh import MeshShape, make_mesh
from jaxrecipes.sharding.rules import ACTIVATION_RULES, state_shardings, tree_shardings
from jaxrecipes.train.causal_loss import batch_loss
from jaxrecipes.train.fisher import diagonal_fisher
from jaxrecipes.train.penalty import Penalty, with_anchor
from tests.tiny import packed_batch, tiny_config, tiny_params, trainer

MESHES = (
    MeshShape(fsdp=8),
    MeshShape(fsdp=4, tensor=2),
    MeshShape(data=2, fsdp=2, tensor=2),
    MeshShape(fsdp=2, context=2, tensor=2),
    MeshShape(data=8),
    MeshShape(data=2, context=4),
)
TRAINING_MESHES = (MESHES[1], MESHES[2])
# A vocabulary that all meshes cut, and one that none can.
MODELS = [
    replace(tiny_config(kind), vocab_size=64)
    for kind in ("llama", "untied", "biased", "sandwich", "sliding")
] + [tiny_config("untied"), tiny_config("llama")]
RULES = {
    "full": [(".*", True)],
    "freeze": [("layers/[23]/.*", True), (".*", False)],
    "block_expansion": [("layers/[13]/.*", True), (".*", False)],
}


# On four devices.
ADAPTER_MESHES = (MeshShape(fsdp=4), MeshShape(fsdp=2, tensor=2))


def _place_batch(batch: Any, mesh: Any) -> Any:
    return jax.device_put(batch, NamedSharding(mesh, ACTIVATION_RULES["tokens"]))


def _distance(first: Any, second: Any) -> float:
    """The largest difference of two trees' leaves, each as a share of its largest value."""
    pairs = zip(flatten(first).values(), flatten(second).values(), strict=True)
    return max(
        float(np.abs(np.asarray(one) - np.asarray(two)).max() / (np.abs(np.asarray(one)).max()))
        for one, two in pairs
    )


def few_gradients() -> list[Any]:
    """Of `gradients` the kinds and meshes that have the most in them."""
    return gradients(models=(MODELS[3], MODELS[5]), meshes=(MESHES[1], MESHES[3]))


def gradients(models: Any = MODELS, meshes: Any = MESHES) -> list[Any]:
    """[model number, mesh, loss apart, gradients apart]."""
    found = []
    for number, config in enumerate(models):
        params, batch = tiny_params(config), packed_batch(config, rows=8)

        def loss(params: Any, batch: Any, execution: Execution, config: Any = config) -> Any:
            return batch_loss(
                config, params, batch, loss_chunk=8, remat="full", execution=execution
            )

        step = jax.jit(jax.value_and_grad(loss), static_argnums=2)
        expected, slope = step(params, batch, Execution())
        for shape in meshes:
            mesh = make_mesh(shape)
            placed = jax.device_put(params, tree_shardings(params, mesh))
            got, found_slope = step(placed, _place_batch(batch, mesh), Execution(mesh))
            apart = abs(float(got) - float(expected)) / float(expected)
            found.append([number, str(shape), apart, _distance(slope, found_slope)])
    return found


def training() -> list[Any]:
    """See `_train`; block expansion, freezing and everything."""
    config = replace(tiny_config("untied"), vocab_size=64)
    params = tiny_params(config)
    cases = {name: (params, rules) for name, rules in RULES.items()}
    return _train(config, cases, TRAINING_MESHES, steps=20)


def adapters(case: str) -> list[Any]:
    """See `_train`; adapters of one kind, or on a base of few bits."""
    config = replace(tiny_config("untied", num_layers=2), vocab_size=64)
    section = LoraSection(
        rank=4,
        base_quantization=case if case in ("int8", "nf4") else "none",
        use_dora=case == "dora",
    )
    if case == "rest":
        section = LoraSection(
            rank=2,
            targets=["q_proj", "down_proj"],
            embeddings=True,
            use_dora=True,
            modules_to_save=["norm", "lm_head"],
        )
    elif case == "tokens":
        section = LoraSection(rank=4, targets=["q_proj", "o_proj"], trainable_tokens=[7, 3])
    made = build(config, tiny_params(config), section, jax.random.key(0))
    return _train(config, {case: (made.params, made.rules)}, ADAPTER_MESHES, steps=6)


def penalties() -> list[Any]:
    """[kind, mesh, largest difference of information, losses, penalties, trained weights]."""
    config = replace(tiny_config("untied", num_layers=2), vocab_size=64)
    params = tiny_params(config)
    batches = [packed_batch(config, rows=8, seed=seed) for seed in range(3)]
    rows = [{key: array[0] for key, array in batches[0].items()}]
    found = []
    for kind in ("ewc", "kl"):
        ends: dict[Any, Any] = {}
        for shape in (None, ADAPTER_MESHES[1]):
            mesh = None if shape is None else make_mesh(shape)
            execution = Execution(mesh)
            step, state, frozen, layout = trainer(
                config, params, RULES["full"], execution=execution, penalty=Penalty(kind, 0.5)
            )
            if mesh is not None:
                places = state_shardings(state, flatten(state.trainable), mesh)
                state = jax.device_put(state, places)
            anchor = {"start": jax.tree.map(jnp.copy, state.trainable)}
            if kind == "ewc":
                anchor["fisher"], _ = diagonal_fisher(
                    config, state.trainable, frozen, rows, layout=layout, execution=execution
                )
            values = []
            for batch in batches:
                state, metrics = step(
                    state,
                    with_anchor(frozen, anchor),
                    batch if mesh is None else _place_batch(batch, mesh),
                )
                values.append((float(metrics["loss"]), float(metrics["penalty"])))
            ends[shape] = (anchor, np.array(values), state.trainable)
            if shape is not None:
                apart = np.abs(ends[shape][1] - ends[None][1]).max(axis=0).tolist()
                information = _distance(ends[None][0], anchor)
                weights = _distance(ends[None][2], state.trainable)
                found.append([kind, str(shape), information, *apart, weights])
    return found


def _train(config: Any, cases: Any, meshes: Any, steps: int) -> list[Any]:
    """[case, mesh, largest difference of losses, of trained weights, frozen same, leaves cut].

    A leaf is cut where a device holds a part of it, after the last step.
    """
    batches = [packed_batch(config, rows=8, seed=seed) for seed in range(steps)]
    found = []
    for name, (params, rules) in cases.items():
        curves, ends = {}, {}
        for shape in (None, *meshes):
            mesh = None if shape is None else make_mesh(shape)
            step, state, frozen, _ = trainer(
                config, params, rules, execution=Execution(mesh), micro_batches=1
            )
            before = {path: np.asarray(leaf) for path, leaf in flatten(frozen).items()}
            if mesh is not None:
                places = state_shardings(state, flatten(state.trainable), mesh)
                state = jax.device_put(state, places)
                frozen = jax.device_put(frozen, tree_shardings(frozen, mesh))
            losses = []
            for batch in batches:
                state, metrics = step(
                    state, frozen, batch if mesh is None else _place_batch(batch, mesh)
                )
                losses.append(float(metrics["loss"]))
            curves[shape], ends[shape] = np.array(losses), state.trainable
            if shape is None:
                continue
            same = all(
                np.array_equal(before[path], np.asarray(leaf))
                for path, leaf in flatten(frozen).items()
            )
            apart = float(np.abs(curves[shape] - curves[None]).max())
            cut = [
                path
                for path, leaf in flatten(state.trainable).items()
                if not leaf.sharding.is_fully_replicated
            ]
            weights = _distance(ends[None], ends[shape])
            found.append([name, str(shape), apart, weights, same, cut])
    return found


if __name__ == "__main__":
    functions = (few_gradients, gradients, training, adapters, penalties)
    found = {one.__name__: one for one in functions}[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(found))
