"""Parameter-tree surgery: paths, rules, partition, run-time layout, block expansion, deltas."""

from jaxrecipes.params.delta import Delta, extract_delta, merge_delta
from jaxrecipes.params.expansion import Expansion, expand_blocks, switch_off_new_blocks
from jaxrecipes.params.layout import plan_layout, to_canonical, to_runtime
from jaxrecipes.params.partition import combine, partition
from jaxrecipes.params.paths import flatten, unflatten
from jaxrecipes.params.rules import label

__all__ = [
    "Delta",
    "Expansion",
    "combine",
    "expand_blocks",
    "extract_delta",
    "flatten",
    "label",
    "merge_delta",
    "partition",
    "plan_layout",
    "switch_off_new_blocks",
    "to_canonical",
    "to_runtime",
    "unflatten",
]
