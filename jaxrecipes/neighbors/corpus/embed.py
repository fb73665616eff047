"""Embeds the documents of a file, a shard a piece."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxrecipes.checkpoint.encoder import ImportedEncoder
from jaxrecipes.data.document_file import DocumentFile
from jaxrecipes.neighbors.embed import EmbeddingJob, complete_embeddings, plan_embedding
from jaxrecipes.neighbors.embedder import choose_options, suitable_dtype, suitable_tokens
from jaxrecipes.neighbors.embeddings import Embeddings, shard_folder
from jaxrecipes.neighbors.executor import Executor, Work, Worker


def embed_corpus(
    documents: DocumentFile,
    encoder: ImportedEncoder,
    folder: Path,
    *,
    key: Mapping[str, str],
    executor: Executor,
    shard_documents: int,
    tokens_per_batch: int | None = None,
    max_tokens: int | None = None,
    prompt: str | None = None,
    storage_dtype: Literal["float16", "float32"] = "float32",
    compute_dtype: Any = None,
    log: Callable[[str], None],
) -> Embeddings:
    """Embeds documents into a folder, or opens it where it is there already with the same key.

    The same files as ``embed_documents`` writes, from any executor, as long as its machines compute
    alike. What is left to choose (None) is chosen by the devices of a worker.

    Args:
        documents: The documents; every worker can read the file.
        encoder: The encoder; sent to the workers.
        folder: Where to; every worker can write there.
        key: What determines the documents.
        executor: Who does the work.
        shard_documents: Documents of a piece.
        tokens_per_batch: See ``embedder.choose_options``, like all that follow.
        max_tokens: Tokens of a text that are read.
        prompt: Put before every text.
        storage_dtype: dtype on disk.
        compute_dtype: dtype of activations and products.
        log: Called with what is found.

    Raises:
        ConfigError: An option is wrong.
        DataError: There are no documents, one has no tokens, or its vector is not finite or zero
            (the message names it); or the folder holds something else.
        JaxrecipesError: The folder cannot be written.
    """
    if tokens_per_batch is None or compute_dtype is None:
        (suitable,) = executor.run(Work("devices", 1, _ask_devices, accelerator=True, keeps=True))
        tokens_per_batch = tokens_per_batch or suitable["tokens"]
        compute_dtype = compute_dtype or suitable["dtype"]
    options = choose_options(
        encoder,
        tokens_per_batch=tokens_per_batch,
        max_tokens=max_tokens,
        prompt=prompt,
        compute_dtype=compute_dtype,
    )
    job = plan_embedding(
        # Arrays of a device cannot be sent; NumPy's can.
        replace(encoder, params=jax.device_get(encoder.params)),
        key=key,
        options=options,
        shard_documents=shard_documents,
        storage_dtype=storage_dtype,
    )
    parameters = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(job.encoder.params))
    # Texts as they are read, then their tokens; vectors as they are computed and stored.
    texts = documents.bytes * shard_documents // max(len(documents), 1)
    vectors = shard_documents * encoder.config.hidden_size * 4

    def make_shards(partial: Path) -> list[dict[str, Any]]:
        work = Work(
            "embed",
            -(-len(documents) // shard_documents),
            _EmbedShards(job, documents.folder, partial),
            memory=2 * parameters + 3 * texts + 2 * vectors,
            accelerator=True,
            keeps=True,
        )
        return executor.run(work)

    return complete_embeddings(folder, job, make_shards, log)


@dataclass(frozen=True)
class _EmbedShards:
    """What makes a shard, as plain values."""

    job: EmbeddingJob
    documents: Path
    partial: Path

    def __call__(self) -> Worker:
        embed, documents = self.job.make_worker(), DocumentFile(self.documents)
        size = self.job.shard_documents

        def make(piece: int) -> dict[str, Any]:
            last = min((piece + 1) * size, len(documents))
            some = [documents[index] for index in range(piece * size, last)]
            return embed(shard_folder(self.partial, piece), some, None, lambda _: None)

        return make


def _ask_devices() -> Worker:
    return lambda _: {"tokens": suitable_tokens(), "dtype": suitable_dtype()}
