"""Several adapters of one base, measured in one forward pass.

The base exists once, and what would be many small products are few large ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrecipes.errors import ConfigError
from jaxrecipes.evaluate.head_scores import head_kind, head_subtree, in_chunks, score
from jaxrecipes.evaluate.likelihood import (
    DocumentSums,
    document_sums,
    scored_states,
    scored_tokens,
)
from jaxrecipes.evaluate.rows import EvaluationRows
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import hidden_states
from jaxrecipes.params.lora import is_adapter_leaf
from jaxrecipes.params.partition import combine
from jaxrecipes.params.paths import Tree, flatten, unflatten


def evaluate_adapters(
    config: ModelConfig,
    base: Tree,
    adapters: Mapping[str, Tree],
    rows: EvaluationRows,
    *,
    token_bytes: np.ndarray | None = None,
    batch_size: int = 8,
    compute_dtype: Any = jnp.float32,
    chunk: int = 512,
) -> dict[str, DocumentSums]:
    """Measures what `likelihood.evaluate_set` measures, for every adapter.

    Args:
        config: The model.
        base: Canonical tree without adapters. Its layers are compiled one by one, since adapters
            may differ from layer to layer.
        adapters: By name an adapter tree (`lora.split_adapters`), canonical; ranks, targets and
            scales may differ, see `align_adapters`.
        rows: The rows.
        token_bytes: As for `evaluate_set`.
        batch_size: Rows of one forward pass. Its activations exist once an adapter.
        compute_dtype: dtype of activations.
        chunk: Tokens whose logits exist at the same time.

    Returns:
        By name the sums by document.

    Raises:
        ConfigError: The adapters cannot be aligned.
        DataError: Nothing is scored, or a token id is not in the vocabulary.
    """
    aligned = align_adapters(adapters)
    scored = scored_tokens(config, rows)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *aligned.values())
    states = scored_states(
        rows,
        partial(_run_adapters, config, compute_dtype, base, stacked),
        batch_size=batch_size,
        mesh=None,
    )
    found = {}
    for number, (name, tree) in enumerate(aligned.items()):
        # Trained rows of a tied embedding are in the head, too.
        head = head_subtree(config, combine(tree, base))
        nll, correct, _ = in_chunks(
            partial(score, *head_kind(config), head), chunk, states[number], scored.targets
        )
        found[name] = document_sums(rows, scored, token_bytes, nll, correct, None, None)
    return found


@partial(jax.jit, static_argnums=(0, 1))
def _run_adapters(
    config: ModelConfig,
    compute_dtype: Any,
    base: Tree,
    stacked: Tree,
    *batch: jax.Array,
) -> jax.Array:
    """Runs the decoder with every adapter: [adapters, rows, length, hidden_size]."""

    def run(adapter: Tree) -> jax.Array:
        params = combine(adapter, base)
        return hidden_states(config, params, *batch, compute_dtype=compute_dtype)

    return jax.vmap(run)(stacked)


def align_adapters(adapters: Mapping[str, Tree]) -> dict[str, Tree]:
    """Gives adapter trees the same leaves and shapes, without changing what any of them computes.

    A rank is filled up with zeros. A module that only some adapt gets an adapter of zeros in the
    others, which DoRA's magnitudes and trained tokens do not allow.

    Args:
        adapters: By name a canonical adapter tree.

    Returns:
        The same names and aligned trees.

    Raises:
        ConfigError: There is no adapter, a leaf is none of an adapter's (a module that was trained
            whole), or magnitudes or trained tokens differ between adapters.
    """
    if not adapters:
        raise ConfigError("no adapter was given to evaluate; expected at least one")
    # Dropout is for training only.
    trees = {
        name: {
            path: leaf
            for path, leaf in flatten(tree).items()
            if not path.endswith(("/lora_dropout", "/lora_salt"))
        }
        for name, tree in adapters.items()
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, leaves in trees.items():
        for path, leaf in leaves.items():
            if not is_adapter_leaf(path):
                raise ConfigError(
                    f"adapter {name}: {path} is no leaf of an adapter (a module that was trained "
                    "whole?); evaluate this model by itself"
                )
            known = shapes[path] if path in shapes else tuple(leaf.shape)
            if len(known) != len(leaf.shape):
                raise ConfigError(f"adapter {name}: {path} has shape {leaf.shape}, not {known}")
            shapes[path] = tuple(map(max, known, leaf.shape))
    aligned = {}
    for name, leaves in trees.items():
        full = {}
        for path, shape in shapes.items():
            kind = path.rpartition("/")[2]
            leaf = leaves.get(path)
            fixed = kind not in ("lora_a", "lora_b", "lora_scale")
            if fixed and (leaf is None or leaf.shape != shape):
                raise ConfigError(
                    f"adapter {name}: {path} is {'missing' if leaf is None else leaf.shape}, and "
                    f"another adapter has it with shape {shape}; adapters with different "
                    "magnitudes or trained tokens are evaluated one by one"
                )
            leaf = jnp.zeros(shape, jnp.float32) if leaf is None else jnp.asarray(leaf)
            missing = [(0, wanted - size) for wanted, size in zip(shape, leaf.shape, strict=True)]
            full[path] = jnp.pad(leaf, missing) if missing else leaf
        aligned[name] = unflatten(full)
    return aligned
