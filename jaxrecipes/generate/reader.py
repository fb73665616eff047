"""Reading prompts: padded to few lengths, long ones in pieces, shared beginnings once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxrecipes.generate.cache import Caches
from jaxrecipes.generate.slots import read_prompts
from jaxrecipes.generate.tokens import TokenPrompt
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.sharding.host import to_host

Tree = dict[str, Any]

# A longer text is read in pieces, because attention computes a logit for each pair of tokens.
_PIECE = 1024
# Tokens that are read together, padding counted.
_TOGETHER = 2048


@dataclass(frozen=True)
class Read:
    """Texts that were read.

    Attributes:
        caches: One a layer, [rows, kv_heads, width, head_dim], each text from the first column on.
        rows: Context -> its row.
        logprobs: Context -> float32 [context], of the token after each of its tokens; only of a
            context that was read alone, for a prompt that asks for it.
    """

    caches: Caches
    rows: dict[tuple[int, ...], int]
    logprobs: np.ndarray | None = None


class Reader:
    """Reads the contexts of prompts for one model; remembers the latest shared beginning."""

    def __init__(self, config: ModelConfig, params: Tree, compute_dtype: Any) -> None:
        """Takes a model; see `read_prompts`."""
        self._config, self._params, self._dtype = config, params, compute_dtype
        self._prefix: tuple[tuple[int, ...], Caches] | None = None

    def rows(self, tokens: int, most: int) -> int:
        """Returns how many texts of so many tokens are read together, `most` at most."""
        return max(1, min(most, _TOGETHER // padded_length(tokens)))

    def read(self, contexts: Sequence[tuple[int, ...]], prefix: int, rows: int) -> Read:
        """Reads texts that begin with the same tokens.

        Args:
            contexts: At most `rows` of them; one alone where `rows` is 1.
            prefix: So many tokens all of them begin with.
            rows: Rows of the result.

        Returns:
            The texts.
        """
        begun = self._read_prefix(contexts[0][:prefix]) if prefix else None
        rests = [np.asarray(context[prefix:], np.int32) for context in contexts]
        longest = max(len(rest) for rest in rests)
        if longest > _PIECE and len(rests) == 1:
            whole = (longest - 1) // _PIECE * _PIECE
            begun = self._read_pieces(begun, rests[0][:whole])
            rests = [rests[0][whole:]]
            longest = len(rests[0])
        token_ids = np.zeros((rows, padded_length(longest)), np.int32)
        for row, rest in enumerate(rests):
            token_ids[row, : len(rest)] = rest
        caches, _ = self._run(begun, token_ids)
        return Read(caches, {context: row for row, context in enumerate(contexts)})

    def read_scored(self, prompt: TokenPrompt) -> Read:
        """Reads one prompt and the log-probabilities of its tokens.

        Args:
            prompt: At least two tokens.

        Returns:
            The text.
        """
        tokens = np.asarray(prompt.token_ids, np.int32)
        begun, scores = None, []
        for start in range(0, len(tokens) - 1, _PIECE):
            piece = tokens[start : min(start + _PIECE, len(tokens) - 1)]
            last = start + len(piece) == len(tokens) - 1
            width = padded_length(len(piece)) if last else _PIECE
            token_ids, next_ids = np.zeros((2, 1, width), np.int32)
            token_ids[0, : len(piece)] = piece
            next_ids[0, : len(piece)] = tokens[start + 1 : start + 1 + len(piece)]
            begun, logprobs = self._run(begun, token_ids, next_ids)
            assert logprobs is not None
            scores.append(to_host(logprobs)[0, : len(piece)])
        assert begun is not None
        return Read(begun, {prompt.context: 0}, np.concatenate(scores))

    def _read_prefix(self, tokens: tuple[int, ...]) -> Caches:
        if self._prefix is None or self._prefix[0] != tokens:
            self._prefix = None  # its memory is free before the next one is read
            caches = self._read_pieces(None, np.asarray(tokens, np.int32))
            assert caches is not None
            self._prefix = (tokens, caches)
        return self._prefix[1]

    def _read_pieces(self, begun: Caches | None, tokens: np.ndarray) -> Caches | None:
        """Reads one text without padding, so that another one can go on where it ends."""
        for start in range(0, len(tokens), _PIECE):
            begun, _ = self._run(begun, tokens[None, start : start + _PIECE])
        return begun

    def _run(
        self, begun: Caches | None, token_ids: np.ndarray, next_ids: np.ndarray | None = None
    ) -> tuple[Caches, jax.Array | None]:
        return read_prompts(
            self._params,
            begun,
            token_ids,
            next_ids,
            config=self._config,
            compute_dtype=self._dtype,
        )


def padded_length(length: int) -> int:
    """Rounds up to 16, 24, 32, 48, 64, 96, …: few compilations, at most half more tokens."""
    padded = 16
    while padded < length:
        padded += padded // 2 if padded & (padded - 1) == 0 else padded // 3
    return padded
