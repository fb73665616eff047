"""What a request accepts, and what its key depends on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from jaxrecipes.errors import DataError
from jaxrecipes.generate.sampling import Sampling
from jaxrecipes.generate.teacher import Message, Request

ASKED = Request("a", messages=(Message("user", "Why?"),))


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": (Message("user", "Why not?"),)},
        {"messages": (Message("system", "Why?"),)},
        {"messages": (), "prompt": "Why?"},
        {"max_new_tokens": 3},
        {"sampling": Sampling(temperature=1.0)},
        {"stop": ("\n",)},
        {"seed": 1},
    ],
)
def test_whatever_shapes_an_answer_shapes_its_key(changes: dict[str, Any]):
    assert dataclasses.replace(ASKED, **changes).key != ASKED.key


def test_the_id_does_not_shape_the_key():
    assert dataclasses.replace(ASKED, id="b").key == ASKED.key


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"messages": ()}, "either messages or a prompt"),
        ({"prompt": "x"}, "either messages or a prompt"),
        ({"messages": (Message("boss", "x"),)}, "role 'boss'"),  # type: ignore[arg-type]
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"stop": ("\n", "")}, "empty stop text"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(changes: dict[str, Any], said: str):
    with pytest.raises(DataError, match=f"request 'a': .*{said}"):
        dataclasses.replace(ASKED, **changes)
