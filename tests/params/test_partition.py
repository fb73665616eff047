import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrecipes.params.partition import combine, partition
from jaxrecipes.params.paths import flatten, unflatten

trees = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, min_size=1)
).filter(lambda tree: isinstance(tree, dict))


@given(trees, st.data())
def test_the_parts_are_disjoint_and_combine_to_the_whole(tree, data):
    leaves = flatten(tree)
    chosen = {path for path in leaves if data.draw(st.booleans())}
    first, second = partition(tree, lambda path: path in chosen)
    assert set(flatten(first)) == chosen
    assert set(flatten(second)) == set(leaves) - chosen
    assert combine(first, second) == unflatten(leaves) == combine(second, first)


def test_a_leaf_in_both_trees_is_an_error():
    with pytest.raises(ValueError, match="'b'"):
        combine({"a": {"b": 1}}, {"a": {"b": 2}})


def test_a_path_cannot_be_leaf_and_parent():
    with pytest.raises(ValueError):
        unflatten({"a": 1, "a/b": 2})
