from __future__ import annotations

import pytest

from jaxrecipes.data.documents import Document
from jaxrecipes.data.split import Split, is_held_out, select_part
from jaxrecipes.errors import ConfigError


def parts(documents, seed=0, held_out=0.2):
    return [
        {d.id for d in select_part(documents, Split(part, held_out, seed))}
        for part in ("train", "held_out")
    ]


def test_the_parts_are_disjoint_complete_and_of_about_the_wanted_size():
    documents = [Document(str(i), f"text {i}") for i in range(5000)]
    train, held_out = parts(documents)
    assert train | held_out == {d.id for d in documents}
    assert not train & held_out
    assert 850 < len(held_out) < 1150  # 1000 +- 5.3 sigma
    assert parts(documents, seed=1)[1] != held_out


def test_a_document_keeps_its_side_whatever_stands_around_it():
    documents = [Document(str(i), f"text {i}") for i in range(300)]
    train, held_out = parts(documents)
    fewer = parts(list(reversed(documents))[::3])
    assert fewer[0] <= train and fewer[1] <= held_out


def test_copies_and_groups_stay_on_one_side():
    copies = [Document(f"{i}-{j}", f"text {i}") for i in range(200) for j in range(2)]
    groups = [Document(f"{i}-{j}", f"{i} {j}", f"g{i}") for i in range(200) for j in range(3)]
    for documents in (copies, groups):
        train, held_out = parts(documents)
        assert not {i.split("-")[0] for i in train} & {i.split("-")[0] for i in held_out}
        assert train and held_out


def test_the_hash_is_the_same_for_ever():
    # Written down once: another Python, platform or version must give the same split.
    assert [is_held_out(key, held_out=0.5, seed=3) for key in "abcdefgh"] == [
        False,
        False,
        True,
        False,
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("held_out", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_outside_of_its_range_is_a_config_error(held_out):
    with pytest.raises(ConfigError, match="held_out"):
        Split("train", held_out)
    with pytest.raises(ConfigError, match="part"):
        Split("test", 0.5)  # type: ignore[arg-type]
