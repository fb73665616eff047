"""Dynamic masking for masked language modelling, inside of the compiled step.

15 % of the tokens that are neither special nor padding are chosen; of those 80 % become the mask
token, 10 % a random token and 10 % stay (Devlin et al., arXiv 1810.04805, section 3.1). A mask is a
function of the key and of the example's own tokens: not of its place in a batch, and another one in
every step (Liu et al., arXiv 1907.11692, section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrecipes.errors import ConfigError
from jaxrecipes.train.perturb.segments import token_keys


@dataclass(frozen=True)
class MaskingSettings:
    """What is masked, and how.

    Attributes:
        mask_token_id: Stands in the place of most of the chosen tokens.
        vocab_size: Random tokens are drawn from all ids below.
        special_token_ids: Never chosen; [CLS], [SEP] and the like.
        rate: Share of the tokens that are chosen.
        mask_share: Share of the chosen that become the mask token.
        random_share: Share of the chosen that become a random token; the others stay.
        whole_words: All pieces of a word are chosen together; needs `word_ids` in the batch.
    """

    mask_token_id: int
    vocab_size: int
    special_token_ids: tuple[int, ...]
    rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    whole_words: bool = False

    def __post_init__(self) -> None:
        """Refuses values outside of their range.

        Raises:
            ConfigError: Names the field, its value and its range.
        """
        if not 0.0 < self.rate < 1.0:
            raise ConfigError(f"rate is {self.rate}; expected a number between 0 and 1")
        shares = (self.mask_share, self.random_share)
        if min(shares) < 0.0 or sum(shares) > 1.0 + 1e-9:
            raise ConfigError(
                f"mask_share is {shares[0]} and random_share is {shares[1]}; expected numbers of 0 "
                "or more that add up to at most 1"
            )
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ConfigError(
                f"mask_token_id is {self.mask_token_id}; expected a token below {self.vocab_size}"
            )


class Masked(NamedTuple):
    """A masked batch.

    Attributes:
        token_ids: int32 [rows, length], what the model reads.
        targets: int32 [rows, length], the tokens before.
        weights: float32 [rows, length]; 1 where a token was chosen.
    """

    token_ids: jax.Array
    targets: jax.Array
    weights: jax.Array


def mask_tokens(settings: MaskingSettings, batch: dict[str, jax.Array], key: jax.Array) -> Masked:
    """Masks a batch.

    Args:
        settings: See there.
        batch: `token_ids`, `segment_ids` (0 is padding) and `positions`, int32 [rows, length]; with
            whole words also `word_ids`, int32 [rows, length], equal for the pieces of a word, which
            stand side by side, and different for neighbouring words.
        key: PRNG key of the step.

    Returns:
        The masked batch.

    Raises:
        ConfigError: Whole words are asked for, and the batch has no `word_ids`.
    """
    token_ids, segment_ids = batch["token_ids"], batch["segment_ids"]
    keys = token_keys(key, batch)

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        choice, action, replacement = jax.random.split(key, 3)
        return (
            jax.random.uniform(choice),
            jax.random.uniform(action),
            jax.random.randint(replacement, (), 0, settings.vocab_size, jnp.int32),
        )

    choice, action, replacement = jax.vmap(jax.vmap(draw))(keys)
    if settings.whole_words:
        if "word_ids" not in batch:
            raise ConfigError("whole_words needs word_ids in the batch, and there are none")
        starts = _first_pieces(batch["word_ids"], segment_ids)
        choice = jnp.take_along_axis(choice, starts, axis=1)
    special = jnp.isin(token_ids, jnp.asarray(settings.special_token_ids, jnp.int32))
    chosen = (choice < settings.rate) & (segment_ids > 0) & ~special
    masked = chosen & (action < settings.mask_share)
    random = chosen & ~masked & (action < settings.mask_share + settings.random_share)
    changed = jnp.where(masked, settings.mask_token_id, jnp.where(random, replacement, token_ids))
    return Masked(changed.astype(jnp.int32), token_ids, chosen.astype(jnp.float32))


def _first_pieces(word_ids: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Returns int32 [rows, length]: at each token the column of the first piece of its word."""
    border = (word_ids[:, 1:] != word_ids[:, :-1]) | (segment_ids[:, 1:] != segment_ids[:, :-1])
    columns = jnp.arange(word_ids.shape[1], dtype=jnp.int32)
    firsts = jnp.where(jnp.pad(border, ((0, 0), (1, 0)), constant_values=True), columns, 0)
    return jax.lax.cummax(firsts, axis=1)
