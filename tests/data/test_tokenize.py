from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.data.documents import Document
from jaxrecipes.data.tokenize import tokenize_documents
from jaxrecipes.errors import DataError

from .conftest import build_tokenizer

TOKENIZER = build_tokenizer()


def encode(texts, tokenizer=TOKENIZER, **options):
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    return list(tokenize_documents(documents, tokenizer, vocab_size=300, **options))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_tokens_decode_to_the_text_and_end_with_one_eos(texts):
    for text, one in zip(texts, encode(texts, batch_characters=20), strict=True):
        ids = one.token_ids.tolist()
        assert ids[-1] == 0 and 0 not in ids[:-1]
        assert TOKENIZER.decode(ids[:-1], clean_up_tokenization_spaces=False) == text
        assert one.byte_count == len(text.encode())


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=6), st.integers(1, 5))
def test_byte_ends_count_the_bytes_of_a_prefix(text, kept):
    one = encode([text], truncate_length=1)[0]
    if one.byte_ends is None:
        assert len(one.token_ids) == 1
        return
    assert len(one.byte_ends) == len(one.token_ids)
    assert one.byte_ends[-1] == len(text.encode())
    assert np.all(np.diff(one.byte_ends) >= 0)
    prefix = text.encode()[: one.byte_ends[min(kept, len(one.byte_ends)) - 1]].decode()
    assert text.startswith(prefix)


def test_special_tokens_spelled_out_in_a_document_are_text():
    one = encode(["the <|end|> cat <|begin|>"])[0]
    assert one.token_ids.tolist().count(0) == 1
    assert 1 not in one.token_ids


def test_bos_is_kept_once_where_the_tokenizer_adds_it():
    one = encode(["<|begin|>the cat"], build_tokenizer(add_bos=True))[0]
    assert one.token_ids[0] == 1
    assert one.token_ids.tolist().count(1) == 1
    assert one.token_ids[-1] == 0


def test_an_id_outside_of_the_vocabulary_names_document_and_place():
    documents = [Document("first", "a"), Document("second", "the cat")]
    with pytest.raises(DataError, match=r"'second': token \d+ has the id \d+.*vocabulary has 100"):
        list(tokenize_documents(documents, TOKENIZER, vocab_size=100))


def test_a_tokenizer_without_eos_is_refused():
    class NoEnd:
        eos_token_id = None
        bos_token_id = None

        def __call__(self, text, **options):
            raise AssertionError("not reached")

    with pytest.raises(DataError, match="no end-of-sequence token"):
        list(tokenize_documents([Document("a", "b")], NoEnd(), vocab_size=10))
