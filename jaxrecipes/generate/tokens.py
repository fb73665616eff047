"""Prompts and answers in tokens: what the engine takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxrecipes.errors import DataError
from jaxrecipes.generate.sampling import GREEDY, Sampling
from jaxrecipes.models.config import ModelConfig


@dataclass(frozen=True)
class TokenPrompt:
    """One text to be continued.

    Attributes:
        token_ids: The prompt, at least one token.
        max_new_tokens: Longest answer.
        sampling: How its tokens are drawn.
        seed: What is drawn depends on it, on the prompt and on nothing else.
        stop_ids: The answer ends with the first of these tokens.
        stop: The answer ends before the first of these texts.
        logprobs: Whether the log-probabilities of the answer's tokens are wanted.
        prompt_logprobs: Whether those of the prompt's tokens are.
    """

    token_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    prompt_logprobs: bool = False

    @property
    def context(self) -> tuple[int, ...]:
        """What is read before the first token is written: all but the last token."""
        return self.token_ids[:-1]

    @property
    def longest(self) -> int:
        """Tokens of the prompt and its longest answer."""
        return len(self.token_ids) + self.max_new_tokens


@dataclass(frozen=True)
class Written:
    """What was written to one prompt.

    Attributes:
        token_ids: The answer's tokens, with the stop token, or with all tokens of the stop text, if
            one came.
        finish: stop: a stop token or a stop text came. length: it was cut at `max_new_tokens`.
        text: The answer without stop text and special tokens; None where tokens are not decoded.
        logprobs: float32 [tokens], natural logarithms of the probabilities that the model gives the
            answer's tokens, before temperature and everything else in `Sampling`.
        prompt_logprobs: float32 [prompt - 1], those of the prompt's tokens from the second one on.
    """

    token_ids: tuple[int, ...]
    finish: Literal["stop", "length"]
    text: str | None = None
    logprobs: np.ndarray | None = None
    prompt_logprobs: np.ndarray | None = None


def prompt_problem(config: ModelConfig, prompt: TokenPrompt) -> str | None:
    """Returns why a model cannot continue a prompt, for people; None if it can."""
    token_ids, new = prompt.token_ids, prompt.max_new_tokens
    if new < 1:
        return f"max_new_tokens is {new}; expected at least 1"
    if not token_ids:
        return (
            "the prompt has no tokens; give it at least one, for instance the tokenizer's "
            "beginning-of-text token"
        )
    if min(token_ids) < 0 or max(token_ids) >= config.vocab_size:
        return (
            f"the prompt holds token ids from {min(token_ids)} to {max(token_ids)}; the model's "
            f"vocabulary is 0 to {config.vocab_size - 1}: use the checkpoint's own tokenizer"
        )
    if prompt.longest > config.max_position_embeddings:
        return (
            f"the prompt has {len(token_ids)} tokens, which with max_new_tokens {new} is beyond "
            f"the model's context of {config.max_position_embeddings}: shorten the prompt or lower "
            "max_new_tokens"
        )
    return None


def check_prompts(config: ModelConfig, prompts: Sequence[TokenPrompt]) -> None:
    """Refuses prompts that a model cannot continue.

    Raises:
        DataError: Names the prompt by its number and says why.
    """
    for number, prompt in enumerate(prompts):
        if (problem := prompt_problem(config, prompt)) is not None:
            raise DataError(f"prompt {number}: {problem}")
