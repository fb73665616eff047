"""The hand count of a training step's operations, from the model's shape and from what trains.

Convention: a product of [m, k] with [k, n] is 2 m k n operations. Counted are products with weights
and the two products of attention; embedding lookups, norms, rotations, softmax and the optimizer
are not. *Model* operations are those that the mathematics needs: the forward pass, and of the
backward pass what reaches a trained parameter (no weight gradient of a frozen weight, nothing below
the lowest trained one). They are the numerator of MFU (arXiv 2204.02311, appendix B). *Executed*
operations add what a rematerialised layer computes twice: the numerator of HFU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from jaxrecipes.models.config import ModelConfig


@dataclass(frozen=True)
class StepFlops:
    """Operations of one step, by part.

    Attributes:
        forward: Products with weights, forward pass.
        input_gradient: The same for gradients of activations.
        weight_gradient: The same for gradients of weights.
        recomputed: Products with weights that are computed again for the backward pass.
        attention_forward: Scores and weighted values, forward pass.
        attention_backward: Their four gradients.
        attention_recomputed: Scores and weighted values that are computed again.
    """

    forward: int
    input_gradient: int
    weight_gradient: int
    recomputed: int
    attention_forward: int
    attention_backward: int
    attention_recomputed: int

    @property
    def products(self) -> int:
        """Executed products with weights: what a program shows whose attention is a kernel."""
        return self.forward + self.input_gradient + self.weight_gradient + self.recomputed

    @property
    def model(self) -> int:
        """Model operations: without what is computed twice."""
        gradients = self.input_gradient + self.weight_gradient
        return self.forward + gradients + self.attention_forward + self.attention_backward

    @property
    def executed(self) -> int:
        """All operations, with what is computed twice."""
        return self.model + self.recomputed + self.attention_recomputed


def step_flops(
    config: ModelConfig,
    *,
    tokens: int,
    row_length: int,
    trains: Callable[[str], bool] = lambda path: True,
    ranks: Mapping[str, int] = MappingProxyType({}),
    recompute: bool = False,
    seen_keys_only: bool = True,
) -> StepFlops:
    """Counts a training step of a decoder.

    Args:
        config: The model.
        tokens: Tokens of the step, padding included. For the figure of one device: its share.
        row_length: Tokens of a row.
        trains: Says for a path of the canonical tree ("layers/7/mlp/up/kernel") whether it trains.
        ranks: Rank of the adapter beside a kernel, by its folder ("layers/7/mlp/up"), or of that of
            the "embedding". DoRA's norms, which do not grow with the tokens, are left out.
        recompute: Layers keep only their input (`train.remat: full`), and compute what their
            backward pass reads again: all but the last product, whose result nothing reads unless
            a norm follows it. Layers below the lowest trained parameter keep nothing anyway.
        seen_keys_only: Attention counts the keys that a query sees by causality and window, as an
            ideal kernel would (rows of one document; half of all pairs). False counts all pairs
            of a row, as the reference implementation computes them.

    Returns:
        The operations by part.
    """
    parts = dict.fromkeys(StepFlops.__annotations__, 0)
    query = config.num_heads * config.head_dim
    key_value = config.num_kv_heads * config.head_dim
    # The gradient reaches everything downstream of the lowest trained parameter.
    reached = trains("embedding/table") or "embedding" in ranks
    # The first product of an embedding's adapter is a lookup.
    looked_up = 2 * tokens * ranks.get("embedding", 0) * config.hidden_size
    parts["forward"] += looked_up
    parts["input_gradient"] += looked_up
    parts["weight_gradient"] += looked_up

    def product(inputs: int, outputs: int, path: str, *, again: bool, unread: bool = False) -> None:
        nonlocal reached
        one = 2 * tokens * inputs * outputs
        kernel = trains(f"{path}/kernel")
        parts["forward"] += one
        parts["input_gradient"] += one if needs_input_gradient else 0
        parts["weight_gradient"] += one if kernel else 0
        parts["recomputed"] += one if again and not unread else 0
        if path in ranks:
            first, second = (2 * tokens * ranks[path] * width for width in (inputs, outputs))
            parts["forward"] += first + second
            parts["input_gradient"] += (first if needs_input_gradient else 0) + second
            parts["weight_gradient"] += first + second
            # The gradient of B reads what A computed, also where nothing reads the result.
            parts["recomputed"] += (first if again else 0) + (second if again and not unread else 0)
        reached |= kernel or path in ranks or _has(f"{path}/bias")

    def _has(path: str) -> bool:
        return _exists(config, path) and trains(path)

    for index in range(config.num_layers):
        layer = f"layers/{index}"
        below = reached
        adapted = any(path.startswith(f"{layer}/") for path in ranks)
        again = recompute and (below or adapted or _any_trains(config, layer, trains))
        reached |= trains(f"{layer}/attention_norm/scale")
        needs_input_gradient = reached
        for name, width in (("query", query), ("key", key_value), ("value", key_value)):
            product(config.hidden_size, width, f"{layer}/attention/{name}", again=again)
        reached |= _has(f"{layer}/attention/query_norm/scale")
        reached |= _has(f"{layer}/attention/key_norm/scale")
        # Two products with head_dim terms a pair of positions and head.
        pairs = tokens * _keys(config, index, row_length, seen_keys_only)
        attention = int(4 * pairs * query)
        parts["attention_forward"] += attention
        parts["attention_backward"] += 2 * attention if reached else 0
        parts["attention_recomputed"] += attention if again else 0
        needs_input_gradient = reached
        product(query, config.hidden_size, f"{layer}/attention/output", again=again)
        reached |= _has(f"{layer}/attention_post_norm/scale") | trains(f"{layer}/mlp_norm/scale")
        needs_input_gradient = reached
        for name in ("gate", "up"):
            product(
                config.hidden_size, config.intermediate_size, f"{layer}/mlp/{name}", again=again
            )
        needs_input_gradient = reached
        unread = not config.sandwich_norms
        product(
            config.intermediate_size,
            config.hidden_size,
            f"{layer}/mlp/down",
            again=again,
            unread=unread,
        )
        reached |= _has(f"{layer}/mlp_post_norm/scale")

    head = 2 * tokens * config.hidden_size * config.vocab_size
    reached |= trains("final_norm/scale")
    parts["forward"] += head
    parts["input_gradient"] += head if reached else 0
    trained_head = trains("embedding/table" if config.tie_embeddings else "head/kernel")
    parts["weight_gradient"] += head if trained_head else 0
    return StepFlops(**parts)


def _keys(config: ModelConfig, layer: int, length: int, seen_only: bool) -> float:
    """Returns the mean number of keys that a query is multiplied with."""
    if not seen_only:
        return length
    window = min(config.window(layer) or length, length)
    # The first `window` queries of a row see 1, 2, ... keys, the others `window`.
    return (window * (window + 1) / 2 + (length - window) * window) / length


def _exists(config: ModelConfig, path: str) -> bool:
    """Tells whether a model has an optional leaf of a layer."""
    if path.endswith("_post_norm/scale"):
        return config.sandwich_norms
    if path.endswith(("query_norm/scale", "key_norm/scale")):
        return config.query_key_norm
    if path.endswith("attention/output/bias"):
        return config.attention_output_bias
    return config.mlp_bias if "/mlp/" in path else config.attention_bias


_LEAVES = (
    "attention_norm/scale",
    "attention/query/kernel",
    "attention/key/kernel",
    "attention/value/kernel",
    "attention/output/kernel",
    "mlp_norm/scale",
    "mlp/gate/kernel",
    "mlp/up/kernel",
    "mlp/down/kernel",
)


def _any_trains(config: ModelConfig, layer: str, trains: Callable[[str], bool]) -> bool:
    return any(trains(f"{layer}/{leaf}") for leaf in _LEAVES)
