"""A decoder as a language model of lm-eval (EleutherAI's evaluation harness), without PyTorch.

Tokens, prefix and windows are those of lm-eval's own `hf` backend, so that results can be compared
with published ones. This file needs lm-eval; `jaxrecipes.evaluate.harness` says how to install it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from jaxrecipes.data.chat_template import TEMPLATE_DATE
from jaxrecipes.errors import CheckpointError, DataError
from jaxrecipes.evaluate.continuations import Continuation, score_continuations
from jaxrecipes.evaluate.until import continue_texts, read_ending
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.stacking import Layout
from jaxrecipes.params.layout import plan_layout, to_canonical, to_runtime
from jaxrecipes.params.rules import label

Tree = dict[str, Any]
# ((context, continuation) or None, tokens of the context, tokens of the continuation)
TokenRequest = tuple[Any, list[int], list[int]]


class HarnessModel(TemplateLM):
    """What lm-eval's `evaluate` takes as `lm` and `simple_evaluate` as `model`.

    Attributes:
        tokenizer: The model's `transformers` tokenizer.
        max_length: Longest input in tokens.
        max_gen_toks: Longest generated text in tokens where a task does not say.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Tree,
        tokenizer: Any,
        *,
        eos_ids: Sequence[int] = (),
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_tokens: int = 4096,
        compute_dtype: Any = jnp.float32,
        seed: int = 0,
    ) -> None:
        """Wraps a model.

        Args:
            config: The model.
            params: Its canonical tree.
            tokenizer: Its `transformers` tokenizer.
            eos_ids: Tokens that end a generated text, beside the tokenizer's end token.
            max_length: Longest input in tokens; None for the model's own.
            max_gen_toks: Longest generated text where a task does not say.
            batch_tokens: Tokens of one forward pass, padding included.
            compute_dtype: dtype of activations.
            seed: Seed of sampled texts.

        Raises:
            CheckpointError: The tokenizer has neither a beginning nor an end token.
            DataError: `max_length`, `max_gen_toks` or `batch_tokens` is below 1.
        """
        super().__init__()
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if bos is None and eos is None:
            raise CheckpointError(
                "the tokenizer has neither bos_token nor eos_token, so the first token of a text "
                "has nothing to follow; set one of them in tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        self.max_length = config.max_position_embeddings if max_length is None else max_length
        self.max_gen_toks = max_gen_toks
        for name, value in (
            ("max_length", self.max_length),
            ("max_gen_toks", max_gen_toks),
            ("batch_tokens", batch_tokens),
        ):
            if value < 1:
                raise DataError(f"{name} is {value}; expected at least 1")
        self._config = config
        self._params = params
        # None while the tree is canonical. Only one form is kept: each is a whole model.
        self._layout: Layout | None = None
        self._prefix_id = int(eos if bos is None else bos)
        self._prefix_text = tokenizer.decode([self._prefix_id])
        self._eos_ids = frozenset(eos_ids) | (frozenset() if eos is None else {int(eos)})
        self._batch_tokens = batch_tokens
        self._compute_dtype = jnp.dtype(compute_dtype)
        self._seed = seed

    @property
    def eot_token_id(self) -> int:
        """Token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """Token that a text without a context follows: the beginning token, or else the end one."""
        return self._prefix_id

    @property
    def tokenizer_name(self) -> str:
        """Name under which lm-eval caches rendered requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Encodes a text.

        Args:
            string: The text.
            add_special_tokens: Whether to add the tokenizer's own special tokens; None for yes
                unless the text begins with the prefix token already.
            **kwargs: Part of lm-eval's signature, not used.

        Returns:
            Token ids.
        """
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self._prefix_text)
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Renders messages with the tokenizer's chat template.

        Args:
            chat_history: Messages, each with `role` and `content`.
            add_generation_prompt: End where the assistant begins to write; otherwise the last
                message is left open, to be continued.

        Returns:
            The text.

        Raises:
            CheckpointError: The tokenizer has no chat template.
        """
        self._require_chat_template()
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            date_string=TEMPLATE_DATE,
        )

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the template that `apply_chat_template` renders; None where it is not wanted.

        Raises:
            CheckpointError: It is wanted and the tokenizer has none.
        """
        if chat_template:
            self._require_chat_template()
        return super().chat_template(chat_template)

    def _require_chat_template(self) -> None:
        if not getattr(self.tokenizer, "chat_template", None):
            raise CheckpointError(
                f"the tokenizer {self.tokenizer.name_or_path} has no chat template; evaluate "
                "without one, or use an instruction-tuned checkpoint"
            )

    def _loglikelihood_tokens(
        self, requests: list[TokenRequest], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Scores continuations: log-probability in nats, and whether greedy decoding writes it."""
        items = [self._scored(request) for request in requests]
        params = self._tree(canonical=False)
        with _progress("Scoring", len(requests), disable_tqdm) as bar:
            totals, greedy = score_continuations(
                self._config,
                params,
                items,
                layout=self._layout,
                batch_tokens=self._batch_tokens,
                compute_dtype=self._compute_dtype,
                on_scored=bar.update,
            )
        results = [
            (float(total), bool(ranked)) for total, ranked in zip(totals, greedy, strict=True)
        ]
        for (texts, _, _), result in zip(requests, results, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Scores whole texts, every token once, in windows of `max_length`.

        Args:
            requests: Instances of lm-eval with `args` (text,).
            disable_tqdm: Show no progress.

        Returns:
            Log-probability in nats of each text.
        """
        windows: list[TokenRequest] = []
        ends = []
        for request in requests:
            own = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            windows += [(None, *make_disjoint_window(window)) for window in own]
            ends.append(len(windows))
        scores = [total for total, _ in self._loglikelihood_tokens(windows, disable_tqdm)]
        results = [
            float(np.sum(scores[start:end])) for start, end in zip([0, *ends], ends, strict=False)
        ]
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
        return results

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continues each context until a stop text, the end token or the task's limit.

        Args:
            requests: Instances of lm-eval with `args` (context, options); options as
                `until.read_ending` reads them.
            disable_tqdm: Show no progress.

        Returns:
            The continuations, cut before the first stop text.

        Raises:
            DataError: See `until.read_ending`.
        """
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        texts = [""] * len(requests)
        added = self.tokenizer.get_added_vocab()
        params = self._tree(canonical=True)
        with _progress("Generating", len(requests), disable_tqdm) as bar:
            for indices in groups.values():
                options = normalize_gen_kwargs(requests[indices[0]].args[1], self.max_gen_toks)
                ending = read_ending(dict(options), max_length=self.max_length)
                # A stop text that is one special token is met as that token: it is not decoded.
                special = {added[stop] for stop in ending.until if stop in added}
                room = self.max_length - ending.limit
                written = continue_texts(
                    self._config,
                    params,
                    [self._prompt(requests[index].args[0])[-room:] for index in indices],
                    ending,
                    decode=self._decode,
                    eos_ids=tuple(sorted(self._eos_ids | special)),
                    seeds=[self._seed + index for index in indices],
                    compute_dtype=self._compute_dtype,
                    on_written=bar.update,
                )
                for index, text in zip(indices, written, strict=True):
                    texts[index] = text
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _prompt(self, context: str) -> list[int]:
        return self.tok_encode(context) or [self.prefix_token_id]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _scored(self, request: TokenRequest) -> Continuation:
        """Returns the model's input, cut on the left to fit, and the targets at its end."""
        texts, context, continuation = request
        if not 1 <= len(continuation) <= self.max_length:
            where = "a window" if texts is None else f"the continuation {texts[1]!r:.80}"
            raise DataError(
                f"{where} has {len(continuation)} tokens to score; expected 1 to "
                f"{self.max_length} (the model's context)"
            )
        whole = (context or [self.prefix_token_id]) + continuation
        if max(whole) >= self._config.vocab_size:
            raise DataError(
                f"the tokenizer gives token id {max(whole)}, the model's vocabulary has "
                f"{self._config.vocab_size}; use the checkpoint's own tokenizer"
            )
        return tuple(whole[-(self.max_length + 1) : -1]), continuation

    def _tree(self, *, canonical: bool) -> Tree:
        """Returns the parameters in the form that decoding or scoring takes."""
        if canonical and self._layout is not None:
            self._params, self._layout = to_canonical(self._layout, self._params), None
        elif not canonical and self._layout is None:
            layout = plan_layout(self._config, label(self._params, [(".*", True)]))
            self._params, self._layout = to_runtime(layout, self._params), layout
        return self._params


def _progress(what: str, total: int, disable: bool) -> tqdm:
    # None: shown on terminals only.
    return tqdm(total=total, desc=what, disable=True if disable else None)
