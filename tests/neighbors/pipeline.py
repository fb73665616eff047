"""All corpus stages of a small corpus, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxrecipes.checkpoint.encoder import ImportedEncoder
from jaxrecipes.data.document_file import DocumentFile, write_document_file
from jaxrecipes.data.documents import Document
from jaxrecipes.neighbors.corpus.duplicates import deduplicate_corpus
from jaxrecipes.neighbors.corpus.embed import embed_corpus
from jaxrecipes.neighbors.corpus.order import order_corpus
from jaxrecipes.neighbors.corpus.search import search_corpus
from jaxrecipes.neighbors.corpus.vectors import StoredVectors
from jaxrecipes.neighbors.deduplicate import Thresholds
from jaxrecipes.neighbors.executor import Executor, LocalExecutor, Work, Worker

_WORDS = ["stone", "river", "cloud", "ember", "field", "glass", "iron", "jade", "lamp", "moss"]


def make_documents(count: int, seed: int = 0) -> list[Document]:
    """Short texts of different lengths; one in forty is a copy of another."""
    generator = np.random.default_rng(seed)
    texts: list[str] = []
    for number in range(count):
        if number > 5 and number % 40 == 0:
            texts.append(texts[int(generator.integers(number))])
        else:
            words = generator.choice(_WORDS, generator.integers(2, 8))
            texts.append(f"{number} {' '.join(words)}")
    return [Document(f"d{number}", text) for number, text in enumerate(texts)]


@dataclass(frozen=True)
class Settings:
    """What shapes the results of the pipeline; nothing of who computes them."""

    shard_documents: int
    index_documents: int | None = None
    partition_documents: int = 2000
    with_texts: bool = False
    neighbors: int = 5
    similarity: float = 0.9999999
    search_again: bool = True


def write_corpus(folder: Path, documents: Iterable[Document]) -> Path:
    """Writes documents and their lengths; every stage reads them from there."""
    folder.mkdir(parents=True)
    write_document_file(documents, folder)
    np.save(folder / "lengths.npy", [len(one.text) for one in DocumentFile(folder)])
    return folder


def run_stages(
    corpus: Path, folder: Path, encoder: ImportedEncoder, executor: Executor, settings: Settings
) -> dict[str, Any]:
    """Runs embed, search, deduplicate, search again and order; returns all that came out."""
    documents = DocumentFile(corpus)
    shard = settings.shard_documents
    embeddings = embed_corpus(
        documents,
        encoder,
        folder / "embeddings",
        key={"corpus": "1"},
        executor=executor,
        shard_documents=shard,
        tokens_per_batch=1024,
        max_tokens=16,
        compute_dtype="float32",
        log=lambda _: None,
    )
    vectors = StoredVectors(embeddings.folder)

    def search(name: str, vectors: StoredVectors) -> Any:
        return search_corpus(
            vectors,
            settings.neighbors,
            folder / name,
            key="1",
            executor=executor,
            shard_documents=shard,
            index_documents=settings.index_documents,
            index="exact",
            log=lambda _: None,
        )

    lists = search("neighbors", vectors)
    duplicates = deduplicate_corpus(
        lists,
        vectors,
        documents,
        corpus / "lengths.npy",
        folder / "duplicates",
        key="1",
        executor=executor,
        thresholds=Thresholds(settings.similarity, 0.8),
        with_texts=settings.with_texts,
    )
    np.save(folder / "kept.npy", duplicates.kept)
    kept, again = vectors, lists
    if settings.search_again:
        kept = StoredVectors(embeddings.folder, folder / "kept.npy")
        again = search("kept_neighbors", kept)
    order = order_corpus(
        again,
        kept,
        folder / "order",
        key="1",
        executor=executor,
        partition_documents=settings.partition_documents,
        seed=3,
    )
    first, second = lists.neighbors(), again.neighbors()
    return {
        "vectors": embeddings.vectors(0, len(documents)),
        "ids": first.ids,
        "similarities": first.similarities,
        "kept": duplicates.kept,
        "removed": [asdict(one) for one in duplicates.removed],
        "kept_ids": second.ids,
        "kept_similarities": second.similarities,
        "documents": order.documents,
        "weights": order.similarities,
        "starts": order.starts,
    }


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Compares what two runs of the stages returned, bit by bit."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == right[name].dtype, name
            np.testing.assert_array_equal(value, right[name], err_msg=name)
        else:
            assert value == right[name], name


class KilledError(BaseException):
    """What a process that is killed leaves: no handler of errors runs."""


class DyingExecutor:
    """Works here, and dies before a piece of the whole run."""

    def __init__(self, pieces: int) -> None:
        self.left = pieces
        self.started: list[str] = []

    def run(self, work: Work) -> list[dict[str, Any]]:
        return LocalExecutor().run(replace(work, make_worker=lambda: self._wrap(work)))

    def _wrap(self, work: Work) -> Worker:
        worker: Callable[[int], dict[str, Any]] = work.make_worker()

        def dying(piece: int) -> dict[str, Any]:
            if not self.left:
                raise KilledError
            self.left -= 1
            self.started.append(f"{work.name} {piece}")
            return worker(piece)

        return dying
