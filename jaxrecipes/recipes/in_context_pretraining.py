"""In-context pretraining (arXiv 2310.10638): related documents follow each other in a context.

Everything trains, as in recipe full; what differs is the order of documents. Stages: documents →
embeddings → neighbours → duplicates removed → order → one file in that order, which is packed into
contexts that are cut where they are full (section 3.2 of the paper). Contexts, not documents, are
shuffled during training, so that a batch is diverse.

Each stage leaves a folder named by the hash of what shaped it, so that arms which share a stage
share its result, and a run that was stopped goes on. The work inside of a stage is done in pieces
(neighbors/corpus), by this process or by a cluster.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrecipes import __version__
from jaxrecipes.checkpoint.encoder import ImportedEncoder
from jaxrecipes.config.recipe_options import DuplicatesSection, InContextPretrainingSection
from jaxrecipes.data.document_file import DocumentFile, write_document_file
from jaxrecipes.data.documents import Document
from jaxrecipes.durable import hash_values, write_json
from jaxrecipes.errors import DataError
from jaxrecipes.neighbors.corpus.duplicates import deduplicate_corpus
from jaxrecipes.neighbors.corpus.embed import embed_corpus
from jaxrecipes.neighbors.corpus.order import order_corpus
from jaxrecipes.neighbors.corpus.search import CorpusLists, search_corpus
from jaxrecipes.neighbors.corpus.vectors import StoredVectors
from jaxrecipes.neighbors.deduplicate import Duplicates, Removed, Thresholds
from jaxrecipes.neighbors.executor import Executor, LocalExecutor
from jaxrecipes.neighbors.graph import build_graph
from jaxrecipes.neighbors.methods import OrderInputs, order_documents
from jaxrecipes.neighbors.order import Order, order_statistics
from jaxrecipes.neighbors.ray_executor import RayExecutor
from jaxrecipes.stages import run_stage

# `best_fit` is a way of packing: its documents are in random order.
BEST_FIT = "best_fit"
_NEVER = 2.0  # no cosine and no overlap is as large
_SHOWN_DUPLICATES, _SHOWN_CHARACTERS = 3, 160
_Log = Callable[[str], None]


@dataclass(frozen=True)
class OrderedDocuments:
    """The documents of a source in reading order.

    Attributes:
        pool: The documents that are left after duplicates were removed, in the source's order.
        order: Indices into `pool`, in reading order; some orders repeat documents.
        documents: The file in reading order.
        statistics: JSON values for the report: what the order is like, what was removed.
    """

    pool: DocumentFile
    order: Order
    documents: DocumentFile
    statistics: dict[str, Any]


def order_source(
    documents: Callable[[], Iterable[Document]],
    source: Mapping[str, Any],
    options: InContextPretrainingSection,
    folder: Path,
    *,
    encoder: ImportedEncoder,
    count_tokens: Callable[[Iterable[Document]], Iterator[int]],
    tokenizer: str,
    context_length: int,
    compute_dtype: str,
    seed: int,
    log: _Log,
) -> OrderedDocuments:
    """Orders the documents of a source.

    Args:
        documents: Reads them.
        source: JSON values that determine them.
        options: The section `in_context_pretraining` of the config.
        folder: Where the stages leave their results.
        encoder: The sentence encoder.
        count_tokens: Yields the model's number of tokens for each document.
        tokenizer: Fingerprint of the tokenizer that `count_tokens` uses.
        context_length: Tokens of a context.
        compute_dtype: dtype of the encoder's forward pass.
        seed: Decides ties and random orders.
        log: Called with what is done, a line each.

    Returns:
        The ordered documents.

    Raises:
        ConfigError: Ray or ScaNN was asked for and is not there.
        DataError: There are too few documents, the index misses too many neighbours, or a text
            cannot be embedded.
    """
    executor = _executor(options, log)

    def place(name: str, inputs: Mapping[str, Any]) -> Path:
        return folder / f"{name}-{hash_values(inputs)[:12]}"

    def stage(name: str, inputs: Mapping[str, Any], make: Callable[[Path], Any]) -> Path:
        return run_stage(place(name, inputs), inputs, make).folder

    read = {"code": __version__, "source": dict(source)}
    found = stage("documents", read, lambda target: write_document_file(documents(), target))
    everything = DocumentFile(found)
    if len(everything) < 2:
        raise DataError(
            f"{len(everything)} documents cannot be ordered by their neighbours; expected two or "
            "more. Give more documents, or lower data.held_out."
        )

    def count_lengths(target: Path) -> None:
        counts = np.fromiter(count_tokens(everything), np.int64, len(everything))
        np.save(target / "tokens.npy", counts)

    lengths = stage("tokens", {**read, "tokenizer": tokenizer}, count_lengths) / "tokens.npy"
    embedding = {
        **read,
        "encoder": encoder.fingerprint,
        "encoder_tokens": options.encoder_tokens,
        "encoder_prompt": options.encoder_prompt,
        "compute_dtype": compute_dtype,
        "shard_documents": options.shard_documents,
    }
    embeddings = embed_corpus(
        everything,
        encoder,
        place("embeddings", embedding),
        key={name: json.dumps(value) for name, value in embedding.items()},
        executor=executor,
        shard_documents=options.shard_documents,
        max_tokens=options.encoder_tokens,
        prompt=options.encoder_prompt,
        compute_dtype=jnp.dtype(compute_dtype),
        log=log,
    )
    searching = {
        **embedding,
        "vectors": embeddings.key,
        "neighbors": options.neighbors,
        "index": options.index,
        "index_documents": options.index_documents,
        "recall_floor": options.recall_floor,
        "seed": seed,
    }

    def search(name: str, inputs: Mapping[str, Any], vectors: StoredVectors) -> CorpusLists:
        return search_corpus(
            vectors,
            options.neighbors,
            place(name, inputs),
            key=hash_values(inputs),
            executor=executor,
            shard_documents=options.shard_documents,
            index_documents=options.index_documents,
            index=options.index,
            recall_floor=options.recall_floor,
            seed=seed,
            log=log,
        )

    vectors = StoredVectors(embeddings.folder)
    lists = search("neighbors", searching, vectors)
    removing = {**searching, "duplicates": options.duplicates.model_dump(), "tokenizer": tokenizer}

    def remove(target: Path) -> None:
        limits = options.duplicates
        found = deduplicate_corpus(
            lists,
            vectors,
            everything,
            lengths,
            place("copies", removing),
            key=hash_values(removing),
            executor=executor,
            thresholds=Thresholds(limits.similarity or _NEVER, limits.overlap or _NEVER),
            with_texts=limits.overlap is not None,
        )
        _write_duplicates(everything, found, limits, target)

    removed = stage("duplicates", removing, remove)
    kept = np.load(removed / "kept.npy")
    pool = everything
    if len(kept) < len(everything):
        log(f"{len(everything) - len(kept)} of {len(everything)} documents are near duplicates")
        pool = DocumentFile(
            stage(
                "kept",
                removing,
                lambda target: write_document_file((everything[int(i)] for i in kept), target),
            )
        )
        vectors = StoredVectors(embeddings.folder, removed / "kept.npy")
        # Searched again, so that a document whose nearest were copies has as many as the others.
        lists = search("kept_neighbors", removing, vectors)
    ordering = {
        **removing,
        "order": options.order,
        "degree": options.degree,
        "start": options.start,
        "partition_documents": options.partition_documents,
        "context_length": context_length,
    }

    def make_order(target: Path) -> None:
        log(f"ordering {len(pool)} documents: {options.order}")
        neighbors = lists.neighbors()
        if options.order == "path" and options.partition_documents is not None:
            order = order_corpus(
                lists,
                vectors,
                place("paths", ordering),
                key=hash_values(ordering),
                executor=executor,
                partition_documents=options.partition_documents,
                degree=options.degree,
                start=options.start,
                seed=seed,
            )
        else:
            walk = {"degree": options.degree, "start": options.start}
            inputs = OrderInputs(
                count=len(pool),
                lengths=np.load(lengths)[kept],
                context_length=context_length,
                seed=seed,
                neighbors=neighbors,
                vectors=vectors,
                text=pool.text,
                options=walk if options.order == "path" else {},
            )
            method = "random" if options.order == BEST_FIT else options.order
            order = order_documents(method, inputs)
        order.save(target)
        write_document_file(_in_order(pool, order), target)
        graph = build_graph(neighbors.ids, neighbors.similarities)
        write_json(target / "statistics.json", order_statistics(order, vectors, graph).to_json())

    finished = stage("order", ordering, make_order)
    statistics = {
        "order": options.order,
        "documents": len(everything),
        "neighbors": options.neighbors,
        "index": lists.facts["index"],
        "recall": lists.facts["recall"],
        "duplicates": json.loads((removed / "duplicates.json").read_text(encoding="utf-8")),
        **json.loads((finished / "statistics.json").read_text(encoding="utf-8")),
    }
    return OrderedDocuments(pool, Order.load(finished), DocumentFile(finished), statistics)


def _executor(options: InContextPretrainingSection, log: _Log) -> Executor:
    asked = options.ray.model_dump()
    return LocalExecutor(log) if options.executor == "local" else RayExecutor(**asked, log=log)


def _write_duplicates(
    documents: DocumentFile, found: Duplicates, thresholds: DuplicatesSection, target: Path
) -> None:
    def named(removed: Removed) -> dict[str, Any]:
        names = {name: documents[getattr(removed, name)].id for name in ("index", "kept")}
        return {**asdict(removed), **names}

    if len(found.removed) > thresholds.most * len(documents):
        pairs = [named(one) for one in found.examples(_SHOWN_DUPLICATES)]
        shown = "; ".join(
            f"{one['index']!r} and {one['kept']!r} (cosine {one['similarity']:.3f})"
            for one in pairs
        )
        raise DataError(
            f"{len(found.removed)} of {len(documents)} documents count as near duplicates, more "
            f"than in_context_pretraining.duplicates.most ({thresholds.most:g}) allows. The least "
            f"alike of them: {shown}. If these are no copies, raise duplicates.similarity or "
            "duplicates.overlap; if they are, raise duplicates.most."
        )
    np.save(target / "kept.npy", found.kept)
    with (target / "removed.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(named(removed)) + "\n" for removed in found.removed)
    shown = {
        "removed": len(found.removed),
        "similarity": thresholds.similarity,
        "overlap": thresholds.overlap,
        "examples": [
            {
                **named(removed),
                "text": documents.text(removed.index)[:_SHOWN_CHARACTERS],
                "kept_text": documents.text(removed.kept)[:_SHOWN_CHARACTERS],
            }
            for removed in found.examples(_SHOWN_DUPLICATES)
        ],
    }
    write_json(target / "duplicates.json", shown)


def _in_order(pool: DocumentFile, order: Order) -> Iterator[Document]:
    """Yields documents in reading order; each copy of a repeated one has an id of its own."""
    times: Counter[int] = Counter()
    for index in order.documents.tolist():
        document = pool[index]
        times[index] += 1
        name = document.id if times[index] == 1 else f"{document.id}#{times[index]}"
        yield Document(name, document.text)
