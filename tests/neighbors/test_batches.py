"""Batches hold every text once, in few shapes, with little padding."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxrecipes.data.buckets import bucket_length
from jaxrecipes.neighbors.batches import plan_batches

lengths_of_texts = st.lists(st.integers(1, 512), min_size=0, max_size=300)


@given(lengths_of_texts, st.sampled_from([64, 1000, 4096]), st.sampled_from([1, 3, 4]))
def test_every_text_once_in_a_row_that_holds_it(lengths, tokens_per_batch, devices):
    sizes = np.array(lengths, np.int64)
    batches = plan_batches(sizes, longest=512, tokens_per_batch=tokens_per_batch, devices=devices)
    members = [int(member) for batch in batches for member in batch.members]
    assert sorted(members) == list(range(len(lengths)))
    for number, batch in enumerate(batches):
        assert sizes[batch.members].max() <= batch.length
        assert batch.rows % devices == 0
        assert len(batch.members) == batch.rows or number == len(batches) - 1
        assert batch.rows == devices or batch.rows * batch.length <= tokens_per_batch
    shapes = {}
    for batch in batches:
        assert shapes.setdefault(batch.length, batch.rows) == batch.rows


@given(st.integers(1, 8192))
def test_buckets_hold_their_texts_with_little_to_spare(tokens):
    length = bucket_length(tokens, 8192)
    assert tokens <= length < tokens + max(32, tokens / 4)


def test_there_are_few_buckets():
    assert len({bucket_length(tokens, 8192) for tokens in range(1, 8193)}) == 28
    assert {bucket_length(tokens, 77) for tokens in range(1, 78)} == {32, 64, 80}


def test_padding_of_sorted_texts_is_small():
    lengths = np.random.default_rng(0).integers(20, 256, 5000)
    batches = plan_batches(lengths, longest=256, tokens_per_batch=2048)
    computed = sum(batch.rows * batch.length for batch in batches)
    assert computed < 1.15 * lengths.sum()
