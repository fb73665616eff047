from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxrecipes.data.pipeline import batches
from jaxrecipes.data.prepare import prepare
from jaxrecipes.data.sources import SourceSpec
from jaxrecipes.errors import ConfigError, DataError


def make(folder, tokenizer, *, count, length=16, attend="document"):
    folder.parent.mkdir(parents=True, exist_ok=True)
    corpus = folder.with_suffix(".jsonl")
    corpus.write_text(
        "".join(json.dumps({"text": f"the {folder.name} {i} sat on"}) + "\n" for i in range(count))
    )
    return prepare(
        folder,
        SourceSpec(str(corpus)),
        tokenizer,
        tokenizer_fingerprint="f1",
        vocab_size=300,
        length=length,
        overlong="split",
        attend=attend,
    )


@pytest.fixture(scope="module")
def sets(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("sets")
    return [make(folder / "a", tokenizer, count=40), make(folder / "b", tokenizer, count=11)]


def take(sets, count, **options):
    return list(islice(batches(sets, **{"batch_size": 4, "seed": 0, **options}), count))


def places(taken):
    return [list(zip(b["set_ids"].tolist(), b["row_ids"].tolist(), strict=True)) for _, b in taken]


def test_a_batch_holds_the_rows_it_names(sets):
    mixture = [(sets[0], 2.0), (sets[1], 1.0)]
    for step, (number, batch) in enumerate(take(mixture, 20)):
        assert number == step
        for index in range(4):
            row = mixture[batch["set_ids"][index]][0][int(batch["row_ids"][index])]
            for name in ("token_ids", "segment_ids", "positions", "loss_mask"):
                assert np.array_equal(batch[name][index], row[name])
                assert batch[name].dtype == row[name].dtype


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**40),
    start=st.integers(0, 60),
    owners=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    threads=st.integers(1, 5),
    prefetch=st.integers(1, 7),
)
def test_a_batch_depends_on_its_number_only(sets, seed, start, owners, threads, prefetch):
    mixture = [(sets[0], 0.7), (sets[1], 0.3)]
    whole = take(mixture, start + 5, seed=seed)[start:]
    # Each row of a batch is read by one of three hosts.
    for host in set(owners):
        rows = [row for row, owner in enumerate(owners) if owner == host]
        part = take(
            mixture,
            5,
            seed=seed,
            start_step=start,
            rows=rows,
            threads=threads,
            prefetch=prefetch,
        )
        for (step, batch), (own_step, own) in zip(whole, part, strict=True):
            assert step == own_step
            for name, array in batch.items():
                wanted = array[rows] if array.ndim == 2 else array
                assert np.array_equal(own[name], wanted), name


def test_every_epoch_reads_every_row_once_in_another_order(sets):
    rows = len(sets[0])
    order = [
        place for batch in places(take([(sets[0], 1.0)], rows, batch_size=1)) for place in batch
    ]
    more = take([(sets[0], 1.0)], 3 * rows, batch_size=1)
    epochs = [places(more[i * rows : (i + 1) * rows]) for i in range(3)]
    assert all(Counter(map(str, epoch)) == Counter(map(str, epochs[0])) for epoch in epochs)
    assert len({str(epoch) for epoch in epochs}) == 3
    assert sorted(row for _, row in order) == list(range(rows))
    assert [row for _, row in order] != list(range(rows))


def test_neighbouring_seeds_share_no_epoch_order(sets):
    rows = len(sets[0])

    def epochs(seed):
        taken = places(take([(sets[0], 1.0)], 3 * rows, batch_size=1, seed=seed))
        return {str(taken[i * rows : (i + 1) * rows]) for i in range(3)}

    assert not epochs(5) & epochs(6)


def test_weights_are_shares_of_rows_and_small_sets_repeat(sets):
    counts = Counter(s for b in places(take([(sets[0], 3), (sets[1], 1)], 100)) for s, _ in b)
    assert abs(counts[0] - 300) <= 2 and sum(counts.values()) == 400
    seen = Counter(
        r for b in places(take([(sets[0], 3), (sets[1], 1)], 100)) for s, r in b if s == 1
    )
    assert (
        max(seen.values()) - min(seen.values()) <= 1
    )  # epochs of the small set, not draws at random


def test_wrong_arguments_are_refused(sets, tmp_path, tokenizer):
    one = [(sets[0], 1.0)]
    for options, message in [
        ({"batch_size": 0}, "batch_size"),
        ({"rows": [4]}, "rows"),
        ({"rows": []}, "rows"),
        ({"start_step": -1}, "start_step"),
    ]:
        with pytest.raises(ConfigError, match=message):
            take(one, 1, **options)
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="weight"):
            take([(sets[0], weight)], 1)
    with pytest.raises(ConfigError, match="no prepared set"):
        take([], 1)
    with pytest.raises(DataError, match="row length 8, but .* has 16"):
        take([*one, (make(tmp_path / "c", tokenizer, count=9, length=8), 1.0)], 1)
    with pytest.raises(DataError, match="attend context"):
        take([*one, (make(tmp_path / "d", tokenizer, count=9, attend="context"), 1.0)], 1)
