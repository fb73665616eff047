"""Texts that end at a stop text, an end token or a limit, as lm-eval's tasks ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrecipes.errors import DataError
from jaxrecipes.generate.decode import generate
from jaxrecipes.generate.sampling import GREEDY, Sampling
from jaxrecipes.models.config import ModelConfig

Tree = dict[str, Any]

_FIRST_PIECE = 32
# Options of `transformers.generate` that tasks set, with the value at which they change nothing.
_NEUTRAL = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "num_return_sequences": 1,
    "use_cache": True,
}
_DRAWING = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class Ending:
    """Where a text ends, and how its tokens are drawn.

    Attributes:
        until: Stop texts; a text is cut before the first of them.
        limit: Most tokens of a text.
        sampling: How tokens are drawn.
    """

    until: tuple[str, ...]
    limit: int
    sampling: Sampling = GREEDY


def read_ending(options: dict[str, Any], *, max_length: int) -> Ending:
    """Reads a task's generation options.

    Args:
        options: As lm-eval's `normalize_gen_kwargs` leaves them: `until`, `max_gen_toks`,
            `do_sample`, and what `transformers.generate` takes.
        max_length: The model's context in tokens.

    Returns:
        The ending.

    Raises:
        DataError: An option would change the text and is not supported, or the limit leaves no room
            for a context.
        ConfigError: A sampling option is out of range.
    """
    rest = dict(options)
    until = tuple(text for text in rest.pop("until", ()) if text)
    limit = int(rest.pop("max_gen_toks"))
    if not 1 <= limit < max_length:
        raise DataError(
            f"a task wants {limit} new tokens (max_gen_toks), the model's context is {max_length} "
            "tokens: expected at least 1, and room for one token of context"
        )
    sampled = bool(rest.pop("do_sample", False))
    drawing = {name: rest.pop(name, None) for name in _DRAWING}
    for name, value in rest.items():
        if value is not None and (name not in _NEUTRAL or _NEUTRAL[name] != value):
            raise DataError(
                f"the generation option {name}={value!r} of a task is not supported; expected "
                "until, max_gen_toks, do_sample, temperature, top_k, top_p or min_p"
            )
    if not sampled:
        return Ending(until, limit)
    given = {name: value for name, value in drawing.items() if value is not None}
    return Ending(until, limit, Sampling(**{"temperature": 1.0, **given}))


def continue_texts(
    config: ModelConfig,
    params: Tree,
    prompts: Sequence[Sequence[int]],
    ending: Ending,
    *,
    decode: Callable[[Sequence[int]], str],
    eos_ids: Sequence[int],
    seeds: Sequence[int],
    batch_size: int = 32,
    compute_dtype: Any,
    on_written: Callable[[int], Any] = lambda count: None,
) -> list[str]:
    """Writes one continuation a prompt, in pieces that double.

    Most answers are short, and the sampler knows no stop texts: after each piece the texts that met
    one leave, and the others go on from where they are.

    Args:
        config: The model.
        params: Canonical tree.
        prompts: Token ids of each prompt, with room for `ending.limit` more in the context.
        ending: Where texts end.
        decode: Token ids to text, without special tokens.
        eos_ids: Tokens that end a text.
        seeds: One number a prompt; a text depends on its own seed alone.
        batch_size: Most prompts decoded together.
        compute_dtype: dtype of activations and cache.
        on_written: Called after each piece with the number of texts that ended in it.

    Returns:
        The texts, cut before the first stop text.
    """
    written: list[list[int]] = [[] for _ in prompts]
    active, piece = list(range(len(prompts))), _FIRST_PIECE
    while active:
        done = len(written[active[0]])
        piece = min(piece, ending.limit - done)
        pieces = generate(
            config,
            params,
            [[*prompts[index], *written[index]] for index in active],
            max_new_tokens=piece,
            eos_ids=eos_ids,
            sampling=ending.sampling,
            seed=[_seed(seeds[index], done) for index in active],
            batch_size=batch_size,
            compute_dtype=compute_dtype,
        )
        unfinished = []
        for index, tokens in zip(active, pieces, strict=True):
            written[index] += tokens
            text = decode(written[index])
            ended = tokens[-1] in eos_ids or len(written[index]) >= ending.limit
            if not ended and not any(stop in text for stop in ending.until):
                unfinished.append(index)
        on_written(len(active) - len(unfinished))
        active, piece = unfinished, 2 * piece
    return [_cut(decode(tokens), ending.until) for tokens in written]


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.split(stop)[0]
    return text


def _seed(seed: int, done: int) -> int:
    """A seed for each text and piece, below 2**32."""
    return int(np.random.SeedSequence([seed, done]).generate_state(1)[0])
