"""Documents in, vectors of length one out: batched, jitted once a shape, on all local devices."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tokenizers import Tokenizer

from jaxrecipes.checkpoint.encoder import ImportedEncoder
from jaxrecipes.data.documents import Document
from jaxrecipes.data.durable import locked, write_errors
from jaxrecipes.errors import ConfigError, DataError
from jaxrecipes.models.encoder import encode, stack_encoder_layers
from jaxrecipes.models.encoder_config import EncoderConfig
from jaxrecipes.models.execution import Execution
from jaxrecipes.models.pooling import PoolingMode, normalize, pool
from jaxrecipes.neighbors.batches import Batch, plan_batches
from jaxrecipes.neighbors.embeddings import (
    Embeddings,
    GrowingEmbeddings,
    find_finished,
    partial_folder,
)
from jaxrecipes.sharding.mesh import BATCH_AXES, MeshShape, make_mesh

# Changes when the same text would get another vector than before.
CODE_VERSION = "1"
PROGRESS_SECONDS = 10.0
# Tokens of a batch for each device. On a CPU a batch's activations should stay in the cache (2048
# tokens were 20 % faster than 8192); an accelerator needs many rows to be busy.
CPU_TOKENS, ACCELERATOR_TOKENS = 2048, 65_536
_TOKENIZED_AT_ONCE = 1024

Log = Callable[[str], None]


@dataclass(frozen=True)
class Embedder:
    """An encoder that is on its devices and ready; made by ``make_embedder``.

    Attributes:
        config: What it computes.
        params: Run-time tree, on the devices, in the compute dtype.
        tokenizer: Cuts texts at `max_tokens`.
        prompt: Put before every text.
        pooling: How a text's hidden states become one vector.
        max_tokens: Tokens of a text that are read, special ones included.
        tokens_per_batch: Tokens of a batch, padding included.
        compute_dtype: dtype of activations and products.
        mesh: The devices that share a batch's rows; None for one.
    """

    config: EncoderConfig
    params: Any
    tokenizer: Tokenizer
    prompt: str
    pooling: PoolingMode
    max_tokens: int
    tokens_per_batch: int
    compute_dtype: jnp.dtype
    mesh: Mesh | None

    def tokenize(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the token ids of each text, int32, at most `max_tokens`, prompt included."""
        encodings = self.tokenizer.encode_batch_fast([self.prompt + text for text in texts])
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def vectors(
        self, token_ids: Sequence[np.ndarray], progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Embeds tokenized texts.

        Args:
            token_ids: Token ids of each text, none of them empty.
            progress: Called with the number of texts of each batch that is done.

        Returns:
            float32 [texts, width], of length one.
        """
        lengths = np.array([len(ids) for ids in token_ids], np.int64)
        devices = 1 if self.mesh is None else self.mesh.size
        results = np.empty((len(token_ids), self.config.hidden_size), np.float32)
        waiting: list[tuple[Batch, jax.Array]] = []

        def collect() -> None:
            batch, vectors = waiting.pop(0)
            results[batch.members] = np.asarray(vectors)[: len(batch.members)]
            if progress is not None:
                progress(len(batch.members))

        plan = plan_batches(
            lengths,
            longest=self.max_tokens,
            tokens_per_batch=self.tokens_per_batch,
            devices=devices,
        )
        for batch in plan:
            # The next batch is dispatched before the result of the one before it is waited for.
            waiting.append((batch, self._compute(batch, token_ids)))
            if len(waiting) > 1:
                collect()
        while waiting:
            collect()
        return results

    def _compute(self, batch: Batch, token_ids: Sequence[np.ndarray]) -> jax.Array:
        rows = np.full((batch.rows, batch.length), self.config.pad_token_id, np.int32)
        lengths = np.zeros(batch.rows, np.int32)
        for row, member in enumerate(batch.members.tolist()):
            ids = token_ids[member]
            rows[row, : len(ids)] = ids
            lengths[row] = len(ids)
        arrays = (rows, lengths)
        if self.mesh is not None:
            by_row = NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))
            arrays = jax.device_put(arrays, by_row)
        # float32 means float32: GPUs and TPUs would use products of fewer bits otherwise.
        exact = self.compute_dtype == jnp.float32
        with jax.default_matmul_precision("highest") if exact else nullcontext():
            return _embed_rows(
                self.params,
                *arrays,
                config=self.config,
                pooling=self.pooling,
                compute_dtype=self.compute_dtype,
                execution=Execution(self.mesh),
            )


@partial(jax.jit, static_argnames=("config", "pooling", "compute_dtype", "execution"))
def _embed_rows(
    params: Any,
    token_ids: jax.Array,
    lengths: jax.Array,
    *,
    config: EncoderConfig,
    pooling: PoolingMode,
    compute_dtype: Any,
    execution: Execution,
) -> jax.Array:
    """One text a row: int32 [rows, length] and [rows] -> float32 [rows, width]."""
    place = jnp.arange(token_ids.shape[1], dtype=jnp.int32)[None]
    segment_ids = (place < lengths[:, None]).astype(jnp.int32)
    states = encode(
        config,
        params,
        token_ids,
        segment_ids,
        place * segment_ids,
        compute_dtype=compute_dtype,
        execution=execution,
    )
    return normalize(pool(states, segment_ids, pooling)[:, 0])


def make_embedder(
    encoder: ImportedEncoder,
    *,
    tokens_per_batch: int | None = None,
    max_tokens: int | None = None,
    prompt: str | None = None,
    compute_dtype: Any = None,
) -> Embedder:
    """Puts an encoder on the devices of this process.

    Args:
        encoder: The encoder.
        tokens_per_batch: Tokens of a batch, padding included; None for what suits the device.
        max_tokens: Tokens of a text that are read, from its beginning, special ones and prompt
            included; None for as many as the encoder is made for.
        prompt: Put before every text; None for what the encoder's folder says.
        compute_dtype: dtype of activations and products; None for float32 on a CPU and bfloat16 on
            accelerators. float32 is computed with float32 products everywhere.

    Returns:
        The embedder.

    Raises:
        ConfigError: `max_tokens` is more than the encoder can read, or less than 1; or
            `tokens_per_batch` is less than 1.
    """
    limit = encoder.config.max_tokens
    longest = encoder.max_tokens if max_tokens is None else max_tokens
    if not 1 <= longest <= limit:
        raise ConfigError(
            f"max_tokens is {longest}; the encoder {encoder.source} reads 1 to {limit} tokens"
        )
    devices = jax.local_devices()
    on_cpu = devices[0].platform == "cpu"
    if tokens_per_batch is None:
        tokens_per_batch = (CPU_TOKENS if on_cpu else ACCELERATOR_TOKENS) * len(devices)
    if tokens_per_batch < 1:
        raise ConfigError(f"tokens_per_batch is {tokens_per_batch}; it must be at least 1")
    dtype = jnp.dtype(compute_dtype or (jnp.float32 if on_cpu else jnp.bfloat16))
    mesh = None if len(devices) == 1 else make_mesh(MeshShape(data=len(devices)), devices)
    placement = devices[0] if mesh is None else NamedSharding(mesh, PartitionSpec())
    params = stack_encoder_layers(encoder.params)
    params = jax.device_put(jax.tree.map(lambda leaf: leaf.astype(dtype), params), placement)
    # A copy: truncation is a state of the tokenizer.
    tokenizer = Tokenizer.from_str(encoder.tokenizer.backend_tokenizer.to_str())
    tokenizer.enable_truncation(longest)
    tokenizer.no_padding()
    return Embedder(
        config=encoder.config,
        params=params,
        tokenizer=tokenizer,
        prompt=encoder.default_prompt if prompt is None else prompt,
        pooling=encoder.pooling,
        max_tokens=longest,
        tokens_per_batch=tokens_per_batch,
        compute_dtype=dtype,
        mesh=mesh,
    )


def embed_texts(texts: Sequence[str], encoder: ImportedEncoder, **options: Any) -> np.ndarray:
    """Embeds a few texts, for example queries.

    Args:
        texts: The texts.
        encoder: The encoder.
        options: As for `make_embedder`.

    Returns:
        float32 [texts, width], of length one.

    Raises:
        ConfigError: See `make_embedder`.
        DataError: A text has no tokens, or its vector is not finite or zero; names its number.
    """
    embedder = make_embedder(encoder, **options)
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
        tokens_per_batch: See `make_embedder`.
        max_tokens: See `make_embedder`; of a longer document the first tokens are read.
        prompt: See `make_embedder`.
        storage_dtype: dtype on disk.
        compute_dtype: See `make_embedder`.
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
    folder = Path(folder)
    say = log if log is not None else _silent
    if shard_documents < 1 or storage_dtype not in ("float16", "float32"):
        raise ConfigError(
            f"shard_documents is {shard_documents} and storage_dtype {storage_dtype!r}; expected 1 "
            "or more, and float16 or float32"
        )
    embedder = make_embedder(
        encoder,
        tokens_per_batch=tokens_per_batch,
        max_tokens=max_tokens,
        prompt=prompt,
        compute_dtype=compute_dtype,
    )
    parts = {
        "documents": dict(key),
        "encoder": {"fingerprint": encoder.fingerprint},
        "options": {
            "shard_documents": str(shard_documents),
            "tokens_per_batch": str(embedder.tokens_per_batch),
            "max_tokens": str(embedder.max_tokens),
            "prompt": json.dumps(embedder.prompt),
            "storage_dtype": storage_dtype,
            "compute_dtype": embedder.compute_dtype.name,
        },
        "code": {"version": CODE_VERSION},
    }
    if total is None:
        total = len(documents) if hasattr(documents, "__len__") else None  # type: ignore[arg-type]
    with write_errors(folder, "the embeddings"), locked(folder, say):
        ready = find_finished(folder, parts, say)
        if ready is not None:
            return ready
        work = GrowingEmbeddings.open(partial_folder(folder), parts, say)
        remaining = iter(documents)
        first = _skip_finished(remaining, work, say)
        progress = _Progress(say, folder.name, work.total("documents"), total)
        for shard in _shards(first, remaining, shard_documents, embedder):
            _refuse_empty(shard.token_ids, shard.ids)
            vectors = embedder.vectors(shard.token_ids, progress)
            _refuse_unusable(vectors, shard.ids)
            tokens = sum(len(ids) for ids in shard.token_ids)
            stored = vectors.astype(storage_dtype)
            work.commit(shard.ids, stored, tokens=tokens, digest=shard.digest)
        if not work.shards:
            raise DataError(f"{folder}: there are no documents to embed; expected at least one.")
        progress.finish()
        return work.finish(folder, width=embedder.config.hidden_size, dtype=storage_dtype)


@dataclass(frozen=True)
class _Shard:
    ids: list[str]
    token_ids: list[np.ndarray]
    digest: str


def _shards(
    first: list[Document], remaining: Iterator[Document], size: int, embedder: Embedder
) -> Iterator[_Shard]:
    """Tokenizes documents shard by shard; texts are kept no longer than that takes."""
    while True:
        ids: list[str] = []
        token_ids: list[np.ndarray] = []
        digest = hashlib.sha256()
        while len(ids) < size:
            some = min(size - len(ids), _TOKENIZED_AT_ONCE)
            part = first[:some] or list(islice(remaining, some))
            first = first[some:]
            if not part:
                break
            _add_documents(digest, part)
            ids.extend(document.id for document in part)
            token_ids.extend(embedder.tokenize([document.text for document in part]))
        if not ids:
            return
        yield _Shard(ids, token_ids, digest.hexdigest())


def _add_documents(digest: Any, documents: Iterable[Document]) -> None:
    for document in documents:
        for part in (document.id.encode(), document.text.encode()):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)


def _skip_finished(
    remaining: Iterator[Document], work: GrowingEmbeddings, say: Log
) -> list[Document]:
    """Skips what finished shards hold; returns the documents of the first that changed."""
    for number, shard in enumerate(work.shards):
        documents = list(islice(remaining, shard["documents"]))
        digest = hashlib.sha256()
        _add_documents(digest, documents)
        if digest.hexdigest() != shard["digest"]:
            say(
                f"the documents of shard {number} are others than before the interruption: going "
                f"on after {number} shards"
            )
            work.keep(number)
            return documents
    return []


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


class _Progress:
    """Says how many documents are embedded, how fast, and how long the rest will take."""

    def __init__(self, say: Log, name: str, start: int, total: int | None) -> None:
        self.say, self.name, self.start, self.total = say, name, start, total
        self.done = start
        self.began = self.last = time.monotonic()

    def __call__(self, documents: int) -> None:
        self.done += documents
        now = time.monotonic()
        if now - self.last >= PROGRESS_SECONDS:
            self.last = now
            self._line(now)

    def finish(self) -> None:
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
