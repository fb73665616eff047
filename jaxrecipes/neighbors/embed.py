"""Documents in, vectors on disk out, a shard after the other; and vectors of a few texts."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxrecipes.checkpoint.encoder import ImportedEncoder
from jaxrecipes.data.documents import Document
from jaxrecipes.durable import hash_values, locked, write_errors
from jaxrecipes.errors import ConfigError, DataError
from jaxrecipes.neighbors.embedder import Embedder, EmbedOptions, choose_options, make_embedder
from jaxrecipes.neighbors.embeddings import (
    Embeddings,
    KeyParts,
    find_finished,
    finish_growing,
    open_growing,
    partial_folder,
    shard_entry,
    shard_folder,
    write_shard,
)
from jaxrecipes.neighbors.pieces import make_piece

# Changes when the same text would get another vector than before.
CODE_VERSION = "1"
PROGRESS_SECONDS = 10.0
_TOKENIZED_AT_ONCE = 1024

Log = Callable[[str], None]


def embed_texts(texts: Sequence[str], encoder: ImportedEncoder, **options: Any) -> np.ndarray:
    """Embeds a few texts, for example queries.

    Args:
        texts: The texts.
        encoder: The encoder.
        options: As for `choose_options`.

    Returns:
        float32 [texts, width], of length one.

    Raises:
        ConfigError: See `choose_options`.
        DataError: A text has no tokens, or its vector is not finite or zero; names its number.
    """
    embedder = make_embedder(encoder, choose_options(encoder, **options))
    names = [f"text {number}" for number in range(len(texts))]
    token_ids = embedder.tokenize(texts)
    _refuse_empty(token_ids, names)
    vectors = embedder.vectors(token_ids)
    _refuse_unusable(vectors, names)
    return vectors


def embed_documents(
    documents: Iterable[Document],
    encoder: ImportedEncoder,
    folder: str | Path,
    *,
    key: Mapping[str, str],
    total: int | None = None,
    shard_documents: int = 4096,
    tokens_per_batch: int | None = None,
    max_tokens: int | None = None,
    prompt: str | None = None,
    storage_dtype: Literal["float16", "float32"] = "float32",
    compute_dtype: Any = None,
    log: Log | None = None,
) -> Embeddings:
    """Embeds documents into a folder, or opens it where it is there already with the same key.

    Documents are read once, in order; memory holds the tokens and vectors of one shard. After a
    kill the same call goes on behind the last finished shard and ends with the same bytes. Inside a
    shard texts are sorted by length, so a batch has little padding.

    Args:
        documents: The documents, with unique ids.
        encoder: The encoder.
        folder: Where to; embeddings with another key in it are replaced when the new ones are
            complete, any other content is refused.
        key: What determines the documents, for example the hash of their source. What shapes their
            vectors besides (encoder, options) is added.
        total: Number of documents, for the time that is left; None for `len(documents)`, where
            there is one.
        shard_documents: Documents of a shard: what memory holds, and what a kill can cost.
        tokens_per_batch: See `choose_options`.
        max_tokens: See `choose_options`; of a longer document the first tokens are read.
        prompt: See `choose_options`.
        storage_dtype: dtype on disk.
        compute_dtype: See `choose_options`.
        log: Called with a line every ten seconds, and with the reason where finished work is not
            used.

    Returns:
        The open embeddings; `reused` tells whether they were there already.

    Raises:
        ConfigError: An option is wrong.
        DataError: There are no documents, one has no tokens, or its vector is not finite or zero
            (the message names it); or the folder holds something else.
        JaxrecipesError: The folder cannot be written.
    """
    say = log if log is not None else _silent
    job = plan_embedding(
        encoder,
        key=key,
        options=choose_options(
            encoder,
            tokens_per_batch=tokens_per_batch,
            max_tokens=max_tokens,
            prompt=prompt,
            compute_dtype=compute_dtype,
        ),
        shard_documents=shard_documents,
        storage_dtype=storage_dtype,
    )
    if total is None:
        total = len(documents) if hasattr(documents, "__len__") else None  # type: ignore[arg-type]

    def make_shards(partial: Path) -> list[dict[str, Any]]:
        embed = job.make_worker()
        progress = EmbedProgress(say, Path(folder).name, total)
        remaining, shards = iter(documents), []
        while some := list(islice(remaining, shard_documents)):
            shards.append(embed(shard_folder(partial, len(shards)), some, progress, say))
        progress.finish()
        return shards

    return complete_embeddings(Path(folder), job, make_shards, say)


# Embeds the documents of a shard into its folder, and returns its entry in the manifest.
EmbedShard = Callable[[Path, Sequence[Document], "EmbedProgress | None", Log], dict[str, Any]]


@dataclass(frozen=True)
class EmbeddingJob:
    """Everything that shapes embeddings but the documents; can be sent to another machine.

    Attributes:
        encoder: The encoder.
        options: How texts are embedded.
        parts: What the vectors depend on.
        shard_documents: Documents of a shard.
        storage_dtype: dtype on disk.
    """

    encoder: ImportedEncoder
    options: EmbedOptions
    parts: KeyParts
    shard_documents: int
    storage_dtype: str

    def make_worker(self) -> EmbedShard:
        """Returns a function that embeds shards; the first one that is not there loads the model.

        A shard that is there already, made of the same documents, is not made again.
        """
        key = hash_values(self.parts)
        embedder: list[Embedder] = []

        def embed(
            folder: Path,
            documents: Sequence[Document],
            progress: EmbedProgress | None,
            say: Log,
        ) -> dict[str, Any]:
            digest = _digest(documents)

            def build(target: Path) -> dict[str, Any]:
                if not embedder:
                    embedder.append(make_embedder(self.encoder, self.options))
                ids = [document.id for document in documents]
                token_ids: list[np.ndarray] = []
                for start in range(0, len(documents), _TOKENIZED_AT_ONCE):
                    some = documents[start : start + _TOKENIZED_AT_ONCE]
                    token_ids += embedder[0].tokenize([document.text for document in some])
                _refuse_empty(token_ids, ids)
                vectors = embedder[0].vectors(token_ids, progress)
                _refuse_unusable(vectors, ids)
                write_shard(target, ids, vectors.astype(self.storage_dtype))
                tokens = sum(len(one) for one in token_ids)
                return {"documents": len(ids), "tokens": tokens, "digest": digest}

            piece = make_piece(folder, hash_values({"job": key, "documents": digest}), build, say)
            if piece.reused and progress is not None:
                progress.skip(len(documents))
            return shard_entry(piece)

        return embed


def plan_embedding(
    encoder: ImportedEncoder,
    *,
    key: Mapping[str, str],
    options: EmbedOptions,
    shard_documents: int,
    storage_dtype: Literal["float16", "float32"],
) -> EmbeddingJob:
    """Puts together what shapes embeddings.

    Args:
        encoder: The encoder.
        key: What determines the documents.
        options: From ``choose_options``.
        shard_documents: Documents of a shard.
        storage_dtype: dtype on disk.

    Raises:
        ConfigError: An option is wrong.
    """
    if shard_documents < 1 or storage_dtype not in ("float16", "float32"):
        raise ConfigError(
            f"shard_documents is {shard_documents} and storage_dtype {storage_dtype!r}; expected 1 "
            "or more, and float16 or float32"
        )
    parts = {
        "documents": dict(key),
        "encoder": {"fingerprint": encoder.fingerprint},
        "options": {
            "shard_documents": str(shard_documents),
            "tokens_per_batch": str(options.tokens_per_batch),
            "max_tokens": str(options.max_tokens),
            "prompt": json.dumps(options.prompt),
            "storage_dtype": storage_dtype,
            "compute_dtype": options.compute_dtype,
        },
        "code": {"version": CODE_VERSION},
    }
    return EmbeddingJob(encoder, options, parts, shard_documents, storage_dtype)


def complete_embeddings(
    folder: Path,
    job: EmbeddingJob,
    make_shards: Callable[[Path], list[dict[str, Any]]],
    say: Log,
) -> Embeddings:
    """Opens the embeddings of a job, after making what is missing of them.

    Args:
        folder: Where they are, or are to be.
        job: What shapes them.
        make_shards: Makes the shards below the folder that it is given, those that are there
            excepted, and returns their entries in order.
        say: Called with what is found.

    Raises:
        DataError: There are no documents, or the folder holds something else.
        JaxrecipesError: The folder cannot be written.
    """
    with write_errors(folder, "the embeddings"), locked(folder, say):
        ready = find_finished(folder, job.parts, say)
        if ready is not None:
            return ready
        partial = partial_folder(folder)
        open_growing(partial, job.parts, say)
        shards = make_shards(partial)
        if not shards:
            raise DataError(f"{folder}: there are no documents to embed; expected at least one.")
        return finish_growing(
            partial,
            folder,
            job.parts,
            shards,
            width=job.encoder.config.hidden_size,
            dtype=job.storage_dtype,
        )


def _digest(documents: Iterable[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.id.encode(), document.text.encode()):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


def _refuse_empty(token_ids: Sequence[np.ndarray], names: Sequence[str]) -> None:
    for ids, name in zip(token_ids, names, strict=True):
        if not len(ids):
            raise DataError(
                f"document {name}: its text has no tokens, so it has no vector. Leave it out."
            )


def _refuse_unusable(vectors: np.ndarray, names: Sequence[str]) -> None:
    lengths = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1.0) < 1e-3))  # true for NaN, too
    if len(wrong):
        raise DataError(
            f"document {names[wrong[0]]} ({len(wrong)} in all): its vector has the length "
            f"{lengths[wrong[0]]}, expected 1. The encoder overflows on it: embed with "
            "compute_dtype float32, or leave it out."
        )


class EmbedProgress:
    """Says how many documents are embedded, how fast, and how long the rest will take."""

    def __init__(self, say: Log, name: str, total: int | None) -> None:
        """Begins to count; `total` is None where it is not known."""
        self.say, self.name, self.total = say, name, total
        self.start = self.done = 0
        self.began = self.last = time.monotonic()

    def __call__(self, documents: int) -> None:
        """Counts documents that were embedded."""
        self.done += documents
        now = time.monotonic()
        if now - self.last >= PROGRESS_SECONDS:
            self.last = now
            self._line(now)

    def skip(self, documents: int) -> None:
        """Counts documents that were embedded before."""
        self.start += documents
        self.done += documents

    def finish(self) -> None:
        """Says what there is in the end."""
        self._line(time.monotonic())

    def _line(self, now: float) -> None:
        rate = (self.done - self.start) / max(now - self.began, 1e-9)
        text = f"{self.name}: {self.done}"
        if self.total is not None:
            text += f" of {self.total}"
        text += f" documents embedded, {rate:,.1f} documents/s"
        if self.total is not None and rate > 0:
            text += f", ETA {max(self.total - self.done, 0) / rate:.0f} s"
        self.say(text)


def _silent(_: str) -> None:
    return None
