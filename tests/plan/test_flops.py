"""The hand count against the jaxpr of the real gradient, and against the compiled program."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxrecipes.checkpoint.peft_names import decoder_modules
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import abstract_params
from jaxrecipes.params.layout import plan_layout, to_runtime
from jaxrecipes.params.lora import adapter_ranks, adapter_rules, build_adapters
from jaxrecipes.params.lora_options import AdapterOptions
from jaxrecipes.params.lora_targets import select_modules
from jaxrecipes.params.partition import combine, partition
from jaxrecipes.params.rules import label
from jaxrecipes.plan.flops import step_flops
from jaxrecipes.plan.hlo import account
from jaxrecipes.train.causal_loss import batch_loss
from jaxrecipes.train.flops import count_flops
from tests.tiny import KINDS, tiny_config

ROWS, LENGTH = 2, 16
FULL = r".*"
EXPANSION = r"layers/(1|3)/.*"
TOP = r"layers/3/.*|final_norm/.*|head/.*"
MLP = r"layers/2/mlp/.*"


def gradient_of(config, pattern, remat, scanned, labels=None, tree=None):
    labels = labels or label(abstract_params(config), [(pattern, True), (r".*", False)])
    layout = plan_layout(config, labels, tree=tree) if scanned else None

    def gradient(params, batch):
        trainable, frozen = partition(params, labels.__getitem__)
        if layout is not None:
            trainable, frozen = to_runtime(layout, trainable), to_runtime(layout, frozen)

        def loss(trainable):
            return batch_loss(
                config,
                combine(trainable, frozen),
                batch,
                layout=layout,
                remat=remat,
                loss_chunk=ROWS * LENGTH,
            )

        return jax.value_and_grad(loss)(trainable)

    shape = (ROWS, LENGTH)
    integers = ("token_ids", "segment_ids", "positions")
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in integers}
    batch["loss_mask"] = jax.ShapeDtypeStruct(shape, jnp.bool_)
    return gradient, (abstract_params(config), batch), labels.__getitem__


@pytest.mark.parametrize("pattern", [FULL, EXPANSION, TOP, MLP])
@pytest.mark.parametrize("kind", KINDS)
def test_model_operations_are_those_of_the_gradient(kind, pattern):
    config = tiny_config(kind)
    gradient, arguments, trains = gradient_of(config, pattern, "none", scanned=False)
    expected = step_flops(
        config, tokens=ROWS * LENGTH, row_length=LENGTH, trains=trains, seen_keys_only=False
    )
    assert expected.model == expected.executed
    assert expected.model == count_flops(gradient, *arguments)


@pytest.mark.parametrize(
    "options",
    [
        AdapterOptions(rank=4, rank_pattern={r"layers\.1\..*": 2}),
        AdapterOptions(
            rank=4, targets=("q_proj", "k_proj", "v_proj", "down_proj"), layers_to_transform=(1, 3)
        ),
        AdapterOptions(rank=4, targets=("q_proj",), embeddings=True),
    ],
    ids=["all_linear", "some", "embeddings"],
)
@pytest.mark.parametrize("remat", ["none", "full"])
def test_operations_of_adapters_are_those_of_the_gradient(options, remat):
    config = tiny_config("llama")
    selection = select_modules(options, decoder_modules(config))

    def adapted(params):
        made = build_adapters(params, options, selection, jax.random.key(0))
        return combine(made.adapters, made.base)

    tree = jax.eval_shape(adapted, abstract_params(config))
    trains = label(tree, adapter_rules(selection))
    gradient, (_, batch), _ = gradient_of(
        config, FULL, remat, scanned=remat == "full", labels=trains, tree=tree
    )
    expected = step_flops(
        config,
        tokens=ROWS * LENGTH,
        row_length=LENGTH,
        trains=trains.__getitem__,
        ranks=adapter_ranks(tree),
        recompute=remat == "full",
        seen_keys_only=False,
    )
    assert expected.executed == count_flops(gradient, tree, batch)


@pytest.mark.parametrize("pattern", [FULL, EXPANSION, TOP])
@pytest.mark.parametrize("kind", ["llama", "sandwich"])
def test_executed_operations_are_those_of_the_rematerialised_gradient(kind, pattern):
    config = tiny_config(kind)
    gradient, arguments, trains = gradient_of(config, pattern, "full", scanned=True)
    expected = step_flops(
        config,
        tokens=ROWS * LENGTH,
        row_length=LENGTH,
        trains=trains,
        recompute=True,
        seen_keys_only=False,
    )
    assert expected.recomputed > 0
    assert expected.executed == count_flops(gradient, *arguments)


@pytest.mark.parametrize("pattern", [FULL, r"layers/[135]/.*"])
def test_the_compiled_step_executes_the_hand_count(pattern):
    # Everything that trains is in a scan. Outside of one the compiler for CPUs merges products
    # of a trained layer with their repetition, in spite of the barrier.
    given = tiny_config("untied")
    config = dataclasses.replace(given, num_layers=7, layer_types=7 * given.layer_types[:1])
    gradient, arguments, trains = gradient_of(config, pattern, "full", scanned=True)
    compiled = jax.jit(gradient).lower(*arguments).compile()
    expected = step_flops(
        config,
        tokens=ROWS * LENGTH,
        row_length=LENGTH,
        trains=trains,
        recompute=True,
        seen_keys_only=False,
    )
    found = account(compiled.as_text())
    assert found.unknown_loops == 0
    assert found.matmul_flops == expected.executed


def llama(layers: int = 32) -> ModelConfig:
    """Llama 3.1 8B."""
    return ModelConfig(
        family="llama",
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_layers=layers,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_position_embeddings=131_072,
        layer_types=("full_attention",) * layers,
        query_scale=128**-0.5,
        tie_embeddings=False,
    )


def test_llama_8b_at_4096_tokens_a_chip():
    count = step_flops(llama(), tokens=4096, row_length=4096, recompute=True)
    # What the TPU's program shows when attention is a kernel and every layer is rematerialised.
    assert count.products / 1e12 == pytest.approx(226.2, abs=0.1)
    # 6 x 7.50 billion weights in products x 4096 tokens, without anything computed twice.
    assert (count.products - count.recomputed) / 1e12 == pytest.approx(184.4, abs=0.1)
    # With attention over the keys that are seen: half of all pairs and the diagonal.
    every_pair = step_flops(llama(), tokens=4096, row_length=4096, seen_keys_only=False)
    assert count.attention_forward == every_pair.attention_forward * 4097 // 8192


def test_block_expansion_against_the_full_step_as_in_the_freezing_table():
    config = llama(40)
    new = tuple(range(4, 40, 5))

    def trains(path):
        return any(path.startswith(f"layers/{index}/") for index in new)

    def ratio(recompute):
        parts = [
            step_flops(
                config, tokens=4096, row_length=4096, trains=one, recompute=recompute
            ).products
            for one in (trains, lambda path: True)
        ]
        return parts[0] / parts[1]

    # 84.0 of 120.5 and 102.0 of 140.5 layer passes; the head, which stays whole, moves it a bit.
    assert ratio(recompute=False) == pytest.approx(84.0 / 120.5, abs=0.02)
    assert ratio(recompute=True) == pytest.approx(102.0 / 140.5, abs=0.02)


def test_a_sliding_window_sees_fewer_keys():
    config = tiny_config("sliding")
    length = 64
    seen, every = (
        step_flops(config, tokens=length, row_length=length, seen_keys_only=flag)
        for flag in (True, False)
    )
    pairs = {True: 0, False: 0}
    for layer in range(config.num_layers):
        window = config.window(layer) or length
        pairs[True] += sum(min(q + 1, window) for q in range(length))
        pairs[False] += length * length
    width = config.num_heads * config.head_dim
    assert seen.attention_forward == 4 * width * pairs[True]
    assert every.attention_forward == 4 * width * pairs[False]
    assert seen.forward == every.forward
