from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from jaxrecipes.checkpoint.peft_names import decoder_modules
from jaxrecipes.errors import ConfigError
from jaxrecipes.models.decoder import abstract_params
from jaxrecipes.params.layout import plan_layout, to_runtime
from jaxrecipes.params.lora import build_adapters
from jaxrecipes.params.lora_options import AdapterOptions
from jaxrecipes.params.lora_targets import select_modules
from jaxrecipes.params.partition import partition
from jaxrecipes.params.paths import flatten
from jaxrecipes.params.rules import label
from jaxrecipes.sharding.rules import (
    GATHERED_AXES,
    VOCABULARY_AXES,
    leaf_spec,
    state_shardings,
    tree_shardings,
    whole_leaves,
)
from jaxrecipes.train.optimizer import OPTIMIZERS, OptimizerSettings, make_optimizer
from jaxrecipes.train.state import create_state
from tests.tiny import KINDS, tiny_config


def mesh(data=1, fsdp=1, context=1, tensor=1):
    return AbstractMesh((data, fsdp, context, tensor), ("data", "fsdp", "context", "tensor"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_leaf_of_every_model_has_a_place_in_both_layouts(kind):
    config = replace(tiny_config(kind), vocab_size=64)
    params = abstract_params(config)
    places = flatten(tree_shardings(params, mesh(fsdp=2, tensor=2)))
    assert places.keys() == flatten(params).keys()
    # A matrix is on one device in part only; that is what the mesh is for.
    for path, leaf in flatten(params).items():
        cut = [axes for axes in places[path].spec if axes]
        assert bool(cut) == (
            len(leaf.shape) > 1
            or path.endswith("bias")
            and "output" not in path
            and "down" not in path
        ), path
    layout = plan_layout(config, label(params, [("layers/[13]/.*", True), (".*", False)]))
    for path, place in flatten(tree_shardings(to_runtime(layout, params), mesh(fsdp=2))).items():
        if path.startswith("segments/"):
            relative = path.split("/", 3)[3]
            canonical = leaf_spec(f"layers/0/{relative}", _shape(params, relative), mesh(fsdp=2))
            # Stacking axes in front are never cut: a scan takes one layer at a time.
            assert place.spec[-len(canonical) :] == tuple(canonical), path
            assert not any(place.spec[: -len(canonical)])


def _shape(params, relative):
    return flatten(params["layers"]["0"])[relative].shape


def test_the_table_reads_as_it_should():
    both = mesh(fsdp=2, context=2, tensor=2)
    assert leaf_spec("layers/3/mlp/up/kernel", (32, 48), both) == PartitionSpec(
        GATHERED_AXES, "tensor"
    )
    assert leaf_spec("segments/0/1/mlp/down/kernel", (4, 48, 32), both) == PartitionSpec(
        None, "tensor", GATHERED_AXES
    )
    assert leaf_spec("embedding/table", (64, 32), both) == PartitionSpec(VOCABULARY_AXES, None)
    # Adapters follow their kernel, and their rank is whole.
    assert leaf_spec("layers/0/attention/query/lora_a", (32, 7), both)[1] is None
    assert leaf_spec("layers/0/attention/query/lora_b", (7, 32), both) == PartitionSpec(
        None, "tensor"
    )


def test_an_unknown_leaf_is_an_error():
    with pytest.raises(ConfigError, match="no sharding rule matches the leaf layers/0/other"):
        leaf_spec("layers/0/other", (3, 3), mesh())


def test_what_the_mesh_does_not_divide_is_whole_and_listed():
    params = abstract_params(tiny_config("untied"))  # 61 rows of vocabulary
    assert whole_leaves(params, mesh(fsdp=2)) == ["embedding/table", "head/kernel"]
    assert whole_leaves(params, mesh(data=8)) == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_moments_live_where_their_parameter_lives(optimizer):
    config = replace(tiny_config("untied"), vocab_size=64)
    params = abstract_params(config)
    trains = label(params, [("layers/[13]/.*", True), (".*", False)])
    trainable, _ = partition(params, lambda path: trains[path])
    layout = plan_layout(config, trains)
    transformation = make_optimizer(
        OptimizerSettings(10, name=optimizer),
        layout=layout,
        decays={path: True for path, wanted in trains.items() if wanted},
    )
    tree = to_runtime(layout, trainable)
    state = jax.eval_shape(lambda t: create_state(t, transformation, spike_window=8), tree)
    both = mesh(fsdp=2, tensor=2)
    places = state_shardings(state, flatten(tree), both)
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True)
    whole = sum(
        leaf.size * jnp.dtype(leaf.dtype).itemsize
        for leaf, place in leaves
        if leaf.ndim > 1 and place.is_fully_replicated
    )
    total = sum(leaf.size * 4 for leaf in jax.tree.leaves(state))
    # Adafactor's factored moments are vectors; everything as large as a matrix is cut.
    assert whole <= total * (0.2 if optimizer == "adafactor" else 0.0)
    assert flatten(places.trainable) == flatten(tree_shardings(tree, both))


@pytest.mark.parametrize("changes", [{"embeddings": True}, {"trainable_tokens": (1, 2)}])
def test_adapters_are_cut_like_the_kernels_beside_them(changes):
    config = tiny_config()
    options = AdapterOptions(rank=4, use_dora=True, **changes)
    selection = select_modules(options, decoder_modules(config))
    adapters = jax.eval_shape(
        lambda params: build_adapters(params, options, selection, jax.random.key(0)).adapters,
        abstract_params(config),
    )
    layout = plan_layout(config, dict.fromkeys(flatten(adapters), True), tree=adapters)
    places = flatten(tree_shardings(to_runtime(layout, adapters), mesh(fsdp=2, tensor=2)))
    assert places.keys() == flatten(to_runtime(layout, adapters)).keys()
    whole = mesh(fsdp=2, tensor=2)
    for module in ("attention/query", "attention/output", "mlp/up", "mlp/down"):
        folder = f"layers/0/{module}"
        inputs, outputs = leaf_spec(f"{folder}/kernel", (32, 48), whole)
        assert leaf_spec(f"{folder}/lora_a", (32, 4), whole) == PartitionSpec(inputs, None)
        assert leaf_spec(f"{folder}/lora_b", (4, 48), whole) == PartitionSpec(None, outputs)
        assert leaf_spec(f"segments/0/0/{module}/lora_scale", (4,), whole) == PartitionSpec(None)
