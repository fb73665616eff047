"""Operations inside attention kernels, which the compiler cannot count.

Splash attention computes two products of a query with a key or value in its forward kernel. Its
backward pass is two kernels that each compute the logits again: three products for the gradient of
the query, four for those of key and value, seven together, where the mathematics needs four. Where
one block holds all keys a single kernel does it with five. Counted are the keys that a query sees
by causality and window; the kernel works on whole blocks and so does somewhat more.
"""

from __future__ import annotations

from jaxrecipes.models.config import ModelConfig
from jaxrecipes.plan.flops import step_flops
from jaxrecipes.plan.hlo import Account, CustomCall

FORWARD, BACKWARD_QUERY, BACKWARD_KEY_VALUE, BACKWARD_FUSED = 2, 3, 4, 5


def kernel_flops(
    account: Account, config: ModelConfig, *, tokens: int, row_length: int, tensor: int
) -> float:
    """Counts the operations of the attention kernels of a step.

    Args:
        account: Of the compiled step: which kernels, how often.
        config: The model.
        tokens: Query tokens of one device at one call of a kernel.
        row_length: Tokens of a row.
        tensor: Devices that share the heads.

    Returns:
        Operations of one device in one step, two a multiply-add. Layers with a sliding window and
        without count as their mean.
    """
    whole = step_flops(config, tokens=tokens, row_length=row_length)
    product = whole.attention_forward / 2 / config.num_layers / tensor
    names = [call.name for call in account.custom_calls]
    fused = not any("dq" in name for name in names)
    return float(
        sum(call.count * _products(call, fused) * product for call in account.custom_calls)
    )


def _products(call: CustomCall, fused: bool) -> int:
    if "fmha" in call.target:  # cuDNN's flash attention
        return BACKWARD_FUSED if "Backward" in call.target else FORWARD
    if "splash" not in call.name:
        return 0
    if "dkv" in call.name:
        return BACKWARD_FUSED if fused else BACKWARD_KEY_VALUE
    return BACKWARD_QUERY if "dq" in call.name else FORWARD
