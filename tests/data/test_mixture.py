"""Mixtures of texts: what an epoch reads, how much of it is general, and what is refused."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from jaxrecipes.data.mixture import Part, TextMixture, make_mixture
from jaxrecipes.data.text_batches import TextBatches, TokenizedTexts
from jaxrecipes.errors import ConfigError, DataError


def texts(count: int, first: int = 0) -> TokenizedTexts:
    """Texts of different lengths, each of one token that tells it apart."""
    ids = tuple(np.full(2 + number % 5, first + number, np.int32) for number in range(count))
    return TokenizedTexts(ids, tuple(0 * one for one in ids), tuple(0 * one for one in ids))


def mixture(*parts: Part, **options) -> TextMixture:
    defaults = {"rows": 4, "max_tokens": 16, "pad_token_id": 999, "seed": 3}
    return make_mixture(parts, **(defaults | options))


def read(mixed: TextMixture, epoch: int) -> Counter[int]:
    """How often each text (its token) stands in an epoch's batches."""
    steps = range(epoch * mixed.per_epoch, (epoch + 1) * mixed.per_epoch)
    found: Counter[int] = Counter()
    for step in steps:
        batch = mixed.batch(step)
        found.update(batch["token_ids"][batch["segment_ids"][:, 0] == 1, 0].tolist())
    return found


def test_one_part_gives_the_batches_of_text_batches():
    plain = TextBatches(texts(23), 4, 16, 999, 3)
    mixed = mixture(Part(texts(23)))
    assert mixed.per_epoch == plain.per_epoch == 6
    for step in range(14):
        for name, array in plain.batch(step).items():
            np.testing.assert_array_equal(mixed.batch(step)[name], array)


def test_weights_are_passes_an_epoch():
    mixed = mixture(Part(texts(10), 2.0), Part(texts(8, 100), 0.5))
    first, second = read(mixed, 0), read(mixed, 1)
    assert all(first[one] == second[one] == 2 for one in range(10))
    halves = [{one for one in epoch if one >= 100} for epoch in (first, second)]
    assert [len(half) for half in halves] == [4, 4]
    assert halves[0] | halves[1] == set(range(100, 108))


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_replay_has_its_share_and_no_text_twice_before_all_were_read_once(share):
    mixed = mixture(Part(texts(60)), replay=[Part(texts(40, 100))], share=share)
    seen: Counter[int] = Counter()
    for epoch in range(4):
        found = read(mixed, epoch)
        general = Counter({one: times for one, times in found.items() if one >= 100})
        assert general.total() / found.total() == pytest.approx(share, abs=0.01)
        assert all(found[one] == 1 for one in range(60))
        seen += general
    assert max(seen.values()) - min(seen[one] for one in range(100, 140)) <= 1


def test_a_batch_follows_from_its_number_alone():
    parts = (Part(texts(17)), Part(texts(9, 100), 0.7))
    forward, backward = mixture(*parts), mixture(*parts)
    steps = list(range(3 * forward.per_epoch))
    ahead = {step: forward.members(step).tolist() for step in steps}
    assert {step: backward.members(step).tolist() for step in reversed(steps)} == ahead
    assert {step: mixture(*parts, seed=4).members(step).tolist() for step in steps} != ahead


def test_tokens_are_those_of_the_batches_without_padding():
    mixed = mixture(Part(texts(17)), replay=[Part(texts(9, 100))], share=0.3)
    steps = 2 * mixed.per_epoch + 1
    counted = sum(int((mixed.batch(step)["segment_ids"] > 0).sum()) for step in range(steps))
    assert mixed.tokens(steps) == counted > 0


@pytest.mark.parametrize(
    ("parts", "options", "error", "words"),
    [
        ((), {}, DataError, "is empty"),
        ((Part(texts(3)), Part(texts(0))), {}, DataError, "is empty"),
        ((Part(texts(3)),), {"share": 1.0}, ConfigError, "share of replay is 1.0"),
        ((Part(texts(3)),), {"share": 0.1}, ConfigError, "no texts to replay"),
        ((Part(texts(3)),), {"rows": 0}, ConfigError, "rows is 0"),
        ((Part(texts(9)),), {"max_tokens": 4}, DataError, "6 tokens, more than max_tokens"),
    ],
)
def test_what_makes_no_mixture_is_refused(parts, options, error, words):
    with pytest.raises(error, match=words):
        mixture(*parts, **options)
