"""Token loss, bits per byte, perplexity and KL divergence from the base model, by document.

The work of an evaluation is one forward pass and one product with the output head. Hidden states
of all scored tokens are gathered first; the head is then applied to a fixed number of tokens at a
time, so logits of the whole set never exist and nothing is compiled twice.

KL(base || model) compares the two next-token distributions at every scored position, in nats:
sum over the vocabulary of p_base * log(p_base / p_model). The base's hidden states are computed
once (`BaseCache`). While the head is the base's own (frozen) and has no soft-cap, the sum over the
vocabulary is done once as well: with logits = h @ W, and e = W @ p_base the expected output
embedding of the base,

    KL = e . (h_base - h_model) + log Z_model - log Z_base,

and log Z_model is part of the loss already. A head that was trained needs the base's logits again;
the sum is then taken as p_base * (exp(-d) - 1 + d), d = log(p_base / p_model), whose terms are
all positive, so that a small divergence is not lost in rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrecipes.errors import DataError
from jaxrecipes.evaluate.bootstrap import Interval, difference_interval, ratio_interval
from jaxrecipes.evaluate.head_scores import (
    expected_embedding,
    head_kind,
    head_subtree,
    in_chunks,
    same_head,
    score,
    score_against,
)
from jaxrecipes.evaluate.rows import EvaluationRows
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import hidden_states
from jaxrecipes.models.execution import ONE_DEVICE, Execution
from jaxrecipes.models.stacking import Layout
from jaxrecipes.sharding.host import to_host
from jaxrecipes.sharding.mesh import BATCH_AXES
from jaxrecipes.sharding.rules import tree_shardings

Tree = dict[str, Any]
_LN2 = float(np.log(2.0))


@dataclass(frozen=True)
class DocumentSums:
    """What an evaluation measured, summed by document.

    Attributes:
        document_ids: Name of each document.
        tokens: float64 [documents], scored tokens.
        nll: float64 [documents], summed negative log-likelihood in nats.
        correct: float64 [documents], scored tokens that the model ranks first.
        bytes: float64 [documents], UTF-8 bytes of the scored tokens, or None if not known.
        kl: float64 [documents], summed KL(base || model) in nats, or None without a base.
        base_nll: float64 [documents], the base's `nll`, or None without a base.
    """

    document_ids: tuple[str, ...]
    tokens: np.ndarray
    nll: np.ndarray
    correct: np.ndarray
    bytes: np.ndarray | None = None
    kl: np.ndarray | None = None
    base_nll: np.ndarray | None = None

    def loss(self, *, seed: int = 0) -> Interval:
        """Returns nats a token, with its bootstrap interval."""
        return ratio_interval(self.nll, self.tokens, seed=seed)

    def perplexity(self, *, seed: int = 0) -> Interval:
        """Returns exp(loss); the interval is the loss's, transformed."""
        loss = self.loss(seed=seed)
        low, high = (None if end is None else float(np.exp(end)) for end in (loss.low, loss.high))
        return Interval(float(np.exp(loss.value)), low, high)

    def bits_per_byte(self, *, seed: int = 0) -> Interval | None:
        """Returns bits a UTF-8 byte, comparable between tokenizers; None if bytes are unknown."""
        if self.bytes is None or not self.bytes.sum() > 0:
            return None
        return ratio_interval(self.nll / _LN2, self.bytes, seed=seed)

    def divergence(self, *, seed: int = 0) -> Interval | None:
        """Returns KL(base || model) in nats a token; None without a base."""
        return None if self.kl is None else ratio_interval(self.kl, self.tokens, seed=seed)

    def change(self, *, seed: int = 0) -> Interval | None:
        """Returns loss minus the base's loss, paired by document; None without a base."""
        if self.base_nll is None:
            return None
        return difference_interval(self.nll, self.base_nll, self.tokens, seed=seed)

    def token_accuracy(self, *, seed: int = 0) -> Interval:
        """Returns the share of scored tokens that the model ranks first."""
        return ratio_interval(self.correct, self.tokens, seed=seed)


@dataclass(frozen=True)
class BaseCache:
    """What KL needs of the base model on one set, so that its forward pass runs once.

    Attributes:
        key: Fingerprint of the rows, to refuse a cache of other rows.
        head: The base's output head as a subtree: `embedding/table` when tied, else `head/kernel`.
            A copy on the host: training may donate the buffers of the original.
        hidden_states: float32 [tokens, hidden_size], after the final norm.
        expected_embedding: float32 [tokens, hidden_size], the output embeddings averaged with the
            base's probabilities; None with a final soft-cap, where it would be of no use.
        log_normalizer: float32 [tokens].
        nll: float32 [tokens], the base's loss.
        correct: bool [tokens], whether the base ranks the target first.
    """

    key: str
    head: Tree
    hidden_states: np.ndarray
    expected_embedding: np.ndarray | None
    log_normalizer: np.ndarray
    nll: np.ndarray
    correct: np.ndarray


def evaluate_set(
    config: ModelConfig,
    params: Tree,
    rows: EvaluationRows,
    *,
    base: BaseCache | None = None,
    token_bytes: np.ndarray | None = None,
    batch_size: int = 8,
    compute_dtype: Any = jnp.float32,
    layout: Layout | None = None,
    chunk: int = 512,
    execution: Execution = ONE_DEVICE,
) -> DocumentSums:
    """Measures a model on packed rows.

    Args:
        config: The model.
        params: Canonical tree, or the runtime tree of `layout`.
        rows: The rows, see `rows_from_prepared` and `pack_scored`.
        base: The base on the same rows, for KL and the change of the loss.
        token_bytes: int [vocab_size], UTF-8 bytes of each token (`token_byte_lengths`), for bits
            per byte.
        batch_size: Rows of one forward pass.
        compute_dtype: dtype of activations.
        layout: Layout of `params`; None for the canonical tree.
        chunk: Tokens whose logits exist at the same time.
        execution: Devices and attention backend.

    Returns:
        Sums by document. A document without a scored token has zero tokens.

    Raises:
        DataError: Nothing is scored, a token id is not in the vocabulary, or `base` was computed
            on other rows.
    """
    scored = scored_tokens(config, rows)
    if base is not None and base.key != rows.fingerprint():
        raise DataError(
            "the base model's cached states belong to other rows than those evaluated now; "
            "compute base_cache again on these rows"
        )
    states = scored_states(
        rows,
        partial(run_decoder, config, compute_dtype, layout, execution, params),
        batch_size=batch_size,
        mesh=execution.mesh,
    )
    head = head_subtree(config, params)
    kl = None
    if base is None:
        nll, correct, _ = in_chunks(
            partial(score, *head_kind(config), head), chunk, states, scored.targets
        )
    elif base.expected_embedding is not None and same_head(head, base.head):
        nll, correct, normalizer = in_chunks(
            partial(score, *head_kind(config), head), chunk, states, scored.targets
        )
        difference = base.hidden_states - states.astype(np.float32)
        first_order = np.einsum("th,th->t", base.expected_embedding, difference)
        kl = first_order + (normalizer - base.log_normalizer)
    else:
        nll, correct, kl = in_chunks(
            partial(score_against, *head_kind(config), head, _placed(base.head, execution.mesh)),
            chunk,
            states,
            scored.targets,
            base.hidden_states.astype(states.dtype),
        )

    return document_sums(rows, scored, token_bytes, nll, correct, kl, base)


def base_cache(
    config: ModelConfig,
    params: Tree,
    rows: EvaluationRows,
    *,
    batch_size: int = 8,
    compute_dtype: Any = jnp.float32,
    layout: Layout | None = None,
    chunk: int = 512,
    execution: Execution = ONE_DEVICE,
) -> BaseCache:
    """Computes what later evaluations need of the base model.

    Args:
        config: The base model.
        params: Its parameters.
        rows: The rows that will be evaluated.
        batch_size: Rows of one forward pass.
        compute_dtype: dtype of activations; use the one of the evaluations to come.
        layout: Layout of `params`; None for the canonical tree.
        chunk: Tokens whose logits exist at the same time; use the one of the evaluations to come.
        execution: Devices and attention backend.

    Returns:
        The cache, on the host: 8 * hidden_size bytes a scored token, and a copy of the head.

    Raises:
        DataError: Nothing is scored, or a token id is not in the vocabulary.
    """
    scored = scored_tokens(config, rows)
    states = scored_states(
        rows,
        partial(run_decoder, config, compute_dtype, layout, execution, params),
        batch_size=batch_size,
        mesh=execution.mesh,
    )
    head = head_subtree(config, params)
    nll, correct, normalizer = in_chunks(
        partial(score, *head_kind(config), head), chunk, states, scored.targets
    )
    expected = None
    if config.final_softcap is None:
        (expected,) = in_chunks(
            partial(expected_embedding, config.tie_embeddings, head), chunk, states
        )
    return BaseCache(
        key=rows.fingerprint(),
        head=jax.tree.map(lambda leaf: np.array(to_host(leaf)), head),
        hidden_states=states.astype(np.float32),
        expected_embedding=expected,
        log_normalizer=normalizer,
        nll=nll,
        correct=correct,
    )


def base_sums(
    rows: EvaluationRows, base: BaseCache, token_bytes: np.ndarray | None = None
) -> DocumentSums:
    """Returns what `evaluate_set` would say of the base itself, without another forward pass.

    Args:
        rows: The rows that `base` was computed on.
        base: From `base_cache`.
        token_bytes: As for `evaluate_set`.

    Returns:
        Sums by document; the divergence from the base is zero.
    """
    zeros = np.zeros_like(base.nll)
    return document_sums(rows, _list_scored(rows), token_bytes, base.nll, base.correct, zeros, base)


@dataclass(frozen=True)
class ScoredTokens:
    """Targets int32 [tokens] and the document int64 [tokens] of each, in the order of the rows."""

    targets: np.ndarray
    documents: np.ndarray


def _list_scored(rows: EvaluationRows) -> ScoredTokens:
    row, position = rows.scored()
    return ScoredTokens(
        rows.token_ids[row, position + 1], rows.document_index[row, position + 1].astype(np.int64)
    )


def scored_tokens(config: ModelConfig, rows: EvaluationRows) -> ScoredTokens:
    """Lists the scored tokens and checks them against the vocabulary."""
    scored = _list_scored(rows)
    if not scored.targets.size:
        raise DataError(
            f"none of the {rows.token_ids.size} tokens in the evaluation rows is supervised; "
            "expected at least one target that follows another token of its document"
        )
    largest = int(rows.token_ids.max())
    if largest >= config.vocab_size or int(rows.token_ids.min()) < 0:
        raise DataError(
            f"the evaluation rows hold token id {largest}, the model's vocabulary has "
            f"{config.vocab_size}; prepare the set with the model's own tokenizer"
        )
    return scored


def document_sums(
    rows: EvaluationRows,
    scored: ScoredTokens,
    token_bytes: np.ndarray | None,
    nll: np.ndarray,
    correct: np.ndarray,
    kl: np.ndarray | None,
    base: BaseCache | None,
) -> DocumentSums:
    """Adds up values of scored tokens, each [tokens], by document."""

    def by_document(values: np.ndarray) -> np.ndarray:
        return np.bincount(
            scored.documents, values.astype(np.float64), minlength=len(rows.document_ids)
        )

    return DocumentSums(
        document_ids=rows.document_ids,
        tokens=by_document(np.ones(scored.targets.shape)),
        nll=by_document(nll),
        correct=by_document(correct),
        bytes=None if token_bytes is None else by_document(token_bytes[scored.targets]),
        kl=None if kl is None else by_document(kl),
        base_nll=None if base is None else by_document(base.nll),
    )


def scored_states(
    rows: EvaluationRows,
    run: Callable[[np.ndarray, np.ndarray, np.ndarray], jax.Array],
    *,
    batch_size: int,
    mesh: Mesh | None,
) -> np.ndarray:
    """Runs a decoder over all rows.

    Args:
        rows: The rows.
        run: From token ids, segment ids and positions, int32 [batch, length], to hidden states
            [..., batch, length, hidden_size].
        batch_size: Rows of one forward pass, at most.
        mesh: The mesh; None for one device.

    Returns:
        The states before scored tokens, [..., tokens, hidden_size].
    """
    count = rows.token_ids.shape[0]
    row, position = rows.scored()
    # As equal as they can be: a last batch of a single row would cost as much as a full one.
    batch_size = -(-count // -(-count // batch_size))
    if mesh is not None:
        batch_size += -batch_size % math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    states = []
    for start in range(0, count, batch_size):
        batch = [
            _padded(array[start : start + batch_size], batch_size, mesh)
            for array in (rows.token_ids, rows.segment_ids, rows.positions)
        ]
        output = to_host(run(*batch))
        here = (row >= start) & (row < start + batch_size)
        states.append(output[..., row[here] - start, position[here], :])
    return np.concatenate(states, axis=-2)


def _padded(array: np.ndarray, rows: int, mesh: Mesh | None) -> np.ndarray:
    """Adds padding, which is zero, so that every batch has one shape that the mesh can cut."""
    parts = 1 if mesh is None else mesh.shape["context"]
    return np.pad(array, ((0, rows - array.shape[0]), (0, -array.shape[1] % parts)))


def _placed(head: Tree, mesh: Mesh | None) -> Tree:
    return head if mesh is None else jax.device_put(head, tree_shardings(head, mesh))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def run_decoder(
    config: ModelConfig,
    compute_dtype: Any,
    layout: Layout | None,
    execution: Execution,
    params: Tree,
    token_ids: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
) -> jax.Array:
    """Runs the decoder, compiled once a shape; arguments and result as of `hidden_states`."""
    return hidden_states(
        config,
        params,
        token_ids,
        segment_ids,
        positions,
        compute_dtype=compute_dtype,
        layout=layout,
        execution=execution,
    )
