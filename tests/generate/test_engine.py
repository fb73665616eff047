"""Decoding against transformers and against decoding without a cache."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxrecipes.checkpoint.huggingface import import_checkpoint
from jaxrecipes.errors import DataError
from jaxrecipes.generate.engine import generate
from jaxrecipes.generate.sampling import Sampling
from jaxrecipes.models.decoder import hidden_states, logits
from tests.conftest import TINY_CONFIGS
from tests.tiny import tiny_config, tiny_params

# From one token to more than the padded length of 16, and longer than every tiny window.
LENGTHS = (1, 19, 5, 12, 30)


def random_prompts(vocabulary: int, lengths=LENGTHS, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocabulary, length).tolist() for length in lengths]


@cache
def tiny_model():
    config = tiny_config(num_layers=2)
    # Louder weights: the most likely token must differ from place to place.
    params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf * 4 if leaf.ndim == 2 else leaf), tiny_params(config)
    )
    return config, params


@pytest.mark.parametrize("penalty", [1.0, 1.6])
@pytest.mark.parametrize("family", sorted(TINY_CONFIGS))
def test_greedy_equals_transformers(family, penalty, tiny_checkpoint):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint(family)
    imported = import_checkpoint(folder)
    prompts = random_prompts(256)
    ours = generate(
        imported.config,
        imported.params,
        prompts,
        max_new_tokens=16,
        sampling=Sampling(repetition_penalty=penalty),
        slots=3,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    for prompt, continuation in zip(prompts, ours, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=16,
            do_sample=False,
            pad_token_id=258,
            repetition_penalty=penalty,
        )
        assert continuation == theirs[0, len(prompt) :].tolist()
    # Not one token repeated: the comparison would say little.
    assert len({token for continuation in ours for token in continuation}) > 5


def test_greedy_equals_decoding_without_a_cache():
    config, params = tiny_model()
    prompts = random_prompts(config.vocab_size)
    ours = generate(config, params, prompts, max_new_tokens=6)

    @jax.jit
    def most_likely(token_ids):
        segment_ids = jnp.ones_like(token_ids)
        positions = jnp.arange(token_ids.shape[1])[None]
        states = hidden_states(config, params, token_ids, segment_ids, positions)
        return logits(config, params, states).argmax(-1)

    for prompt, continuation in zip(prompts, ours, strict=True):
        whole = prompt + continuation
        row = np.zeros((1, 36), np.int32)  # what follows is not seen: one shape for all
        row[0, : len(whole)] = whole
        chosen = np.asarray(most_likely(row))[0, len(prompt) - 1 : len(whole) - 1]
        assert continuation == chosen.tolist()


def test_a_continuation_ends_with_the_first_end_token():
    config, params = tiny_model()
    prompts = random_prompts(config.vocab_size)
    free = generate(config, params, prompts, max_new_tokens=12)
    eos_ids = [free[0][4], free[1][2]]
    stopped = generate(config, params, prompts, max_new_tokens=12, eos_ids=eos_ids)
    for whole, cut in zip(free, stopped, strict=True):
        ends = [index for index, token in enumerate(whole) if token in eos_ids]
        assert cut == (whole[: ends[0] + 1] if ends else whole)
    assert len(stopped[1]) <= 3


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_does_not_depend_on_its_neighbours(temperature):
    config, params = tiny_model()
    prompts = random_prompts(config.vocab_size)
    seeds = [11, 7, 11, 3, 5]

    def write(chosen: list[int], slots: int) -> list[list[int]]:
        return generate(
            config,
            params,
            [prompts[index] for index in chosen],
            max_new_tokens=10,
            sampling=Sampling(temperature=temperature, top_p=0.95),
            seed=[seeds[index] for index in chosen],
            slots=slots,
        )

    together = write([0, 1, 2, 3, 4], 5)
    assert write([0, 1, 2, 3, 4], 2) == together
    assert write([4, 2, 0], 2) == [together[4], together[2], together[0]]


def test_the_seed_decides_and_each_prompt_has_its_own():
    config, params = tiny_model()
    prompts = random_prompts(config.vocab_size, lengths=(6,)) * 4
    sampling = Sampling(temperature=1.0)

    def write(seed):
        return generate(config, params, prompts, max_new_tokens=16, sampling=sampling, seed=seed)

    first = write(1)
    assert write(1) == first
    assert write(2) != first
    assert len({tuple(continuation) for continuation in first}) == 4
    repeated = write([5, 5, 6, 5])
    assert repeated[0] == repeated[1] == repeated[3] != repeated[2]


def test_sampled_first_tokens_follow_the_model():
    config, params = tiny_model()
    prompt = random_prompts(config.vocab_size, lengths=(9,))[0]
    requests = 2000
    drawn = generate(
        config,
        params,
        [prompt] * requests,
        max_new_tokens=1,
        sampling=Sampling(temperature=1.0),
        slots=500,
    )
    row = jnp.asarray([prompt])
    states = hidden_states(config, params, row, jnp.ones_like(row), jnp.arange(len(prompt))[None])
    last = np.asarray(logits(config, params, states)[0, -1], np.float64)
    expected = requests * scipy.special.softmax(last)
    counts = np.bincount([tokens[0] for tokens in drawn], minlength=config.vocab_size)
    # The chi-square test wants at least five expected draws a cell: rare tokens share one.
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    theory = np.append(expected[~rare], expected[rare].sum())
    assert len(theory) > 3
    assert scipy.stats.chisquare(observed, theory).pvalue > 1e-3


def test_progress_counts_prompts():
    config, params = tiny_model()
    seen: list[tuple[int, int]] = []
    generate(
        config,
        params,
        random_prompts(config.vocab_size),
        max_new_tokens=3,
        slots=2,
        on_progress=lambda done, tokens: seen.append((done, tokens)),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (5, 15)


def test_no_prompts_no_texts():
    config, params = tiny_model()
    assert generate(config, params, [], max_new_tokens=1) == []


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "prompt 1: the prompt has no tokens"),
        ([[1, -1]], {}, "prompt 0: .*token ids from -1"),
        ([[100_000]], {}, "100000"),
        ([[1] * 10], {"max_new_tokens": 100_000}, "beyond the model's context"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([[1]], {"slots": 0}, "slots is 0"),
        ([[1]], {"seed": [1, 2]}, "2 seeds for 1 prompts"),
    ],
)
def test_bad_requests_are_refused(prompts, options, message):
    config, params = tiny_model()
    with pytest.raises(DataError, match=message):
        generate(config, params, prompts, **{"max_new_tokens": 2, **options})


@pytest.mark.long
@pytest.mark.parametrize(
    ("every", "tokens"), [(16, 16), pytest.param(4, 32, marks=pytest.mark.long)]
)
def test_smollm2_greedy_equals_transformers(smollm2_folder, every, tokens):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    from jaxrecipes.checkpoint.tokenizer import load_tokenizer
    from jaxrecipes.evaluate.probes import general_prompts
    from jaxrecipes.generate.answers import render_prompt

    tokenizer = load_tokenizer(smollm2_folder)
    texts = list(general_prompts().values())[::every]
    prompts = [render_prompt(tokenizer, text) for text in texts]
    imported = import_checkpoint(smollm2_folder)
    ours = generate(
        imported.config,
        imported.params,
        prompts,
        max_new_tokens=tokens,
        eos_ids=[tokenizer.eos_token_id],
    )
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    for prompt, continuation in zip(prompts, ours, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        assert continuation == theirs[0, len(prompt) :].tolist()
