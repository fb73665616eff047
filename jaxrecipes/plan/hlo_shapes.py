"""Shapes in HLO text: "bf16[8,4096]{1,0:T(8,128)(2,1)}" and tuples of them."""

from __future__ import annotations

import functools
import math
import re
from typing import NamedTuple

# Bits of an element; fp8 variants and anything else that ends in a number carry it in their name.
_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,<=]*)\]")
_NUMBER = re.compile(r"\d+")


class Shape(NamedTuple):
    """One array: HLO element type ("bf16") and dimensions."""

    element_type: str
    dimensions: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes without padding."""
        return -(-math.prod(self.dimensions) * element_bits(self.element_type) // 8)


def element_bits(element_type: str) -> int:
    """Returns the bits of one element: 16 for "bf16", 8 for "f8e4m3fn", 4 for "s4"."""
    if element_type in _BITS:
        return _BITS[element_type]
    found = _NUMBER.search(element_type)
    return int(found[0]) if found else 0


def shapes(text: str) -> list[Shape]:
    """Lists the arrays of an HLO type: one for an array, all leaves for a tuple."""
    return [
        Shape(kind, tuple(int(n.lstrip("<=")) for n in dimensions.split(",") if n))
        for kind, dimensions in _ARRAY.findall(text)
    ]


@functools.lru_cache(maxsize=65536)
def shape_bytes(text: str) -> int:
    """Returns the bytes of all arrays of an HLO type, without padding."""
    return sum(shape.size for shape in shapes(text))
