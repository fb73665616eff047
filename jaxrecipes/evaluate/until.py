"""Texts that end at a stop text, an end token or a limit, as lm-eval's tasks ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxrecipes.errors import DataError
from jaxrecipes.generate.engine import Engine
from jaxrecipes.generate.sampling import GREEDY, Sampling
from jaxrecipes.generate.tokens import TokenPrompt, Written
from jaxrecipes.models.config import ModelConfig

Tree = dict[str, Any]

# Options of `transformers.generate` that tasks set, with the value at which they change nothing.
_NEUTRAL = {
    "num_beams": 1,
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
    penalty = rest.pop("repetition_penalty", None) or 1.0
    for name, value in rest.items():
        if value is not None and (name not in _NEUTRAL or _NEUTRAL[name] != value):
            raise DataError(
                f"the generation option {name}={value!r} of a task is not supported; expected "
                "until, max_gen_toks, do_sample, temperature, top_k, top_p, min_p or "
                "repetition_penalty"
            )
    if not sampled:
        return Ending(until, limit, Sampling(repetition_penalty=penalty))
    given = {name: value for name, value in drawing.items() if value is not None}
    return Ending(
        until, limit, Sampling(**{"temperature": 1.0, "repetition_penalty": penalty, **given})
    )


def continue_texts(
    config: ModelConfig,
    params: Tree,
    prompts: Sequence[Sequence[int]],
    ending: Ending,
    *,
    decode: Callable[[Sequence[int]], str],
    eos_ids: Sequence[int],
    seeds: Sequence[int],
    slots: int = 32,
    compute_dtype: Any,
    on_written: Callable[[int], Any] = lambda count: None,
) -> list[str]:
    """Writes one continuation a prompt.

    Args:
        config: The model.
        params: Canonical tree.
        prompts: Token ids of each prompt, with room for `ending.limit` more in the context.
        ending: Where texts end.
        decode: Token ids to text, without special tokens.
        eos_ids: Tokens that end a text.
        seeds: One number a prompt; a text depends on its own seed alone.
        slots: Most texts that are written at the same time.
        compute_dtype: dtype of activations and cache.
        on_written: Called with the number of texts that ended.

    Returns:
        The texts, cut before the first stop text.
    """
    texts = [""] * len(prompts)

    def keep(index: int, written: Written) -> None:
        texts[index] = written.text or ""
        on_written(1)

    engine = Engine(config, params, slots=slots, compute_dtype=compute_dtype, decode=decode)
    engine.write(
        [
            TokenPrompt(
                tuple(prompt), ending.limit, ending.sampling, seed, tuple(eos_ids), ending.until
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ],
        keep,
    )
    return texts
