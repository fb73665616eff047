import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrecipes.errors import CheckpointError, ConfigError
from jaxrecipes.models import decoder
from jaxrecipes.params.delta import extract_delta, merge_delta
from jaxrecipes.params.expansion import block_order, expand_blocks, switch_off_new_blocks
from jaxrecipes.params.layout import plan_layout, to_runtime
from jaxrecipes.params.paths import flatten
from jaxrecipes.params.rules import label
from jaxrecipes.params.surgery import layers_pattern
from jaxrecipes.train.causal_loss import batch_loss
from tests.tiny import KINDS, packed_batch, tiny_config, tiny_params


def states(config, params, batch, dtype=jnp.float32):
    layout = plan_layout(config, label(params, [(".*", True)]))
    arguments = (batch["token_ids"], batch["segment_ids"], batch["positions"])
    function = jax.jit(
        lambda p: decoder.hidden_states(config, p, *arguments, layout=layout, compute_dtype=dtype)
    )
    return function(to_runtime(layout, params))


@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 4))
def test_interleaved_groups_cover_the_base_in_order(layers, groups, per_group):
    if groups * per_group > layers:
        with pytest.raises(ConfigError):
            block_order(layers, groups * per_group, "interleaved", per_group)
        return
    order = block_order(layers, groups * per_group, "interleaved", per_group)
    assert [source for source, new in order if not new] == list(range(layers))
    assert sum(new for _, new in order) == groups * per_group
    # Right above each group: copies of its top blocks, in order.
    sizes, run = [], 0
    for place, (source, new) in enumerate(order):
        if not new:
            run += 1
        elif not order[place - 1][1]:
            sizes.append(run)
            run = 0
            copies = [s for s, _ in order[place : place + per_group]]
            assert copies == list(range(order[place - 1][0] - per_group + 1, source + per_group))
    assert max(sizes) - min(sizes) <= 1 and sum(sizes) == layers


def test_the_published_positions():
    def places(*arguments):
        return [i for i, (_, new) in enumerate(block_order(*arguments)) if new]

    assert places(32, 8, "interleaved", 1) == list(range(4, 40, 5))
    assert places(30, 5, "interleaved", 1) == [6, 13, 20, 27, 34]
    assert places(12, 4, "interleaved", 2) == [6, 7, 14, 15]
    assert places(10, 3, "prefix", 1) == [0, 1, 2]
    assert places(10, 3, "suffix", 1) == [10, 11, 12]
    assert block_order(4, 2, [0, 5], 1) == [
        (0, True),
        (0, False),
        (1, False),
        (2, False),
        (3, False),
        (3, True),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((30, 0, "interleaved", 1), "at least one"),
        ((30, 5, "interleaved", 2), "multiple of per_group"),
        ((4, 5, "interleaved", 1), "the model has 4"),
        ((4, 5, "prefix", 1), "only 4 blocks"),
        ((4, 2, [1], 1), "lists 1 positions"),
        ((4, 2, [3, 9], 1), "0 to 5"),
        ((4, 2, [3, 3], 1), "increasing"),
        ((4, 2, "middle", 1), "expected interleaved"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        block_order(*arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("placement", ["interleaved", "prefix", "suffix", [0, 3, 7]])
def test_an_identity_expansion_is_bit_equal_to_the_base(kind, placement):
    config = tiny_config(kind, num_layers=6)
    params, batch = tiny_params(config), packed_batch(tiny_config(kind))
    expanded = expand_blocks(config, params, new_blocks=3, placement=placement)
    assert expanded.config.num_layers == 9 == len(expanded.config.layer_types)
    assert np.array_equal(
        states(config, params, batch), states(expanded.config, expanded.params, batch)
    )


@pytest.mark.parametrize("init", ["copy", "random"])
def test_the_controls_do_change_the_function(init):
    config = tiny_config()
    params, batch = tiny_params(config), packed_batch(config)
    expanded = expand_blocks(config, params, new_blocks=2, init=init, key=jax.random.key(0))
    difference = states(config, params, batch) - states(expanded.config, expanded.params, batch)
    assert np.abs(difference).max() > 1e-2


def test_random_blocks_need_a_key_and_an_unknown_init_is_named():
    config = tiny_config()
    with pytest.raises(ConfigError, match="key"):
        expand_blocks(config, tiny_params(config), new_blocks=1, init="random")
    with pytest.raises(ConfigError, match="expected identity, copy or random"):
        expand_blocks(config, tiny_params(config), new_blocks=1, init="zero")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", pytest.param("sandwich", marks=pytest.mark.long)])
def test_the_first_gradient_reaches_exactly_the_leaves_that_open_the_block(kind):
    config = tiny_config(kind, num_layers=4)
    expanded = expand_blocks(config, tiny_params(config), new_blocks=2)
    batch = packed_batch(config)

    def loss(params):
        return batch_loss(expanded.config, params, batch)

    gradient = flatten(jax.grad(loss)(expanded.params))
    sandwich = kind == "sandwich"
    opened = (
        ("_post_norm/scale",)
        if sandwich
        else (
            "attention/output/kernel",
            "mlp/down/kernel",
            "attention/output/bias",
            "mlp/down/bias",
        )
    )
    for path, leaf in gradient.items():
        for position in expanded.positions:
            if path.startswith(f"layers/{position}/"):
                assert bool(np.any(leaf != 0)) == path.endswith(opened), path
    # One small step later every leaf of the new blocks learns.
    moved = jax.tree.map(
        lambda p, g: p - 1e-4 * np.sign(g), expanded.params, jax.grad(loss)(expanded.params)
    )
    for path, leaf in flatten(jax.grad(loss)(moved)).items():
        if any(path.startswith(f"layers/{position}/") for position in expanded.positions):
            assert np.abs(leaf).max() > 1e-8, path


@pytest.mark.parametrize("kind", KINDS)
def test_switching_the_new_blocks_off_gives_the_base_back_whatever_they_learned(kind):
    config = tiny_config(kind, num_layers=5)
    params = tiny_params(config)
    expanded = expand_blocks(config, params, new_blocks=2)
    trained = dict(expanded.params)
    trained["layers"] = {
        index: jax.tree.map(lambda leaf: leaf + 1.0, block)
        if int(index) in expanded.positions
        else block
        for index, block in expanded.params["layers"].items()
    }
    back_config, back = switch_off_new_blocks(expanded.config, trained)
    assert back_config == config
    assert all(np.array_equal(flatten(back)[path], leaf) for path, leaf in flatten(params).items())

    delta = extract_delta(expanded.config, trained)
    assert len(flatten(delta.blocks)) == 2 * len(flatten(params["layers"]["0"]))
    merged_config, merged = merge_delta(config, params, delta)
    assert merged_config == expanded.config
    assert all(np.array_equal(flatten(merged)[p], leaf) for p, leaf in flatten(trained).items())


def test_a_delta_refuses_another_base():
    config = tiny_config()
    expanded = expand_blocks(config, tiny_params(config), new_blocks=1)
    delta = extract_delta(expanded.config, expanded.params)
    with pytest.raises(CheckpointError, match="another|this one has"):
        merge_delta(config, tiny_params(config, seed=1), delta)


def test_a_base_has_nothing_to_switch_off():
    config = tiny_config()
    with pytest.raises(ConfigError, match="no new blocks"):
        switch_off_new_blocks(config, tiny_params(config))


def test_a_second_expansion_counts_the_first_as_inherited():
    config = tiny_config(num_layers=4)
    first = expand_blocks(config, tiny_params(config), new_blocks=2)
    second = expand_blocks(first.config, first.params, new_blocks=3)
    assert second.config.num_layers == 9
    assert switch_off_new_blocks(second.config, second.params)[0].num_layers == 6
    assert layers_pattern(second.positions) == "layers/(2|5|8)/.*"


def test_new_blocks_share_no_array_with_their_source():
    config = tiny_config()
    params = jax.tree.map(jnp.asarray, tiny_params(config))
    for init in ("identity", "copy"):
        expanded = expand_blocks(config, params, new_blocks=2, init=init)
        for position, source in zip(expanded.positions, expanded.sources, strict=True):
            new = flatten(expanded.params["layers"][str(position)])
            old = flatten(params["layers"][str(source)])
            assert all(new[path] is not old[path] for path in old)
            assert all(
                new[path].unsafe_buffer_pointer() != old[path].unsafe_buffer_pointer()
                for path in old
                if isinstance(new[path], jax.Array)
            )


@pytest.mark.parametrize("kind", KINDS)
def test_tracing_an_expansion_makes_no_arrays(kind):
    """A plan of a large model expands shapes: the identity blocks' zeros are not computed."""
    config = tiny_config(kind)
    shapes = decoder.abstract_params(config)

    def expand(params):
        return expand_blocks(config, params, new_blocks=2).params

    traced = jax.make_jaxpr(expand)(shapes)
    assert sum(np.size(constant) for constant in traced.consts) == 0
