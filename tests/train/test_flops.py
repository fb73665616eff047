import jax
import jax.numpy as jnp
import pytest

from jaxrecipes.train.flops import count_flops


def shapes(*dimensions):
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in dimensions]


def test_a_product_counts_two_operations_a_multiply_add():
    assert count_flops(jnp.matmul, *shapes((3, 5), (5, 7))) == 2 * 3 * 5 * 7
    batched = count_flops(
        lambda a, b: jnp.einsum("bij,bjk->bik", a, b), *shapes((4, 3, 5), (4, 5, 7))
    )
    assert batched == 4 * 2 * 3 * 5 * 7


def test_a_scan_counts_as_often_as_it_runs_and_unrolling_changes_nothing():
    def scanned(x, ws):
        return jax.lax.scan(lambda c, w: (jax.checkpoint(jnp.tanh)(c @ w), None), x, ws)[0].sum()

    def unrolled(x, ws):
        for index in range(6):
            x = jnp.tanh(x @ ws[index])
        return x.sum()

    arguments = shapes((2, 8), (6, 8, 8))
    forward = 6 * 2 * 2 * 8 * 8
    for function in (scanned, unrolled):
        assert count_flops(function, *arguments) == forward
        # dx of the first layer is not needed when only weights are asked for.
        assert count_flops(jax.grad(function, (0, 1)), *arguments) == 3 * forward
    assert count_flops(jax.grad(unrolled, 1), *arguments) == 3 * forward - forward // 6


def test_work_that_nobody_reads_is_free():
    def function(x):
        x @ x
        return x + 1

    assert count_flops(function, *shapes((8, 8))) == 0


@pytest.mark.parametrize("wrapper", [jax.jit, jax.checkpoint, jax.vmap])
def test_calls_are_followed(wrapper):
    assert (
        count_flops(wrapper(lambda x: jnp.einsum("...ij,...kj->...ik", x, x)), *shapes((3, 4, 5)))
        > 0
    )
