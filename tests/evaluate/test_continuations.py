from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.evaluate import continuations
from jaxrecipes.evaluate.continuations import make_batches, score_continuations
from jaxrecipes.models import decoder

from .conftest import loud_params, tiny_config


def log_probabilities(config, params, tokens) -> np.ndarray:
    """[tokens, vocabulary] of one sequence alone, all logits at once."""
    token_ids, segment_ids, positions = np.zeros((3, 1, 128), np.int32)
    token_ids[0, : len(tokens)] = tokens
    segment_ids[0, : len(tokens)] = 1
    positions[0] = np.arange(128)
    states = decoder.hidden_states(config, params, token_ids, segment_ids, positions)
    values = decoder.logits(config, params, states[0, : len(tokens)])
    return np.asarray(jax.nn.log_softmax(values))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.sampled_from([64, 256, 1024]))
def test_every_sequence_lies_in_one_place_alone(lengths, batch_tokens):
    sequences = [np.full(length, index + 1) for index, length in enumerate(lengths)]
    seen, shapes = [], {}
    for batch in make_batches(lengths, batch_tokens=batch_tokens):
        token_ids, segment_ids, positions = batch.arrays(sequences)
        assert token_ids.shape == (batch.rows, batch.length)
        for sequence, row, start in batch.places:
            seen.append(sequence)
            span = slice(start, start + lengths[sequence])
            assert (token_ids[row, span] == sequence + 1).all()
            assert (positions[row, span] == np.arange(lengths[sequence])).all()
            assert len(set(segment_ids[row, span])) == 1
            bucket = max(32, 1 << (lengths[sequence] - 1).bit_length())
            shapes.setdefault(bucket, set()).add((batch.rows, batch.length))
        # A segment is one sequence: as many places as (row, segment) pairs.
        pairs = {(row, s) for row in range(batch.rows) for s in set(segment_ids[row]) - {0}}
        assert len(pairs) == len(batch.places)
        assert (token_ids > 0).sum() == sum(batch.lengths)
    assert sorted(seen) == list(range(len(lengths)))
    assert all(len(found) == 1 for found in shapes.values())


@pytest.mark.slow
def test_scores_equal_brute_force_in_the_order_asked_for(config):
    params = loud_params(config, 3)
    generator = np.random.default_rng(0)
    items = []
    for length in (1, 40, 5, 100, 33, 2, 64, 7):
        tokens = tuple(generator.integers(0, 97, length).tolist())
        items.append((tokens, generator.integers(0, 97, max(1, length // 3)).tolist()))
    # Letters of a question: one input, several targets; and one that greedy decoding writes.
    items += [(items[3][0], [target]) for target in (4, 5, 6)]
    best = int(log_probabilities(config, params, list(items[1][0]))[-1].argmax())
    items.append((items[1][0], [best]))
    scored = []
    totals, greedy = score_continuations(
        config,
        params,
        items,
        batch_tokens=256,
        compute_dtype=jnp.float32,
        on_scored=scored.append,
    )
    for (tokens, targets), total, ranked in zip(items, totals, greedy, strict=True):
        rows = log_probabilities(config, params, list(tokens))[-len(targets) :]
        chosen = rows[np.arange(len(targets)), targets]
        assert abs(chosen.sum() - total) < 1e-4 * max(1, abs(total))
        assert ranked == (rows.argmax(-1) == targets).all()
    assert greedy[-1]
    assert sum(scored) == len(items)


def test_one_input_is_read_once(monkeypatch):
    config = tiny_config()
    read = []

    def counted(*arguments):
        read.append(int((np.asarray(arguments[-2]) > 0).sum()))
        return run(*arguments)

    run = continuations.run_decoder
    monkeypatch.setattr(continuations, "run_decoder", counted)
    items = [((1, 2, 3, 4, 5), [target]) for target in range(20)]
    score_continuations(
        config, loud_params(config, 0), items, batch_tokens=256, compute_dtype=jnp.float32
    )
    assert read == [5]
