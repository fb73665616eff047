"""Embeds the documents of a file, a shard a piece."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxrecipes.checkpoint.encoder import ImportedEncoder
from jaxrecipes.data.document_file import DocumentFile
from jaxrecipes.durable import hash_values
from jaxrecipes.neighbors.embed import EmbeddingJob, complete_embeddings, plan_embedding
from jaxrecipes.neighbors.embedder import choose_options, suitable_dtype, suitable_tokens
from jaxrecipes.neighbors.embeddings import (
    MANIFEST,
    PARTS,
    Embeddings,
    partial_folder,
    shard_folder,
)
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
    alike. What is left to choose (None) is as it was when the work began; then a worker's devices
    chose it.

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
    # Arrays of a device cannot be sent; NumPy's can.
    sent = replace(encoder, params=jax.device_get(encoder.params))

    def plan(tokens: int | None, dtype: Any) -> EmbeddingJob:
        options = choose_options(
            encoder,
            tokens_per_batch=tokens if tokens_per_batch is None else tokens_per_batch,
            max_tokens=max_tokens,
            prompt=prompt,
            compute_dtype=dtype if compute_dtype is None else compute_dtype,
        )
        return plan_embedding(
            sent,
            key=key,
            options=options,
            shard_documents=shard_documents,
            storage_dtype=storage_dtype,
        )

    job = _begun(folder, plan)
    if job is None and (tokens_per_batch is None or compute_dtype is None):
        (suitable,) = executor.run(Work("devices", 1, _ask_devices, accelerator=True, keeps=True))
        job = plan(suitable["tokens"], suitable["dtype"])
    elif job is None:
        job = plan(tokens_per_batch, compute_dtype)
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


def _begun(folder: Path, plan: Callable[[int, Any], EmbeddingJob]) -> EmbeddingJob | None:
    """Returns the job of what is there, if it is this one up to what the devices chose.

    So the machines that go on with it, or only read it, may be others.
    """
    for path, name in ((folder / MANIFEST, "key_parts"), (partial_folder(folder) / PARTS, None)):
        try:
            found = json.loads(path.read_bytes())
            parts = found if name is None else found[name]
            options = parts["options"]
            job = plan(int(options["tokens_per_batch"]), options["compute_dtype"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if hash_values(job.parts) == hash_values(parts):
            return job
    return None


def _ask_devices() -> Worker:
    return lambda _: {"tokens": suitable_tokens(), "dtype": suitable_dtype()}
