"""Operations of one HLO instruction: dots, convolutions (how TPUs write dots) and GEMM calls."""

from __future__ import annotations

import functools
import math
import re

import numpy as np

from jaxrecipes.plan.hlo_shapes import shapes
from jaxrecipes.plan.hlo_text import Computation, Instruction

# What cuBLAS calls are named in a GPU's program: they stand for one dot each.
_GEMM_TARGETS = ("__cublas$gemm", "__cublas$lt$matmul", "__cublas$lt$matmul$f8", "__triton$gemm")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_GROUPS = re.compile(r"(feature|batch)_group_count=(\d+)")


def instruction_flops(computation: Computation, instruction: Instruction) -> int:
    """Counts an instruction's matrix-product operations, two a multiply-add.

    Args:
        computation: Where the instruction is.
        instruction: Any instruction.

    Returns:
        2 x rows x columns x contracted (x batch) of a product; 0 for everything else.
    """
    if instruction.opcode == "dot":
        contracted = _numbers(instruction.attribute("lhs_contracting_dims") or "")
        return _product(computation, instruction, contracted)
    if instruction.opcode == "convolution":
        return _convolution(computation, instruction)
    if instruction.opcode == "custom-call" and gemm_call(instruction):
        found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.rest)
        return _product(computation, instruction, _numbers(found[1])) if found else 0
    return 0


def gemm_call(instruction: Instruction) -> bool:
    """Tells whether a custom call is a matrix product whose operations are counted."""
    return any(f'custom_call_target="{target}"' in instruction.rest for target in _GEMM_TARGETS)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _product(computation: Computation, instruction: Instruction, contracted: list[int]) -> int:
    left = shapes(computation.operand_type(instruction, 0))
    result = shapes(instruction.type)
    if not left or not result:
        return 0
    depth = math.prod(left[0].dimensions[axis] for axis in contracted)
    return 2 * math.prod(result[0].dimensions) * depth


def _convolution(computation: Computation, instruction: Instruction) -> int:
    """Counts 2 x batch x output features x input features x the pairs that really meet.

    A batched dot becomes a convolution with the batch as a window that is dilated or padded so
    that every output position meets one kernel position; the rest is multiplication by zero, which
    the hardware skips.
    """
    labels = _LABELS.search(instruction.rest)
    left = shapes(computation.operand_type(instruction, 0))
    kernel = shapes(computation.operand_type(instruction, 1))
    output = shapes(instruction.type)
    if labels is None or not (left and kernel and output):
        return 0
    groups = {kind: int(size) for kind, size in _GROUPS.findall(instruction.rest)}
    window = _window(instruction.rest)
    spatial = [mark for mark in labels[3] if mark.isdigit()]
    pairs = 1
    for mark in spatial:
        settings = {name: values[int(mark)] for name, values in window.items()}
        pairs *= _meeting_pairs(
            left[0].dimensions[labels[1].index(mark)],
            kernel[0].dimensions[labels[2].index(mark)],
            output[0].dimensions[labels[3].index(mark)],
            *(settings.get(name, 1) for name in ("stride", "lhs_dilate", "rhs_dilate")),
            settings.get("pad", 0),
        )
    batch = output[0].dimensions[labels[3].index("b")] // groups.get("batch", 1)
    features = output[0].dimensions[labels[3].index("f")]
    # The kernel's input features are already divided by the feature groups.
    depth = kernel[0].dimensions[labels[2].index("i")]
    return 2 * batch * features * depth * pairs


def _window(text: str) -> dict[str, list[int]]:
    """Reads "size=2x16 stride=1x15 pad=0_0x3_3": the padding before is all that matters."""
    found = _WINDOW.search(text)
    settings = dict(part.split("=") for part in found[1].split()) if found else {}
    return {
        name: [int(value.split("_")[0]) for value in settings[name].split("x")]
        for name in ("stride", "pad", "lhs_dilate", "rhs_dilate")
        if name in settings
    }


@functools.lru_cache(maxsize=4096)
def _meeting_pairs(
    size: int, kernel: int, output: int, stride: int, dilate: int, kernel_dilate: int, pad: int
) -> int:
    """Counts (output position, kernel position) pairs that read a real input element."""
    if size == kernel == output == 1:
        return 1
    # Position o reads k where 0 <= o * stride + k * kernel_dilate - pad <= last, a multiple of
    # `dilate`: for each o an arithmetic progression of k, which is counted and not listed.
    first = np.arange(output, dtype=np.int64) * stride - pad
    common = math.gcd(kernel_dilate, dilate)
    period = dilate // common
    inverse = pow(kernel_dilate // common, -1, period)
    start = -(first // common) * inverse % period
    last = (size - 1) * dilate
    low = np.maximum(-(first // kernel_dilate), 0)
    high = np.minimum((last - first) // kernel_dilate, kernel - 1)
    counts = (high - start) // period - (low - 1 - start) // period
    return int(counts[(first % common == 0) & (high >= low)].sum())
