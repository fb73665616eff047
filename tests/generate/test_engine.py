"""Decoding against transformers and against decoding without a cache."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.checkpoint.huggingface import import_checkpoint
from jaxrecipes.checkpoint.peft_names import decoder_modules
from jaxrecipes.errors import DataError
from jaxrecipes.generate import reader
from jaxrecipes.generate.engine import Engine, generate
from jaxrecipes.generate.sampling import Sampling
from jaxrecipes.generate.tokens import TokenPrompt, Written
from jaxrecipes.models.decoder import hidden_states, logits
from jaxrecipes.params.expansion import expand_blocks
from jaxrecipes.params.lora import build_adapters
from jaxrecipes.params.lora_options import AdapterOptions
from jaxrecipes.params.lora_targets import select_modules
from jaxrecipes.params.partition import combine
from tests.conftest import TINY_CONFIGS
from tests.devices import run_on_devices
from tests.params.test_lora import moved
from tests.tiny import tiny_config, tiny_params

# From one token to more than the padded length of 16, and longer than every tiny window.
LENGTHS = (1, 20, 5, 12, 24)
# Those with most features; the others are `long`.
FAMILIES = [
    family
    if family in ("llama", "gemma2", "qwen3")
    else pytest.param(family, marks=pytest.mark.long)
    for family in sorted(TINY_CONFIGS)
]


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


def write(config, params, prompts, **options) -> list[Written]:
    written: dict[int, Written] = {}

    def keep(index: int, one: Written) -> None:
        assert index not in written
        written[index] = one

    Engine(config, params, **options).write(prompts, keep)
    return [written[index] for index in range(len(prompts))]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers(family, tiny_checkpoint):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint(family)
    imported = import_checkpoint(folder)
    prompts = random_prompts(256)
    penalties = [1.0, 1.6, 1.0, 0.8, 1.0]
    written = write(
        imported.config,
        imported.params,
        [
            TokenPrompt(tuple(prompt), 16, Sampling(repetition_penalty=penalty))
            for prompt, penalty in zip(prompts, penalties, strict=True)
        ],
        slots=3,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    for prompt, penalty, ours in zip(prompts, penalties, written, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=16,
            do_sample=False,
            pad_token_id=258,
            repetition_penalty=penalty,
        )
        assert list(ours.token_ids) == theirs[0, len(prompt) :].tolist()
    # Not one token repeated: the comparison would say little.
    assert len({token for ours in written for token in ours.token_ids}) > 5


def assert_most_likely(config, params, prompts, written):
    """Compares with what the whole text gives, computed at once and without a cache."""

    @jax.jit
    def log_probabilities(token_ids):
        segment_ids = jnp.ones_like(token_ids)
        positions = jnp.arange(token_ids.shape[1])[None]
        states = hidden_states(config, params, token_ids, segment_ids, positions)
        return jax.nn.log_softmax(logits(config, params, states))[0]

    for prompt, one in zip(prompts, written, strict=True):
        whole = [*prompt, *one.token_ids]
        row = np.zeros((1, config.max_position_embeddings), np.int32)  # one shape for all
        row[0, : len(whole)] = whole
        expected = np.asarray(log_probabilities(row))
        ends = expected[len(prompt) - 1 : len(whole) - 1]
        assert list(one.token_ids) == ends.argmax(-1).tolist()
        taken = np.take_along_axis(expected[:-1], row[0, 1:, None], axis=1)[: len(whole) - 1, 0]
        if one.logprobs is not None:
            np.testing.assert_allclose(one.logprobs, taken[len(prompt) - 1 :], atol=2e-4)
        if one.prompt_logprobs is not None:
            np.testing.assert_allclose(one.prompt_logprobs, taken[: len(prompt) - 1], atol=2e-4)


def test_short_and_long_answers_share_slots_and_each_is_as_if_alone():
    """The ring grows, slots are refilled, and at the end there are fewer of them."""
    config, params = tiny_model()
    prompts = random_prompts(config.vocab_size, lengths=(3, 9, 17, 1, 12, 5, 8))
    limits = [2, 100, 5, 3, 1, 40, 4]
    asked = [
        TokenPrompt(tuple(prompt), limit, logprobs=limit > 2, prompt_logprobs=limit > 4)
        for prompt, limit in zip(prompts, limits, strict=True)
    ]
    written = write(config, params, asked, slots=4)
    assert [len(one.token_ids) for one in written] == limits
    assert {one.finish for one in written} == {"length"}
    assert [one.logprobs is None for one in written] == [limit <= 2 for limit in limits]
    assert [one.prompt_logprobs is None for one in written] == [limit <= 4 for limit in limits]
    assert_most_likely(config, params, prompts, written)


@pytest.mark.parametrize("kind", ["lora", "dora", "expanded"])
def test_changed_models_write_what_they_compute(kind):
    config, params = tiny_model()
    if kind == "expanded":
        expanded = expand_blocks(config, params, new_blocks=1)
        generator = np.random.default_rng(0)  # away from the identity
        config, params = (
            expanded.config,
            jax.tree.map(
                lambda leaf: leaf + 0.05 * generator.standard_normal(leaf.shape, np.float32),
                expanded.params,
            ),
        )
    else:
        options = AdapterOptions(rank=4, use_dora=kind == "dora")
        adapted = build_adapters(
            params, options, select_modules(options, decoder_modules(config)), jax.random.key(0)
        )
        params = combine(moved(adapted.adapters), adapted.base)
    prompts = random_prompts(config.vocab_size, lengths=(4, 12))
    asked = [TokenPrompt(tuple(prompt), 8, logprobs=True) for prompt in prompts]
    assert_most_likely(config, params, prompts, write(config, params, asked, slots=2))


def test_shared_beginnings_are_read_once(monkeypatch):
    config, params = tiny_model()
    read = []
    original = reader.read_prompts

    def spy(params, prefix, token_ids, next_ids, **options):
        read.append(token_ids.shape)
        return original(params, prefix, token_ids, next_ids, **options)

    monkeypatch.setattr(reader, "read_prompts", spy)
    (beginning,) = random_prompts(config.vocab_size, lengths=(70,))
    ends = random_prompts(config.vocab_size, lengths=(6,) * 5, seed=1)
    prompts = [beginning + end for end in ends]
    written = write(config, params, [TokenPrompt(tuple(prompt), 4) for prompt in prompts], slots=2)
    assert_most_likely(config, params, prompts, written)
    assert read == [(1, 64), *[(1, 16)] * 5]
    # Five samples of one prompt: it is read once, and each has its own seed.
    read.clear()
    drawn = Sampling(temperature=2.0)
    same = [TokenPrompt(tuple(beginning), 4, drawn, seed=seed) for seed in range(5)]
    written = write(config, params, same, slots=2)
    assert read == [(1, 96)]
    assert len({one.token_ids for one in written}) == 5


def test_long_prompts_are_read_in_pieces(monkeypatch):
    config, params = tiny_model()
    prompts = random_prompts(config.vocab_size, lengths=(75, 33))
    asked = [
        TokenPrompt(tuple(prompt), 4, prompt_logprobs=number == 0)
        for number, prompt in enumerate(prompts)
    ]
    monkeypatch.setattr(reader, "_PIECE", 32)
    assert_most_likely(config, params, prompts, write(config, params, asked, slots=2))


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


POOL = [
    TokenPrompt((5, 9, 2, 40), 9, Sampling(temperature=1.0), seed=3, logprobs=True),
    TokenPrompt((5, 9, 2, 40), 9, Sampling(temperature=1.0), seed=4),
    TokenPrompt((7,), 20, Sampling(temperature=1.3, top_k=7), seed=-1),
    TokenPrompt((1, 2, 3, 4, 5, 6, 7, 8), 1),
    TokenPrompt((11, 3), 14, stop=("17", "3 4"), stop_ids=(2,)),
    TokenPrompt((30, 31, 8), 30, Sampling(temperature=0.8, top_p=0.9), seed=2**40),
    TokenPrompt((50, 2, 2, 2, 9), 12, Sampling(temperature=1.5, min_p=0.1), stop=("1",)),
]


def numbers(token_ids):
    return " ".join(map(str, token_ids))


@cache
def alone(index: int):
    return write(*tiny_model(), [POOL[index]], slots=1, decode=numbers)[0]


@settings(deadline=None, max_examples=15)
@given(
    chosen=st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=9),
    slots=st.sampled_from([1, 3, 8]),
)
def test_a_text_does_not_depend_on_its_neighbours_nor_on_slots(chosen, slots):
    together = write(*tiny_model(), [POOL[index] for index in chosen], slots=slots, decode=numbers)
    for index, one in zip(chosen, together, strict=True):
        expected = alone(index)
        assert (one.token_ids, one.text, one.finish) == (
            expected.token_ids,
            expected.text,
            expected.finish,
        )
        if expected.logprobs is not None:
            np.testing.assert_allclose(one.logprobs, expected.logprobs, atol=1e-5)


def test_the_seed_of_a_text_is_all_of_it():
    seeds = [0, 1, 2**32, 2**32 + 1]
    asked = [TokenPrompt((5, 9), 12, Sampling(temperature=2.0), seed=seed) for seed in seeds]
    assert len({one.token_ids for one in write(*tiny_model(), asked)}) == 4


@pytest.mark.long
def test_a_mesh_writes_what_one_device_writes():
    one, mesh = run_on_devices("tests.generate.mesh", devices=4)
    assert one == mesh


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "tokens"), [(25, 8), pytest.param(1, 32, marks=pytest.mark.long)]
)
def test_smollm2_greedy_equals_transformers(smollm2_folder, every, tokens):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    from jaxrecipes.checkpoint.tokenizer import load_tokenizer
    from jaxrecipes.evaluate.probes import general_prompts
    from jaxrecipes.generate.answers import render_prompt

    tokenizer = load_tokenizer(smollm2_folder)
    texts = list(general_prompts().values())
    # Up to four real prompts in one, so that lengths are mixed.
    prompts = [
        render_prompt(tokenizer, "\n".join(texts[number : number + 1 + number % 4]))
        for number in range(0, len(texts), every)
    ]
    imported = import_checkpoint(smollm2_folder)
    ours = generate(
        imported.config,
        imported.params,
        prompts,
        max_new_tokens=tokens,
        eos_ids=[tokenizer.eos_token_id],
        slots=16,
    )
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    ties = []
    for number, (prompt, continuation) in enumerate(zip(prompts, ours, strict=True)):
        with torch.inference_mode():
            theirs = model.generate(
                torch.tensor([prompt]),
                max_new_tokens=tokens,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
            )[0, len(prompt) :].tolist()
            if continuation == theirs:
                continue
            # Two tokens that are equally likely up to rounding may change places; nothing else may.
            pairs = zip(continuation, theirs, strict=False)
            at = next(place for place, pair in enumerate(pairs) if len({*pair}) > 1)
            last = model(torch.tensor([prompt + theirs[:at]])).logits[0, -1]
        gap = float(last[theirs[at]] - last[continuation[at]])
        assert gap < 1e-4, (number, at, gap)
        ties.append((number, at, gap))
    print(
        f"{len(prompts)} prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens, "
        f"{sum(map(len, ours))} tokens written; near-ties: {ties}"
    )
    assert len(ties) <= len(prompts) // 16
