from __future__ import annotations

import pytest

from jaxrecipes.plan.hlo import Account, CustomCall
from jaxrecipes.plan.kernels import kernel_flops
from tests.tiny import tiny_config

HEADS, WIDTH, LENGTH, ROWS = 4, 8, 16, 3


def account(*calls: tuple[str, int], target: str = "tpu_custom_call") -> Account:
    return Account(0, 0, (), tuple(CustomCall(target, name, count) for name, count in calls), 0)


def one_product(window: int | None = None) -> int:
    """Counted pair by pair: every query with every key that it sees."""
    seen = [
        1
        for query in range(LENGTH)
        for key in range(query + 1)
        if window is None or query - key < window
    ]
    return 2 * len(seen) * WIDTH * HEADS * ROWS


def count(found: Account, kind: str = "llama", tensor: int = 1, **changes: object) -> float:
    config = tiny_config(kind, **changes)
    return kernel_flops(found, config, tokens=ROWS * LENGTH, row_length=LENGTH, tensor=tensor)


@pytest.mark.parametrize(
    ("calls", "products"),
    [
        ([("splash_mha_fwd_segmented_residuals", 4)], 8),
        ([("splash_mha_fwd_segmented_residuals", 8), ("splash_mha_dq_segmented", 4)], 28),
        ([("splash_mha_dq_segmented", 4), ("splash_mha_dkv_segmented", 4)], 28),
        ([("splash_mha_dkv_segmented", 4)], 20),  # alone: the fused backward kernel
        ([("somebody_elses_kernel", 4)], 0),
    ],
)
def test_products_of_splash(calls, products):
    assert count(account(*calls)) == products * one_product()


def test_heads_are_shared_by_the_tensor_axis():
    found = account(("splash_mha_fwd", 1))
    assert count(found, tensor=2) == count(found) / 2


def test_a_window_hides_keys():
    found = account(("splash_mha_fwd", 2))
    # One layer with a window of five, one without.
    expected = 2 * (one_product() + one_product(5))
    assert count(found, "sliding", num_layers=2) == expected


def test_cudnn_kernels():
    forward = account(("call", 2), target="__cudnn$fmhaSoftmax")
    backward = account(("call", 2), target="__cudnn$fmhaSoftmaxBackward")
    assert count(forward) == 4 * one_product()
    assert count(backward) == 10 * one_product()
