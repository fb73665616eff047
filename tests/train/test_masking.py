"""Dynamic masking: its rates, what it never touches, and what it depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.errors import ConfigError
from jaxrecipes.train.masking import MaskingSettings, mask_tokens

VOCABULARY, MASK, SPECIAL = 1000, 4, (0, 1, 2, 3, 4)
OPTIONS = MaskingSettings(MASK, VOCABULARY, SPECIAL)
WORDS = MaskingSettings(MASK, VOCABULARY, SPECIAL, whole_words=True)
run = jax.jit(mask_tokens, static_argnums=0)


def batch_of(seed=0, rows=8, length=64, pieces=1):
    """Texts of random lengths between special tokens; words of up to `pieces` tokens."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(5, length + 1, rows)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    segment_ids = (positions < lengths[:, None]).astype(np.int32)
    token_ids = generator.integers(5, VOCABULARY, (rows, length)).astype(np.int32)
    token_ids[:, 0] = 1
    token_ids[np.arange(rows), lengths - 1] = 2
    border = generator.random((rows, length)) < 1 / pieces
    border[:, :2] = True
    border[np.arange(rows), lengths - 1] = True
    word_ids = np.cumsum(border, axis=1).astype(np.int32)
    return {
        "token_ids": token_ids * segment_ids,
        "segment_ids": segment_ids,
        "positions": positions * segment_ids,
        "word_ids": word_ids,
    }


def close(count, of, share):
    """Whether a count lies within five standard deviations of a binomial."""
    return abs(count - of * share) <= 5 * (of * share * (1 - share)) ** 0.5 + 1


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_rates_are_those_of_the_paper(seed):
    batch = batch_of(seed, rows=64)
    found = jax.tree.map(np.asarray, run(OPTIONS, batch, jax.random.key(seed)))
    special = np.isin(batch["token_ids"], SPECIAL)
    candidates = (batch["segment_ids"] > 0) & ~special
    chosen = found.weights > 0
    assert close(chosen.sum(), candidates.sum(), 0.15)
    masked = chosen & (found.token_ids == MASK)
    kept = chosen & (found.token_ids == batch["token_ids"])
    assert close(masked.sum(), chosen.sum(), 0.8)
    # One random token in a thousand is the token itself, or the mask token.
    assert close(kept.sum(), chosen.sum(), 0.1)
    assert close((chosen & ~masked & ~kept).sum(), chosen.sum(), 0.1)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1), st.booleans())
def test_special_tokens_padding_and_the_rest_are_never_touched(seed, words):
    batch = batch_of(seed, pieces=3)
    found = jax.tree.map(np.asarray, run(WORDS if words else OPTIONS, batch, jax.random.key(seed)))
    outside = np.isin(batch["token_ids"], SPECIAL) | (batch["segment_ids"] == 0)
    assert not found.weights[outside].any()
    same = found.weights == 0
    np.testing.assert_array_equal(found.token_ids[same], batch["token_ids"][same])
    np.testing.assert_array_equal(found.targets, batch["token_ids"])
    assert set(np.unique(found.weights)) <= {0.0, 1.0}
    assert found.token_ids.min() >= 0
    assert found.token_ids.max() < VOCABULARY


def test_a_mask_depends_on_key_and_example_alone():
    batch, key = batch_of(), jax.random.key(3)
    whole = run(OPTIONS, batch, key)
    order = np.array([5, 2, 7])
    few = run(OPTIONS, {name: values[order] for name, values in batch.items()}, key)
    for ours, theirs in zip(few, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs[order])
    # Behind another text in a packed row.
    row = {name: np.zeros((1, 140), np.int32) for name in batch}
    start = 0
    for number, index in enumerate((5, 2), 1):
        size = int(batch["segment_ids"][index].sum())
        span = slice(start, start + size)
        for name, values in row.items():
            values[0, span] = number if name == "segment_ids" else batch[name][index, :size]
        start += size
    packed = run(OPTIONS, row, key)
    size = int(batch["segment_ids"][5].sum())
    np.testing.assert_array_equal(packed.token_ids[0, :size], whole.token_ids[5, :size])
    other = int(batch["segment_ids"][2].sum())
    np.testing.assert_array_equal(
        packed.token_ids[0, size : size + other], whole.token_ids[2, :other]
    )


def test_other_keys_give_other_masks():
    batch = batch_of(rows=32)
    first = run(OPTIONS, batch, jax.random.key(0)).weights
    second = run(OPTIONS, batch, jax.random.key(1)).weights
    both = float(jnp.sum(first * second)) / float(jnp.sum(first))
    assert both < 0.3  # by chance 0.15


def test_whole_words_go_together():
    batch = batch_of(rows=64, pieces=3)
    found = jax.tree.map(np.asarray, run(WORDS, batch, jax.random.key(0)))
    inside = (batch["segment_ids"] > 0) & ~np.isin(batch["token_ids"], SPECIAL)
    words, chosen = 0, 0
    for row in range(64):
        for word in np.unique(batch["word_ids"][row][inside[row]]):
            pieces = inside[row] & (batch["word_ids"][row] == word)
            assert len(set(found.weights[row][pieces])) == 1
            words += 1
            chosen += found.weights[row][pieces][0] > 0
    assert close(chosen, words, 0.15)
    actions = {
        found.token_ids[row, column] == MASK
        for row, column in zip(*np.nonzero(found.weights), strict=True)
    }
    assert actions == {True, False}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 0.0}, "rate is 0.0"),
        ({"mask_share": 0.8, "random_share": 0.3}, "add up to at most 1"),
        ({"mask_token_id": VOCABULARY}, "mask_token_id is 1000"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    values = {"mask_token_id": MASK, "vocab_size": VOCABULARY, "special_token_ids": SPECIAL}
    with pytest.raises(ConfigError, match=message):
        MaskingSettings(**{**values, **fields})


def test_whole_words_need_words():
    batch = batch_of()
    del batch["word_ids"]
    with pytest.raises(ConfigError, match="word_ids"):
        mask_tokens(WORDS, batch, jax.random.key(0))
