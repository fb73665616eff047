from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.data.pack import check_supervised, pack, supervised_counts
from jaxrecipes.data.rows import decode_row, encode_row, row_arrays, token_dtype
from jaxrecipes.data.tokenize import TokenizedDocument
from jaxrecipes.errors import ConfigError, DataError


def document(index: int, size: int, *, mask: list[bool] | None = None) -> TokenizedDocument:
    # Every token of the whole input is different, so that a lost or repeated one is seen. Id 0 (the
    # usual EOS) also stands inside of documents: boundaries must never come from it.
    token_ids = np.arange(size, dtype=np.int32) + 1000 * index
    token_ids[size // 2] = 0
    supervised = None if mask is None else np.array(mask)
    return TokenizedDocument(
        f"doc-{index}", token_ids, 2 * size, np.arange(1, size + 1) * 2, supervised
    )


sizes = st.lists(st.integers(1, 60), min_size=1, max_size=40)
lengths = st.integers(3, 24)


@settings(max_examples=150, deadline=None)
@given(sizes, lengths, st.sampled_from(["document", "context"]), st.sampled_from(["best", "fill"]))
def test_split_keeps_every_token_exactly_once_in_order(sizes, length, attend, fit):
    documents = [document(i, n) for i, n in enumerate(sizes)]
    packed = pack(documents, length=length, overlong="split", attend=attend, fit=fit)
    found: dict[int, list[tuple[int, list[int]]]] = {}
    for row in packed:
        assert 1 <= len(row.token_ids) <= length
        assert row.segments[:, 2].sum() == len(row.token_ids)
        start = 0
        for index, offset, count in row.segments.tolist():
            tokens = row.token_ids[start : start + count].tolist()
            found.setdefault(index, []).append((offset, tokens))
            start += count
    for index, original in enumerate(documents):
        pieces = sorted(found[index])
        assert [offset for offset, _ in pieces] == np.cumsum(
            [0, *(len(tokens) for _, tokens in pieces[:-1])]
        ).tolist()
        assert sum((tokens for _, tokens in pieces), []) == original.token_ids.tolist()
    assert packed.kept_tokens.tolist() == sizes
    assert packed.kept_bytes.tolist() == [2 * n for n in sizes]


@settings(max_examples=100, deadline=None)
@given(sizes, lengths, st.sampled_from(["document", "context"]), st.sampled_from(["best", "fill"]))
def test_row_arrays_agree_with_a_slow_reference(sizes, length, attend, fit):
    documents = [document(i, n) for i, n in enumerate(sizes)]
    packed = pack(documents, length=length, overlong="split", attend=attend, fit=fit)
    for row, count in zip(packed, supervised_counts(packed, attend), strict=True):
        arrays = row_arrays(row, length=length, attend=attend)
        tokens, segments, positions, mask, owners = [], [], [], [], []
        for number, (index, offset, size) in enumerate(row.segments.tolist(), start=1):
            for place in range(size):
                tokens.append(int(documents[index].token_ids[offset + place]))
                owners.append(index)
                if attend == "document":
                    segments.append(number)
                    positions.append(place)
                    mask.append(place > 0)
                else:
                    positions.append(len(segments))
                    segments.append(1)
                    mask.append(len(mask) > 0)
        padding = length - len(tokens)
        assert arrays["token_ids"].tolist() == tokens + [0] * padding
        assert arrays["segment_ids"].tolist() == segments + [0] * padding
        assert arrays["positions"].tolist() == positions + [0] * padding
        assert arrays["loss_mask"].tolist() == mask + [False] * padding
        assert arrays["document_index"].tolist() == owners + [-1] * padding
        assert count == sum(mask)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(20, 30))
def test_best_fit_never_cuts_a_document_and_beats_next_fit(sizes, length):
    documents = [document(i, n) for i, n in enumerate(sizes)]
    packed = pack(documents, length=length, overlong="error", fit="best")
    seen = Counter(index for row in packed for index in row.segments[:, 0].tolist())
    assert seen == Counter(range(len(sizes)))
    # Best-fit decreasing needs at most 11/9 of the optimum, plus 4 (Johnson 1973).
    optimum_bound = -(-sum(sizes) // length)
    rows, space = 1, length
    for size in sizes:
        rows, space = (rows, space - size) if size <= space else (rows + 1, length - size)
    assert optimum_bound <= len(packed) <= max(rows, 11 / 9 * optimum_bound + 4)
    firsts = [row.segments[0, 0] for row in packed]
    assert firsts == sorted(firsts)
    assert all(np.all(np.diff(row.segments[:, 0]) > 0) for row in packed)


@settings(max_examples=100, deadline=None)
@given(sizes, lengths)
def test_fill_has_padding_only_at_its_end(sizes, length):
    documents = [document(i, n) for i, n in enumerate(sizes)]
    packed = pack(documents, length=length, overlong="split", fit="fill", attend="context")
    counts = [len(row.token_ids) for row in packed]
    total = sum(sizes)
    assert len(counts) == -(-total // length)
    assert all(count == length for count in counts[:-2])
    if total % length != 1:
        assert all(count == length for count in counts[:-1])
    elif total > 1:  # nothing is left to predict in a row of one token
        assert counts[-2:] == [length - 1, 2]
    flat = np.concatenate([row.token_ids for row in packed])
    assert flat.tolist() == np.concatenate([d.token_ids for d in documents]).tolist()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=40), lengths)
def test_no_piece_of_a_split_document_is_one_token_long(sizes, length):
    packed = pack([document(i, n) for i, n in enumerate(sizes)], length=length, overlong="split")
    assert packed.segments[:, 2].min() >= 2
    ids = [f"doc-{i}" for i in range(len(sizes))]
    assert check_supervised(packed, "document", ids, 0) == sum(sizes) - len(packed.segments)


def test_overlong_error_names_the_document_and_the_lengths():
    with pytest.raises(
        DataError, match=r"'doc-1' has 30 tokens.*length 10.*2 of 3.*split"
    ) as caught:
        pack([document(0, 5), document(1, 30), document(2, 11)], length=10)
    assert "longest 30" in str(caught.value)


def test_overlong_drop_and_truncate_count_what_they_change():
    documents = [document(0, 5), document(1, 30), document(2, 10)]
    dropped = pack(documents, length=10, overlong="drop")
    assert dropped.kept_tokens.tolist() == [5, 0, 10]
    assert dropped.kept_bytes.tolist() == [10, 0, 20]
    assert dropped.dropped.dropped == {"dropped as too long": 1}
    assert dropped.dropped.examples == {"dropped as too long": ["doc-1"]}
    assert 1 not in dropped.segments[:, 0]
    cut = pack(documents, length=10, overlong="truncate")
    assert cut.kept_tokens.tolist() == [5, 10, 10]
    assert cut.kept_bytes.tolist() == [10, 20, 20]
    assert cut.dropped.dropped == {"truncated": 1}


def test_nothing_left_is_an_error():
    with pytest.raises(DataError, match="no token is left"):
        pack([document(0, 30)], length=10, overlong="drop")


def test_a_row_without_supervised_tokens_names_row_and_documents():
    documents = [document(0, 6), document(1, 6, mask=[False] * 6)]
    packed = pack(documents, length=6)
    with pytest.raises(DataError, match=r"row 8 has no supervised token.*'doc-1'.*1 of 2 rows"):
        check_supervised(packed, "document", ["doc-0", "doc-1"], 7)


def test_a_loss_mask_follows_its_tokens_through_split_and_bytes():
    mask = [place % 3 == 0 for place in range(23)]
    packed = pack([document(0, 4), document(1, 23, mask=mask)], length=9, overlong="split")
    for row in packed:
        read = decode_row(encode_row(row, token_dtype(2000)), token_dtype(2000))
        arrays = row_arrays(read, length=9, attend="document")
        start = 0
        for index, offset, count in row.segments.tolist():
            expected = [True] * 4 if index == 0 else mask
            wanted = expected[offset : offset + count]
            assert arrays["loss_mask"][start : start + count].tolist() == [False, *wanted[1:]]
            start += count


@pytest.mark.parametrize(
    "options",
    [{"length": 2}, {"overlong": "cut"}, {"attend": "all"}, {"fit": "first"}],
    ids=lambda options: next(iter(options)),
)
def test_wrong_options_are_config_errors(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        pack([document(0, 3)], **{"length": 8, **options})


@pytest.mark.parametrize("vocab_size", [256, 65536, 65537, 2**31 - 1])
def test_records_hold_the_largest_id_of_the_vocabulary(vocab_size):
    dtype = token_dtype(vocab_size)
    tokens = np.array([0, vocab_size - 1, 1], dtype=np.int32)
    packed = pack([TokenizedDocument("a", tokens, 3)], length=5)
    row = decode_row(encode_row(packed[0], dtype), dtype)
    assert row.token_ids.tolist() == tokens.tolist()
    assert dtype.itemsize == (2 if vocab_size <= 65536 else 4)


@pytest.mark.parametrize("cut", [0, 10, 20, -1])
def test_a_record_of_a_wrong_size_is_refused(cut):
    record = encode_row(pack([document(0, 5)], length=8)[0], token_dtype(100))
    with pytest.raises(ValueError, match="record"):
        decode_row(record[:cut], token_dtype(100))
