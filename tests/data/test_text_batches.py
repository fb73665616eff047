"""Padded batches of texts: every text once an epoch, an order that a step decides, no loss."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from jaxrecipes.data.text_batches import (
    TextBatches,
    TokenizedTexts,
    pad_texts,
    texts_by_length,
    tokenize_texts,
)
from jaxrecipes.errors import ConfigError, DataError

PIECES = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "the", "cat", "##s", "sat", "do", "##g", "##gy"]


def tokenizer_of():
    vocabulary = {piece: number for number, piece in enumerate(PIECES)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return tokenizer


def texts_of(lengths):
    arrays = tuple(np.full(length, number, np.int32) for number, length in enumerate(lengths))
    return TokenizedTexts(arrays, arrays, arrays, np.arange(len(lengths), dtype=np.int32))


def test_words_and_types_are_those_of_the_tokenizer():
    found = tokenize_texts(tokenizer_of(), [("the cats",), ("doggy", "the cat")], max_tokens=20)
    assert found.token_ids[0].tolist() == [1, 4, 5, 6, 2]
    assert found.word_ids[0].tolist() == [1, 2, 3, 3, 4]
    pieces = [PIECES[token] for token in found.token_ids[1]]
    assert pieces[0] == "[CLS]"
    assert pieces.count("[SEP]") == 2
    assert found.type_ids[1].tolist() == [0] * (pieces.index("[SEP]") + 1) + [1, 1, 1]
    assert len(set(found.word_ids[1].tolist())) == 6  # CLS doggy SEP the cat SEP
    plain = tokenize_texts(tokenizer_of(), [("doggy", "the cat")], max_tokens=20, types=False)
    assert not plain.type_ids[0].any()


def test_long_texts_are_cut_or_split_without_loss():
    text = ("the cat sat the cat sat the",)
    cut = tokenize_texts(tokenizer_of(), [text], max_tokens=5)
    assert [len(ids) for ids in cut.token_ids] == [5]
    split = tokenize_texts(tokenizer_of(), [text], max_tokens=5, split_long=True)
    inner = [token for ids in split.token_ids for token in ids[1:-1].tolist()]
    assert inner == [4, 5, 7, 4, 5, 7, 4]
    assert all(ids[0] == 1 and ids[-1] == 2 for ids in split.token_ids)


def test_the_tokenizer_of_the_caller_stays_as_it_is():
    tokenizer = tokenizer_of()
    tokenize_texts(tokenizer, [("the cat",)], max_tokens=3)
    assert tokenizer.truncation is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 5))
def test_every_text_occurs_once_an_epoch(lengths, rows, seed):
    batches = TextBatches(texts_of(lengths), rows, 70, 3, seed)
    for epoch in range(2):
        steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
        seen = np.concatenate([batches.members(step) for step in steps])
        assert sorted(seen.tolist()) == list(range(len(lengths)))
        for step in steps:
            batch, members = batches.batch(step), batches.members(step)
            assert batch["token_ids"].shape[0] == rows
            for row, member in enumerate(members.tolist()):
                inside = batch["segment_ids"][row] == 1
                assert inside.sum() == lengths[member]
                assert (batch["token_ids"][row][inside] == member).all()
                assert (batch["token_ids"][row][~inside] == 3).all()
                assert batch["labels"][row, 0] == member
            assert not batch["segment_ids"][len(members) :].any()


def test_a_step_decides_its_batch_and_epochs_differ():
    lengths = np.random.default_rng(0).integers(1, 60, 100).tolist()
    one, other = (TextBatches(texts_of(lengths), 8, 64, 0, 5) for _ in range(2))
    for step in (30, 2, 17):  # in any order: nothing is remembered
        np.testing.assert_array_equal(one.members(step), other.members(step))
    first = [one.members(step).tolist() for step in range(one.per_epoch)]
    second = [one.members(step + one.per_epoch).tolist() for step in range(one.per_epoch)]
    assert first != second
    seeded = TextBatches(texts_of(lengths), 8, 64, 0, 6)
    assert first != [seeded.members(step).tolist() for step in range(one.per_epoch)]


def test_batches_hold_texts_of_similar_length():
    lengths = np.random.default_rng(0).integers(1, 250, 512)
    batches = TextBatches(texts_of(lengths.tolist()), 16, 256, 0, 0)
    tokens = sum(batches.batch(step)["token_ids"].size for step in range(batches.per_epoch))
    assert tokens < 1.35 * lengths.sum()  # at random: about two


def test_evaluation_reads_every_text_once():
    texts = texts_of([5, 2, 9, 4, 7])
    seen = [members.tolist() for members, _ in texts_by_length(texts, 2, 16, 0)]
    assert sorted(sum(seen, [])) == [0, 1, 2, 3, 4]
    assert [batch["token_ids"].shape[0] for _, batch in texts_by_length(texts, 2, 16, 0)] == [2] * 3


def test_what_makes_no_batches_is_refused():
    with pytest.raises(ConfigError, match="rows is 0"):
        TextBatches(texts_of([3]), 0, 8, 0, 0)
    with pytest.raises(DataError, match="no texts"):
        TextBatches(texts_of([]), 1, 8, 0, 0)
    with pytest.raises(DataError, match="9 tokens, more than max_tokens"):
        TextBatches(texts_of([9]), 1, 8, 0, 0)
    with pytest.raises(DataError, match="2 labels for 1 texts"):
        texts_of([3]).labelled([0, 1])
    empty = tokenizer_of()
    empty.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(DataError, match="has no tokens"):
        tokenize_texts(empty, [("",)], max_tokens=8)
    assert pad_texts(texts_of([3]), np.array([0]), 2, 8, 0)["token_ids"].shape == (2, 8)


def test_a_text_ends_with_the_end_token_and_its_pieces_do_not():
    texts = [("the cat sat the cat sat the cat",), ("cats",)]
    options = {"max_tokens": 6, "split_long": True}
    plain = tokenize_texts(tokenizer_of(), texts, max_tokens=5, split_long=True)
    found = tokenize_texts(tokenizer_of(), texts, end_token_id=9, **options)
    assert len(found) == len(plain) == 4
    for number, (ended, ids) in enumerate(zip(found.token_ids, plain.token_ids, strict=True)):
        assert ended.tolist() == [*ids.tolist(), *([9] if number in (2, 3) else [])]
        assert len(ended) <= 6
    # A word of its own: whole words never join it.
    last = plain.word_ids[3].tolist()
    assert found.word_ids[3].tolist() == [*last, last[-1] + 1]
    assert found.type_ids[3].tolist() == [0] * (len(last) + 1)
