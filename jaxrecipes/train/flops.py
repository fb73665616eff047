"""Floating point operations of a function, counted in its jaxpr with loops multiplied out.

The compiler's own cost analysis counts the body of a loop once, so it cannot compare a scanned
model with an unrolled one. Counted are matrix products (two operations a multiply-add), which are
over 99 % of a transformer's work; a masked product counts in full.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Counts the operations that a call executes.

    Dead code is removed first, as the compiler does: a gradient that nobody reads costs nothing.

    Args:
        function: A function of trees of arrays.
        *arguments: Arrays or `jax.ShapeDtypeStruct`s.

    Returns:
        Executed operations of all matrix products. The branch of a `cond` with the most operations
        counts; a `while` without a known number of rounds counts as one round.
    """
    from jax._src.interpreters import partial_eval

    closed = jax.make_jaxpr(function)(*arguments)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _count(jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _product(equation)
        elif name == "scan":
            total += equation.params["length"] * _count(equation.params["jaxpr"].jaxpr)
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in equation.params["branches"])
        else:
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda value: _body(value) is not None
            ):
                body = _body(inner)
                if body is not None:
                    total += _count(body)
    return total


def _body(value: Any) -> Any:
    if isinstance(value, core.ClosedJaxpr):
        return value.jaxpr
    return value if isinstance(value, core.Jaxpr) else None


def _product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
