"""The sets of arms that order the documents of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxrecipes.checkpoint.encoder import ImportedEncoder, import_encoder
from jaxrecipes.checkpoint.huggingface import read_model_config
from jaxrecipes.checkpoint.random_model import random_encoder
from jaxrecipes.config import Config
from jaxrecipes.config.data import SourceSection
from jaxrecipes.config.recipe_options import InContextPretrainingSection
from jaxrecipes.data.documents import Document, ReadReport
from jaxrecipes.data.prepare import select_documents
from jaxrecipes.data.sources import SourceSpec, resolve_source, source_fingerprint
from jaxrecipes.data.split import Split, stable_fraction
from jaxrecipes.data.store import PreparedSet
from jaxrecipes.data.tokenize import end_token, tokenize_documents
from jaxrecipes.evaluate.context_gain import ContextPairs, pair_documents
from jaxrecipes.experiment.base_model import RANDOM_PREFIX, BaseModel
from jaxrecipes.experiment.sources import smaller, source_spec
from jaxrecipes.recipes.in_context_pretraining import (
    BEST_FIT,
    OrderedDocuments,
    order_source,
)

# The report shows a context's first documents, and of each the first characters.
_SHOWN_CONTEXTS, _SHOWN_DOCUMENTS, _SHOWN_CHARACTERS = 2, 6, 160


@dataclass(frozen=True)
class Ordering:
    """How one arm orders the documents of an experiment.

    Attributes:
        config: The experiment.
        options: The arm's section `in_context_pretraining`.
        base: The base model; its tokenizer counts tokens.
        folder: Where the stages leave their results.
        console: Where to say what is done.
    """

    config: Config
    options: InContextPretrainingSection
    base: BaseModel
    folder: Path
    console: Console

    def training_sets(
        self, split: Split, prepare: Callable[..., PreparedSet]
    ) -> tuple[list[tuple[PreparedSet, float]], list[dict[str, Any]]]:
        """Orders and packs every source.

        Args:
            split: The side of the held-out split that is trained on.
            prepare: `data.prepare.prepare` with the experiment's tokenizer and row length.

        Returns:
            The prepared sets with their weights, and for each what its order is like.
        """
        sets, statistics = [], []
        for section in self.config.data.learn:
            ordered = self._order(section, self.options, split, section.limit_documents)
            prepared = prepare(
                ordered.documents.folder.with_name(ordered.documents.folder.name + "-packed"),
                SourceSpec(
                    str(ordered.documents.folder / "documents.jsonl"),
                    kind="jsonl",
                    columns={"text": "text", "id": "id"},
                ),
                overlong=self.config.data.overlong,
                attend="context",
                fit="best" if self.options.order == BEST_FIT else "fill",
            )
            sets.append((prepared, section.weight))
            packed = {
                "source": section.source,
                "contexts": len(prepared),
                "tokens": prepared.manifest["tokens"],
                "padding_tokens": prepared.manifest["padding_tokens"],
                "examples": _examples(prepared, ordered),
            }
            statistics.append({**packed, **ordered.statistics})
        return sets, statistics

    def held_out_pairs(self, split: Split, limit: int | None) -> ContextPairs:
        """Puts each held-out document behind the one that the paper's path puts before it.

        Args:
            split: The side of the held-out split that is measured.
            limit: Most documents of a source.

        Returns:
            The pairs, of all sources together.
        """
        options = self.options.model_copy(update={"order": "path"})
        documents: list[tuple[str, np.ndarray]] = []
        related: dict[int, int] = {}
        for section in self.config.data.learn:
            most = smaller(limit, section.limit_documents)
            ordered = self._order(section, options, split, most)
            first, order = len(documents), ordered.order
            documents += [(one.id, one.token_ids) for one in self._tokenized(ordered.pool)]
            for at in np.flatnonzero(~order.starts).tolist():
                document, before = order.documents[at], order.documents[at - 1]
                related[first + int(document)] = first + int(before)
        return pair_documents(
            documents,
            related,
            length=self.config.data.length,
            eos_id=end_token(self.base.tokenizer, self._vocab_size),
            seed=self.config.seed,
        )

    def _order(
        self,
        section: SourceSection,
        options: InContextPretrainingSection,
        split: Split,
        limit: int | None,
    ) -> OrderedDocuments:
        source = resolve_source(source_spec(section))
        side = [split.part, split.held_out, split.seed]
        return order_source(
            lambda: select_documents(source, split, limit, ReadReport()),
            {"source": source_fingerprint(source), "split": side, "limit": limit},
            options,
            self.folder,
            encoder=self._encoder,
            count_tokens=self._count_tokens,
            tokenizer=self.base.tokenizer_fingerprint,
            context_length=self.config.data.length,
            compute_dtype=self.config.model.compute_dtype,
            seed=self.config.seed,
            log=lambda line: self.console.print(line, style="dim", highlight=False),
        )

    @cached_property
    def _encoder(self) -> ImportedEncoder:
        reference = self.options.encoder
        if reference.startswith(RANDOM_PREFIX):
            return random_encoder(reference.removeprefix(RANDOM_PREFIX), seed=self.config.seed)
        return import_encoder(reference)

    @cached_property
    def _vocab_size(self) -> int:
        return read_model_config(self.base.folder).vocab_size

    def _tokenized(self, documents: Iterable[Document]) -> Iterator[Any]:
        return tokenize_documents(documents, self.base.tokenizer, vocab_size=self._vocab_size)

    def _count_tokens(self, documents: Iterable[Document]) -> Iterator[int]:
        return (len(one.token_ids) for one in self._tokenized(documents))


def _examples(prepared: PreparedSet, ordered: OrderedDocuments) -> list[dict[str, Any]]:
    """Shows the contexts of a few documents, the same ones whatever the order.

    Returns:
        For each: `document` (its id) and `context`, the documents around it in its first row, as
        objects with `id`, `text` (the beginning) and `tokens`.
    """
    ids = [document.id for document in ordered.pool]
    chosen = sorted(ids, key=lambda name: stable_fraction(name, 0))
    index_of = {document.id: index for index, document in enumerate(ordered.documents)}
    places = {document.id: document.rows[0][0] for document in prepared.documents}
    shown = []
    for chosen_id in chosen[:_SHOWN_CONTEXTS]:
        if chosen_id not in places:  # an order that repeats some documents leaves others out
            continue
        context = []
        for name, _, tokens in prepared.document_ids(places[chosen_id])[:_SHOWN_DOCUMENTS]:
            text = ordered.documents.text(index_of[name])
            context.append({"id": name, "text": text[:_SHOWN_CHARACTERS], "tokens": tokens})
        shown.append({"document": chosen_id, "context": context})
    return shown
