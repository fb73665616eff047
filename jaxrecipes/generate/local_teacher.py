"""A teacher that is a model of ours, decoded in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxrecipes.checkpoint.tokenizer import tokenizer_fingerprint
from jaxrecipes.errors import ConfigError, DataError
from jaxrecipes.generate.decode import generate
from jaxrecipes.generate.prompts import PromptTokenizer
from jaxrecipes.generate.teacher import Reply, Request
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
    ) -> None:
        """Takes a model.

        Args:
            config: The model.
            params: Canonical tree.
            tokenizer: The model's `PreTrainedTokenizerFast`.
            identity: JSON values that say which weights these are, such as a fingerprint.
            slots: Most requests that are decoded together.
            compute_dtype: dtype of activations, products and cache.
            eos_ids: Tokens that end an answer; None for the tokenizer's end token.

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
        self._config, self._params, self._tokenizer = config, params, tokenizer
        self._slots, self._dtype = slots, jnp.dtype(compute_dtype)
        self._eos_ids = tuple(sorted(set(eos_ids)))
        self._encode = PromptTokenizer(tokenizer)
        template = repr(getattr(tokenizer, "chat_template", None))
        self._identity = {
            "teacher": "local",
            **identity,
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "chat_template": hashlib.sha256(template.encode()).hexdigest(),
            "eos_ids": list(self._eos_ids),
            "compute_dtype": self._dtype.name,
        }

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON values that, with a request, determine its answer."""
        return self._identity

    def answer(self, requests: Sequence[Request], on_reply: Callable[[Reply], None]) -> None:
        """Answers each request once; see `Teacher.answer`."""
        groups: dict[Any, list[tuple[Request, list[int]]]] = {}
        for request in requests:
            try:
                prompt = self._encode(request)
            except DataError as error:
                on_reply(Reply(request.id, "", "failed", str(error)))
                continue
            group = (request.sampling, request.max_new_tokens)
            groups.setdefault(group, []).append((request, prompt))
        for (sampling, limit), members in groups.items():
            for start in range(0, len(members), self._slots):
                self._answer_group(members[start : start + self._slots], sampling, limit, on_reply)

    def _answer_group(self, members: Any, sampling: Any, limit: int, on_reply: Any) -> None:
        fits = []
        for request, prompt in members:
            room = self._config.max_position_embeddings - limit
            if 0 < len(prompt) <= room:
                fits.append((request, prompt))
            else:
                message = f"the prompt has {len(prompt)} tokens; expected 1 to {room}"
                on_reply(Reply(request.id, "", "failed", message))
        written = generate(
            self._config,
            self._params,
            [prompt for _, prompt in fits],
            max_new_tokens=limit,
            eos_ids=self._eos_ids,
            sampling=sampling,
            seed=[request.seed % 2**32 for request, _ in fits],
            batch_size=self._slots,
            compute_dtype=self._dtype,
        )
        for (request, prompt), tokens in zip(fits, written, strict=True):
            text = str(self._tokenizer.decode(tokens, skip_special_tokens=True))
            places = [text.index(stop) for stop in request.stop if stop in text]
            ended = bool(places) or tokens[-1] in self._eos_ids
            on_reply(
                Reply(
                    request.id,
                    text[: min(places, default=len(text))],
                    "stop" if ended else "length",
                    prompt_tokens=len(prompt),
                    new_tokens=len(tokens),
                )
            )
