"""A teacher that is a model of ours, decoded in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxrecipes.checkpoint.tokenizer import tokenizer_fingerprint
from jaxrecipes.errors import ConfigError, DataError
from jaxrecipes.generate.engine import Engine, OnProgress
from jaxrecipes.generate.prompts import PromptTokenizer
from jaxrecipes.generate.teacher import Reply, Request
from jaxrecipes.generate.tokens import TokenPrompt, Written, prompt_problem
from jaxrecipes.models.config import ModelConfig

Tree = dict[str, Any]


class LocalTeacher:
    """Answers requests with a decoder in this process; see `Teacher`."""

    def __init__(
        self,
        config: ModelConfig,
        params: Tree,
        tokenizer: Any,
        *,
        identity: Mapping[str, Any],
        slots: int = 32,
        compute_dtype: Any = jnp.float32,
        eos_ids: Sequence[int] | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Takes a model.

        Args:
            config: The model.
            params: Canonical tree.
            tokenizer: The model's `PreTrainedTokenizerFast`.
            identity: JSON values that say which weights these are, such as a fingerprint.
            slots: Most answers that are written at the same time.
            compute_dtype: dtype of activations, products and cache.
            eos_ids: Tokens that end an answer; None for the tokenizer's end token.
            on_progress: Called in each `answer` as `Engine.write` says.

        Raises:
            ConfigError: There is no token that ends an answer.
        """
        if eos_ids is None:
            if tokenizer.eos_token_id is None:
                raise ConfigError(
                    "the tokenizer has no end token (eos_token), so no answer would end; set "
                    "eos_token in tokenizer_config.json, or pass eos_ids"
                )
            eos_ids = [tokenizer.eos_token_id]
        self._config, self._on_progress = config, on_progress
        self._engine = Engine(
            config,
            params,
            slots=slots,
            compute_dtype=compute_dtype,
            decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        )
        self._eos_ids = tuple(sorted(set(eos_ids)))
        self._encode = PromptTokenizer(tokenizer)
        template = repr(getattr(tokenizer, "chat_template", None))
        self._identity = {
            "teacher": "local",
            **identity,
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "chat_template": hashlib.sha256(template.encode()).hexdigest(),
            "eos_ids": list(self._eos_ids),
            "compute_dtype": jnp.dtype(compute_dtype).name,
        }

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON values that, with a request, determine its answer."""
        return self._identity

    def answer(self, requests: Sequence[Request], on_reply: Callable[[Reply], None]) -> None:
        """Answers each request once, see `Teacher.answer`; one that cannot be answered fails."""
        asked: list[Request] = []
        prompts: list[TokenPrompt] = []
        for request in requests:
            try:
                prompt = TokenPrompt(
                    tuple(self._encode(request)),
                    request.max_new_tokens,
                    request.sampling,
                    request.seed,
                    self._eos_ids,
                    request.stop,
                )
                problem = prompt_problem(self._config, prompt)
            except DataError as error:
                prompt, problem = None, str(error)
            if prompt is None or problem is not None:
                on_reply(Reply(request.id, "", "failed", problem or ""))
            else:
                asked.append(request)
                prompts.append(prompt)

        def reply(index: int, written: Written) -> None:
            on_reply(
                Reply(
                    asked[index].id,
                    written.text or "",
                    written.finish,
                    prompt_tokens=len(prompts[index].token_ids),
                    new_tokens=len(written.token_ids),
                )
            )

        self._engine.write(prompts, reply, self._on_progress)
