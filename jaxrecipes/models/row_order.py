"""What the attention kernels assume of a packed row, as a check that costs next to nothing.

`jaxrecipes.models.attention.visible` masks by *position inside the segment*. The kernels of TPU
and GPU mask by *row index*, because they skip whole blocks of the row by it. For two tokens at
rows i and j of the same segment the two agree, also for sliding windows, exactly when

    position[i] - position[j] == i - j,

that is, when the tokens of a segment lie side by side in the row and their positions count up by
one. Where a segment starts does not matter, and neither does its first position: a document that
is continued from another row keeps its positions. Rows that `jaxrecipes.data.pack` makes are so.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def in_row_order(segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
    """Says for each row whether masking by row index is the same as `visible`.

    A row passes when its segment ids never fall (padding, which is 0, aside), no padding
    interrupts a segment, and the positions inside each segment count up by one.

    Args:
        segment_ids: int32 [batch, length]; 0 is padding.
        positions: int32 [batch, length], position inside the segment.

    Returns:
        bool [batch].
    """
    before, after = segment_ids[:, :-1], segment_ids[:, 1:]
    continued = (after == before) & (positions[:, 1:] == positions[:, :-1] + 1)
    started = after > jax.lax.cummax(before, axis=1)
    return jnp.all(continued | started | (after == 0), axis=1)


def poison(scale: float, rows_in_order: jax.Array) -> jax.Array:
    """Makes the logits' factor NaN for rows that a kernel would mask wrongly.

    A traced program cannot raise. NaN reaches the loss, which the training loop refuses, so that a
    wrong mask can never pass as a result.

    Args:
        scale: Factor on the attention logits.
        rows_in_order: bool [batch], see `in_row_order`.

    Returns:
        float32 [batch].
    """
    return jnp.where(rows_in_order, jnp.float32(scale), jnp.nan)
