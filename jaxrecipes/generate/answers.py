"""Answers that a model writes to prompts, as token ids with a mask of what it wrote itself.

The base model's answers to a fixed list of general prompts are the keep set: what must not change
when the model learns something else. KL to the base is measured on the answer tokens only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrecipes.data.tokenize_examples import tokenize_prompt
from jaxrecipes.errors import CheckpointError
from jaxrecipes.generate.engine import OnProgress, generate
from jaxrecipes.generate.sampling import GREEDY, Sampling
from jaxrecipes.models.config import ModelConfig


@dataclass(frozen=True)
class Answer:
    """A prompt and what the model wrote to it.

    Attributes:
        id: The prompt's id.
        prompt: The prompt as it was given.
        text: The answer without special tokens.
        prompt_ids: Tokens of the rendered prompt, chat markers included.
        answer_ids: Tokens of the answer, with the end token if the model wrote one.
    """

    id: str
    prompt: str
    text: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    @property
    def token_ids(self) -> np.ndarray:
        """Prompt and answer in one: int32 [prompt + answer]."""
        return np.asarray(self.prompt_ids + self.answer_ids, np.int32)

    @property
    def loss_mask(self) -> np.ndarray:
        """Whether each token is the answer's: bool [prompt + answer]."""
        return np.arange(len(self.prompt_ids) + len(self.answer_ids)) >= len(self.prompt_ids)


def render_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Turns a user's prompt into tokens after which the model's answer begins.

    Args:
        tokenizer: A `transformers` tokenizer. Its chat template is used where it has one;
            otherwise the plain text is, with the tokens that the tokenizer adds by itself.
        prompt: The user's words.

    Returns:
        Token ids.
    """
    if not getattr(tokenizer, "chat_template", None):
        return list(tokenizer(prompt)["input_ids"])
    return tokenize_prompt([{"role": "user", "content": prompt}], tokenizer)


def write_answers(
    config: ModelConfig,
    params: dict[str, Any],
    tokenizer: Any,
    prompts: Mapping[str, str],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int] | None = None,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    slots: int = 32,
    compute_dtype: Any = jnp.float32,
    on_progress: OnProgress | None = None,
) -> list[Answer]:
    """Lets the model answer each prompt.

    The same arguments give the same answers, and an answer does not change when other prompts are
    added or left out: its seed comes from `seed` and its id.

    Args:
        config: The model.
        params: Canonical tree.
        tokenizer: The model's `transformers` tokenizer.
        prompts: Id -> what the user says.
        max_new_tokens: Longest answer, in tokens; longer ones are cut there.
        eos_ids: Tokens that end an answer; None for the tokenizer's end token.
        sampling: How tokens are drawn; greedy by default.
        seed: Base of the prompts' seeds.
        slots: Most prompts answered at the same time.
        compute_dtype: dtype of activations and cache.
        on_progress: See `Engine.write`.

    Returns:
        One answer for each prompt, in the order of `prompts`.

    Raises:
        CheckpointError: `eos_ids` is None and the tokenizer has no end token.
        DataError: See `generate`.
    """
    if eos_ids is None:
        if tokenizer.eos_token_id is None:
            raise CheckpointError(
                "the tokenizer has no end token (eos_token), so no answer would end; set eos_token "
                "in tokenizer_config.json, or pass eos_ids"
            )
        eos_ids = [tokenizer.eos_token_id]
    prompt_ids = [render_prompt(tokenizer, prompt) for prompt in prompts.values()]
    written = generate(
        config,
        params,
        prompt_ids,
        max_new_tokens=max_new_tokens,
        eos_ids=eos_ids,
        sampling=sampling,
        seed=[_request_seed(seed, key) for key in prompts],
        slots=slots,
        compute_dtype=compute_dtype,
        on_progress=on_progress,
    )
    return [
        Answer(
            id=key,
            prompt=prompt,
            text=tokenizer.decode(answer_ids, skip_special_tokens=True).strip(),
            prompt_ids=tuple(ids),
            answer_ids=tuple(answer_ids),
        )
        for (key, prompt), ids, answer_ids in zip(prompts.items(), prompt_ids, written, strict=True)
    ]


def _request_seed(seed: int, key: str) -> int:
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
