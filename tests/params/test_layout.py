import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.models import decoder
from jaxrecipes.params.layout import (
    canonical_paths,
    plan_layout,
    runtime_labels,
    runtime_path,
    to_canonical,
    to_runtime,
)
from jaxrecipes.params.partition import partition
from jaxrecipes.params.paths import flatten
from jaxrecipes.params.rules import label
from tests.tiny import KINDS, packed_batch, tiny_config, tiny_params

patterns = st.lists(st.booleans(), min_size=1, max_size=24)


def labels_for(config, trained):
    chosen = {index for index, trains in enumerate(trained) if trains}
    return {
        path: path.startswith("layers/") and int(path.split("/")[1]) in chosen
        for path in flatten(decoder.abstract_params(config))
    }


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(patterns, st.sampled_from(["llama", "sliding"]))
def test_every_layer_is_in_one_run_and_a_run_has_one_kind(trained, kind):
    config = tiny_config(kind, num_layers=len(trained))
    layout = plan_layout(config, labels_for(config, trained))
    seen = []
    for _, segment, run in layout.runs():
        indices = [index for row in segment.run_layers(run) for index in row]
        seen += indices
        assert len({(config.layer_types[index], trained[index]) for index in indices}) == 1
    assert sorted(seen) == list(range(len(trained)))
    lowest = trained.index(True) if any(trained) else len(trained)
    assert all(s.stop <= lowest or s.start >= lowest for s in layout.segments)


@settings(deadline=None, max_examples=40)
@given(patterns, st.randoms())
def test_runtime_and_canonical_are_inverse_also_for_half_a_tree(trained, random):
    config = tiny_config(num_layers=len(trained))
    layout = plan_layout(config, labels_for(config, trained))
    tree = {
        "layers": {
            str(index): {"w": np.full((2, 3), index), "b": np.full(2, -index)}
            for index in range(len(trained))
        },
        "final_norm": {"scale": np.ones(2)},
    }
    labels = {path: index % 2 == 0 for index, path in enumerate(flatten(tree))}
    for part in (
        tree,
        *partition(
            tree,
            lambda path: trained[int(path.split("/")[1])] if path.startswith("layers/") else True,
        ),
    ):
        back = flatten(to_canonical(layout, to_runtime(layout, part)))
        assert set(back) == set(flatten(part))
        assert all(np.array_equal(back[path], leaf) for path, leaf in flatten(part).items())
    runtime = flatten(to_runtime(layout, tree))
    for path in runtime:
        for canonical in canonical_paths(layout, path):
            assert runtime_path(layout, canonical) == path
    assert set(runtime_labels(layout, labels)) == set(runtime)


def test_the_paper_s_shape_compiles_four_bodies_and_keeps_the_free_prefix():
    config = tiny_config(num_layers=40)
    new = set(range(4, 40, 5))
    layout = plan_layout(config, labels_for(config, [index in new for index in range(40)]))
    assert [(s.start, s.runs, s.repeats) for s in layout.segments] == [
        (0, (4,), 1),
        (4, (1,), 1),
        (5, (4, 1), 7),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_does_not_change_the_function(kind):
    config = tiny_config(kind, num_layers=7)
    params = tiny_params(config)
    batch = packed_batch(config)
    arguments = (batch["token_ids"], batch["segment_ids"], batch["positions"])
    canonical = jax.jit(lambda p: decoder.hidden_states(config, p, *arguments))(params)
    for rules in ([(".*", True)], [("layers/(2|4|6)/.*", True), (".*", False)]):
        layout = plan_layout(config, label(params, rules))
        stacked = to_runtime(layout, params)
        states = jax.jit(
            lambda p, layout=layout: decoder.hidden_states(config, p, *arguments, layout=layout)
        )(stacked)
        np.testing.assert_allclose(states, canonical, atol=2e-6, rtol=1e-5)


def test_shapes_are_stacked_like_arrays():
    config = tiny_config(num_layers=6)
    params = tiny_params(config)
    layout = plan_layout(config, labels_for(config, [False, True, False] * 2))
    shapes = flatten(to_runtime(layout, decoder.abstract_params(config)))
    arrays = flatten(to_runtime(layout, params))
    assert {path: leaf.shape for path, leaf in shapes.items()} == {
        path: leaf.shape for path, leaf in arrays.items()
    }
    back = flatten(to_canonical(layout, to_runtime(layout, decoder.abstract_params(config))))
    assert all(back[path].shape == leaf.shape for path, leaf in flatten(params).items())
    assert isinstance(
        flatten(to_runtime(layout, jax.tree.map(jnp.asarray, params)))["final_norm/scale"],
        jax.Array,
    )
