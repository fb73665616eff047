"""What a related context is worth: which tokens are scored, behind what, and how much it shows."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.errors import DataError
from jaxrecipes.evaluate.context_gain import context_block, pair_documents
from jaxrecipes.models.decoder import hidden_states, logits

from .conftest import loud_params, tiny_config

EOS, LENGTH = 1, 24


def documents(seed, count):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(2, 40, count)
    return [
        (f"d{at}", np.append(generator.integers(2, 90, size), EOS)) for at, size in enumerate(sizes)
    ]


def scored(rows):
    """For each document the tokens before its scored ones, and those."""
    found = {}
    arrays = (rows.token_ids, rows.document_index, rows.loss_mask)
    for tokens, index, mask in zip(*arrays, strict=True):
        for at in np.unique(index[index >= 0]).tolist():
            mine = index == at
            found[at] = (tokens[mine & ~mask], tokens[mine & mask])
    return found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), count=st.integers(3, 7))
def test_the_same_tokens_are_scored_behind_three_contexts(seed, count):
    texts = documents(seed, count)
    related = {at: (at + 1) % count for at in range(0, count, 2)}
    pairs = pair_documents(texts, related, length=LENGTH, eos_id=EOS, seed=seed)
    behind = {
        kind: scored(getattr(pairs, kind)) for kind in ("alone", "after_random", "after_related")
    }
    for place, (index, relative) in enumerate(sorted(related.items())):
        own = texts[index][1][: LENGTH // 2]
        for kind in behind.values():
            assert kind[place][1].tolist() == own.tolist()
        assert behind["alone"][place][0].tolist() == [EOS]
        half = LENGTH // 2
        assert behind["after_related"][place][0].tolist() == texts[relative][1][-half:].tolist()
        others = [
            texts[at][1][-half:].tolist() for at in range(count) if at not in (index, relative)
        ]
        assert behind["after_random"][place][0].tolist() in others


@pytest.mark.slow
def test_the_losses_are_the_models_own():
    """Against one forward pass for each sequence."""
    config, params = tiny_config(), loud_params(tiny_config(), 3)
    texts = documents(5, 6)
    pairs = pair_documents(texts, {1: 0, 2: 1, 4: 3}, length=LENGTH, eos_id=EOS, seed=0)
    block = context_block(config, params, pairs, seed=0, batch_size=2, chunk=16)
    totals = {}
    for kind in ("alone", "after_random", "after_related"):
        nll = count = 0.0
        for before, own in scored(getattr(pairs, kind)).values():
            tokens = jnp.asarray(np.concatenate([before, own]))[None]
            ones, positions = jnp.ones_like(tokens), jnp.arange(tokens.shape[1])[None]
            states = hidden_states(config, params, tokens, ones, positions)
            given = np.asarray(logits(config, params, states))[0].astype(np.float64)
            given -= np.log(np.exp(given).sum(-1, keepdims=True))
            at = np.arange(len(before), tokens.shape[1])
            nll -= given[at - 1, np.asarray(tokens)[0, at]].sum()
            count += len(own)
        totals[kind] = nll / count
        assert block[kind]["value"] == pytest.approx(totals[kind], abs=1e-4)
    gain = totals["after_random"] - totals["after_related"]
    assert block["gain"]["value"] == pytest.approx(gain, abs=1e-4)
    over_none = totals["alone"] - totals["after_related"]
    assert block["gain_over_none"]["value"] == pytest.approx(over_none, abs=1e-4)
    assert block["documents"] == 3


def test_too_few_documents_are_refused():
    with pytest.raises(DataError, match="2 held-out documents.*Raise data.held_out"):
        pair_documents(documents(0, 2), {0: 1}, length=LENGTH, eos_id=EOS, seed=0)
    with pytest.raises(DataError, match="0 related pairs"):
        pair_documents(documents(0, 5), {}, length=LENGTH, eos_id=EOS, seed=0)
