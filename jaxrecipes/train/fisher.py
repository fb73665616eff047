"""The diagonal Fisher information of a decoder, for elastic weight consolidation.

Of examples x with their supervised tokens y (an example is a segment: a document, or a prompt with
its answer), theta the trained leaves:

    F_i = mean over examples of (d log p(y | x, theta) / d theta_i)^2

log p(y | x) is the sum over the example's supervised tokens, not their mean, and the square is of
one example's gradient: the square of a batch's gradient is another, much smaller thing.

- `model`: y is drawn from the model itself, each token given the true ones before it. This is the
  Fisher information. (The drawn tokens of an example are independent given the true context, and
  the expectation of each score is zero, so that the square of the sum is in expectation the sum of
  the squares.)
- `data`: y is what the data say, the "empirical Fisher". It is larger where the model is wrong, and
  no Fisher information there (Kunstner et al. 2019, arXiv 1905.12558).

After several tasks k, with F_k taken at theta_k, the model that has just learned task k:

- `separate`, Kirkpatrick et al. 2016 (arXiv 1612.00796): one quadratic a task. Their sum over k of
  F_k (theta - theta_k)^2 is, but for a constant, one quadratic with F = sum F_k around
  theta* = sum F_k theta_k / F, so that memory does not grow with the tasks.
- `online`, Schwarz et al. 2018 (arXiv 1805.06370): one quadratic around the latest theta_k, with
  F = decay * F_before + F_k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxrecipes.errors import DataError
from jaxrecipes.models import decoder
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.execution import ONE_DEVICE, Execution
from jaxrecipes.models.stacking import Layout, RematPolicy
from jaxrecipes.params.partition import combine
from jaxrecipes.params.paths import Tree
from jaxrecipes.sharding.batches import local_rows, place_batch
from jaxrecipes.sharding.mesh import BATCH_AXES
from jaxrecipes.train.backbone import decoder_backbone
from jaxrecipes.train.loss import chunked_cross_entropy, next_token_targets

Targets = Literal["model", "data"]
Accumulate = Literal["separate", "online"]
Rows = Mapping[str, np.ndarray]
_KEYS = ("token_ids", "segment_ids", "positions", "loss_mask")


def diagonal_fisher(
    config: ModelConfig,
    trainable: Tree,
    frozen: Tree,
    rows: Iterable[Rows],
    *,
    examples: int | None = None,
    targets: Targets = "model",
    seed: int = 0,
    layout: Layout | None = None,
    compute_dtype: Any = jnp.float32,
    remat: RematPolicy = "none",
    loss_chunk: int = 512,
    execution: Execution = ONE_DEVICE,
    on_example: Callable[[int], None] = lambda done: None,
) -> tuple[Tree, int]:
    """Computes the diagonal Fisher information of the trained leaves.

    Args:
        config: The model.
        trainable: Leaves whose information is wanted, float32.
        frozen: The other leaves.
        rows: Single rows: `token_ids`, `segment_ids`, `positions` and `loss_mask`, each [length].
        examples: Use at most this many examples, the first ones; None for all.
        targets: Where y comes from, see the module.
        seed: Of the draws of `model`; those of an example depend on it and its number.
        layout: Layout of the trees; None for canonical ones.
        compute_dtype: dtype of activations and products.
        remat: See `stacking.rematerialise`.
        loss_chunk: Tokens of a device whose logits exist at the same time.
        execution: Devices and attention backend. On a mesh with batch axes of size n, an example
            is computed beside n - 1 empty rows.
        on_example: Called with the number of examples done.

    Returns:
        A tree like `trainable`, float32, and the number of examples it is the mean of.

    Raises:
        DataError: No example has a supervised token.
    """
    backbone = decoder_backbone(
        config, layout=layout, compute_dtype=compute_dtype, remat=remat, execution=execution
    )
    mesh = execution.mesh
    options = {"vocab_first": config.tie_embeddings, "softcap": config.final_softcap}

    def add(total: Tree, trainable: Tree, frozen: Tree, batch: Any, segment: Any, key: Any) -> Tree:
        found, weights = next_token_targets(
            batch["token_ids"], batch["segment_ids"], batch["loss_mask"]
        )
        weights = weights * (batch["segment_ids"] == segment)

        def loss(leaves: Tree) -> jax.Array:
            params = combine(leaves, frozen)
            states = backbone.states(params, backbone.embed(params, batch), batch)
            head = decoder.stored_head(config, params)
            chosen = found
            if targets == "model":
                chosen = jax.lax.stop_gradient(
                    draw_tokens(states, head, key, chunk=loss_chunk, **options)
                )
            return chunked_cross_entropy(
                states, head, chosen, weights, chunk=loss_chunk, mesh=mesh, **options
            )

        gradient = jax.grad(loss)(trainable)
        return jax.tree.map(lambda before, leaf: before + jnp.square(leaf), total, gradient)

    step = jax.jit(add, donate_argnums=0)
    total = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree))(trainable)
    key, count = jax.random.key(seed), 0
    copies = 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    for row in rows:
        shape = (copies, len(row["token_ids"]))
        batch = place_batch(mesh, shape, _one_row(row, local_rows(mesh, shape)))
        for segment in _supervised_segments(row):
            if count == examples:
                break
            own = jax.random.fold_in(key, count)
            total = step(total, trainable, frozen, batch, segment, own)
            count += 1
            on_example(count)
    if not count:
        raise DataError(
            "the rows that the Fisher information is computed on have no supervised token"
        )
    mean = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf / count, tree), donate_argnums=0)
    return mean(total), count


def draw_tokens(
    states: jax.Array,
    head: jax.Array,
    key: jax.Array,
    *,
    vocab_first: bool = False,
    softcap: float | None = None,
    chunk: int = 512,
) -> jax.Array:
    """Draws the next token at every position from the model's own distribution.

    Args:
        states: Float [rows, length, hidden_size], after the final norm.
        head: [hidden_size, vocab_size], or [vocab_size, hidden_size] with `vocab_first`.
        key: PRNG key.
        vocab_first: The orientation of the head.
        softcap: Logits become `softcap * tanh(logits / softcap)` where given.
        chunk: Tokens whose logits exist at the same time.

    Returns:
        int32 [rows, length].
    """
    rows, length, width = states.shape
    size = min(chunk, rows * length)
    flat = jnp.pad(states.reshape(-1, width), ((0, -(rows * length) % size), (0, 0)))
    parts = flat.reshape(-1, size, width)
    equation = "th,vh->tv" if vocab_first else "th,hv->tv"

    def draw(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        number, states = part
        logits = jnp.einsum(
            equation, states, head.astype(states.dtype), preferred_element_type=jnp.float32
        )
        if softcap is not None:
            logits = softcap * jnp.tanh(logits / softcap)
        return jax.random.categorical(jax.random.fold_in(key, number), logits).astype(jnp.int32)

    drawn = jax.lax.map(draw, (jnp.arange(len(parts)), parts))
    return drawn.reshape(-1)[: rows * length].reshape(rows, length)


def accumulate_fisher(
    earlier: Mapping[str, Tree],
    start: Tree,
    fisher: Tree,
    *,
    how: Accumulate = "separate",
    decay: float = 1.0,
) -> dict[str, Tree]:
    """Joins the information of one more task with that of those before it.

    Args:
        earlier: `start` and `fisher` of the tasks before, as this function returned them.
        start: The parameters now, at which `fisher` was taken.
        fisher: The information of the latest task.
        how: See the module.
        decay: `online`: factor on the earlier information.

    Returns:
        `start` and `fisher`, trees like the arguments'.
    """
    if how == "online":
        total = jax.tree.map(lambda old, new: decay * old + new, dict(earlier["fisher"]), fisher)
        return {"start": start, "fisher": total}
    total = jax.tree.map(jnp.add, dict(earlier["fisher"]), fisher)

    def center(old_start: Any, old: Any, now: Any, total: Any) -> Any:
        # As now + share * (old - now): exact where nothing moved, and where nothing was known.
        share = old / jnp.where(total > 0, total, 1.0)
        return now + share * (old_start - now)

    centers = jax.tree.map(center, dict(earlier["start"]), dict(earlier["fisher"]), start, total)
    return {"start": centers, "fisher": total}


def _one_row(row: Rows, local: list[int]) -> dict[str, np.ndarray]:
    """Returns a batch whose first row is the given one and whose others are padding."""
    return {
        key: np.stack([row[key] if number == 0 else np.zeros_like(row[key]) for number in local])
        for key in _KEYS
    }


def _supervised_segments(row: Rows) -> list[int]:
    """Lists the segments that have a supervised token with one before it."""
    segments, mask = np.asarray(row["segment_ids"]), np.asarray(row["loss_mask"]) != 0
    counted = mask[1:] & (segments[1:] == segments[:-1]) & (segments[1:] != 0)
    return sorted({int(one) for one in segments[1:][counted]})
