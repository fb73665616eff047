"""Writing many texts with one model: slots that are refilled as soon as their texts end.

The device works on a fixed number of slots, in steps that write one token in each. When a text ends
its slot gets the next prompt, so that short answers do not wait for long ones. The host takes part
only between dispatches of many steps: it collects what was written, ends texts at their stop texts,
gives free slots to waiting prompts and chooses the size of the cache.

What is written to a prompt depends on the prompt and its own options alone, up to the rounding of
matrix products, which a backend may do differently for another number of slots or columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrecipes.errors import DataError
from jaxrecipes.generate.sampling import GREEDY, Sampling
from jaxrecipes.generate.scheduler import OnWritten, Run
from jaxrecipes.generate.stop import Decode
from jaxrecipes.generate.tokens import TokenPrompt, Written, check_prompts
from jaxrecipes.models.config import ModelConfig

Tree = dict[str, Any]
OnProgress = Callable[[int, int], None]


class Engine:
    """A model that continues prompts; see the module."""

    def __init__(
        self,
        config: ModelConfig,
        params: Tree,
        *,
        slots: int = 32,
        compute_dtype: Any = jnp.float32,
        decode: Decode | None = None,
    ) -> None:
        """Takes a model.

        Args:
            config: The model.
            params: Canonical tree (of a runtime tree: `params.layout.to_canonical`), with adapters
                or new blocks or without. Weights that are in `compute_dtype` already save the
                conversion. Where they lie on a mesh the cache does, too.
            slots: Most texts that are written at the same time.
            compute_dtype: dtype of activations, products and cache.
            decode: Token ids to text without special tokens; None if no prompt has stop texts and
                no text is wanted.

        Raises:
            DataError: `slots` is below 1.
        """
        if slots < 1:
            raise DataError(f"slots is {slots}; expected at least 1")
        self._config, self._params, self._decode = config, params, decode
        self._slots, self._dtype = slots, jnp.dtype(compute_dtype)

    def write(
        self,
        prompts: Sequence[TokenPrompt],
        on_written: OnWritten,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Continues each prompt.

        Args:
            prompts: The prompts.
            on_written: Called with a prompt's index and its text as soon as it has ended.
            on_progress: Called every few steps with the number of texts that have ended and the
                number of tokens written.

        Raises:
            DataError: A prompt cannot be continued, see `tokens.prompt_problem`; or one has stop
                texts and the engine does not decode.
        """
        check_prompts(self._config, prompts)
        if self._decode is None and any(prompt.stop for prompt in prompts):
            raise DataError("a prompt has stop texts, and the engine was given no `decode`")
        if not prompts:
            return
        size = 1
        while size < min(self._slots, len(prompts)):
            size *= 2
        run = Run(
            self._config,
            self._params,
            self._dtype,
            self._decode,
            prompts,
            min(size, self._slots),
            on_written,
        )
        while run.unfinished:
            run.fill()
            run.step()
            if on_progress is not None:
                on_progress(run.done, run.tokens)


def generate(
    config: ModelConfig,
    params: Tree,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int] = (),
    sampling: Sampling = GREEDY,
    seed: int | Sequence[int] = 0,
    slots: int = 32,
    compute_dtype: Any = jnp.float32,
    on_progress: OnProgress | None = None,
) -> list[list[int]]:
    """Continues each prompt in the same way; for everything else there is `Engine`.

    What is drawn for a prompt depends on its own seed and on nothing else in the call.

    Args:
        config: The model.
        params: As for `Engine`.
        prompts: Token ids of each prompt, at least one each.
        max_new_tokens: Longest continuation, in tokens.
        eos_ids: A continuation ends with the first of these tokens.
        sampling: How tokens are drawn; greedy by default.
        seed: One seed a prompt; or one number, from which each prompt gets its own seed by its
            index.
        slots: Most prompts decoded together.
        compute_dtype: dtype of activations, products and cache.
        on_progress: See `Engine.write`.

    Returns:
        For each prompt its new token ids, without the prompt, with the end token if one came.

    Raises:
        DataError: A prompt is empty, holds a token id outside of the vocabulary or leaves no room
            for `max_new_tokens` in the model's context; or an option is out of range.
    """
    if isinstance(seed, int):
        seeds = [seed_of(seed, index) for index in range(len(prompts))]
    elif len(seed) != len(prompts):
        raise DataError(
            f"{len(seed)} seeds for {len(prompts)} prompts; expected one each, or one int"
        )
    else:
        seeds = list(seed)
    continuations: list[list[int]] = [[] for _ in prompts]

    def keep(index: int, written: Written) -> None:
        continuations[index] = list(written.token_ids)

    Engine(config, params, slots=slots, compute_dtype=compute_dtype).write(
        [
            TokenPrompt(tuple(prompt), max_new_tokens, sampling, one, tuple(eos_ids))
            for prompt, one in zip(prompts, seeds, strict=True)
        ],
        keep,
        on_progress,
    )
    return continuations


def seed_of(seed: int, number: int) -> int:
    """Returns the seed of one of many texts, below 2**64."""
    return int(np.random.SeedSequence([seed % 2**64, number]).generate_state(1, np.uint64)[0])
