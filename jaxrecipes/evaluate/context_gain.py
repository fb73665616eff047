"""What a model gains from the document before: after a related one, an unrelated one, or none.

In-context pretraining (arXiv 2310.10638) puts related documents into one context so that a model
learns to use what came before. Here each document's loss is measured three times over the same
tokens, and the gain is the loss after an unrelated document minus the loss after the related one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrecipes.errors import DataError
from jaxrecipes.evaluate.bootstrap import difference_interval
from jaxrecipes.evaluate.likelihood import DocumentSums, evaluate_set
from jaxrecipes.evaluate.rows import EvaluationRows, pack_scored
from jaxrecipes.models.config import ModelConfig

Tree = dict[str, Any]
_KINDS = ("alone", "after_random", "after_related")


@dataclass(frozen=True)
class ContextPairs:
    """The same documents behind three kinds of context; only the documents themselves are scored.

    Attributes:
        alone: Behind an end-of-sequence token.
        after_random: Behind another document, chosen at random.
        after_related: Behind the document that is related to it.
    """

    alone: EvaluationRows
    after_random: EvaluationRows
    after_related: EvaluationRows

    def fingerprint(self) -> str:
        """Returns a hash of everything that shapes the measurement."""
        return "".join(getattr(self, kind).fingerprint()[:21] for kind in _KINDS)


def pair_documents(
    documents: Sequence[tuple[str, np.ndarray]],
    related: Mapping[int, int],
    *,
    length: int,
    eos_id: int,
    seed: int,
) -> ContextPairs:
    """Puts documents behind their contexts.

    A context ends with the last tokens of a document, as a row of packed documents does before the
    next one; of the document itself the first tokens are scored. Each gets half a row.

    Args:
        documents: (id, token ids with the end-of-sequence token last).
        related: Index of a document -> index of the one that is related to it.
        length: Tokens of a row.
        eos_id: The end-of-sequence token.
        seed: Seed of the random contexts.

    Returns:
        One sequence for each entry of `related`, in each of the three kinds.

    Raises:
        DataError: There are no pairs, or fewer than three documents to draw random contexts from.
    """
    if not related or len(documents) < 3:
        raise DataError(
            f"{len(documents)} held-out documents with {len(related)} related pairs among them "
            "cannot show what a related context is worth; expected at least three documents and "
            "one pair. Raise data.held_out or evaluate.learn_documents, or give more documents."
        )
    half = length // 2
    generator = np.random.default_rng(seed)
    sequences: dict[str, list[tuple[str, list[int], int]]] = {kind: [] for kind in _KINDS}
    for index, relative in sorted(related.items()):
        name, tokens = documents[index]
        scored = [int(token) for token in tokens[:half]]
        others = [at for at in range(len(documents)) if at not in (index, relative)]
        unrelated = others[int(generator.integers(len(others)))]
        contexts = {
            "alone": [eos_id],
            "after_random": [int(token) for token in documents[unrelated][1][-half:]],
            "after_related": [int(token) for token in documents[relative][1][-half:]],
        }
        for kind, context in contexts.items():
            sequences[kind].append((name, [*context, *scored], len(context)))
    return ContextPairs(
        **{kind: pack_scored(found, length=length) for kind, found in sequences.items()}
    )


def context_block(
    config: ModelConfig, params: Tree, pairs: ContextPairs, *, seed: int, **forward: Any
) -> dict[str, Any]:
    """Measures what a model gains from related context.

    Args:
        config: The model.
        params: Its tree, see `evaluate_set`.
        pairs: From `pair_documents`.
        seed: Seed of the bootstrap.
        **forward: Options of the forward pass, see `evaluate_set`.

    Returns:
        JSON values: the loss of each kind in nats a token, `gain` (loss after a random context
        minus loss after the related one, paired by document) and `gain_over_none` (loss alone minus
        loss after the related one), each with its 95 % interval; `documents`, `scored_tokens`.
    """
    sums: dict[str, DocumentSums] = {
        kind: evaluate_set(config, params, getattr(pairs, kind), **forward) for kind in _KINDS
    }
    related = sums["after_related"]

    def gain(kind: str) -> dict[str, Any]:
        return difference_interval(sums[kind].nll, related.nll, related.tokens, seed=seed).to_json()

    return {
        **{kind: one.loss(seed=seed).to_json() for kind, one in sums.items()},
        "gain": gain("after_random"),
        "gain_over_none": gain("alone"),
        "documents": len(related.document_ids),
        "scored_tokens": int(related.tokens.sum()),
    }
