"""A corpus through all stages of in-context pretraining: seconds and memory of each.

    python benchmarks/corpus.py [--documents 1000000] [--executor local] [--markdown FILE]

Documents are made here (`write_documents`): twenty words each, out of a topic of its own vocabulary
(one topic for 50 documents) and of common words; one in fifty is another one with a word or two
changed. The encoder is `random:tiny-bert`: random weights, 32 numbers a vector, a byte a token. It
finds all texts alike (cosine 0.97), so the mean of its vectors is taken off in its last bias. What
is measured is the machinery, not the encoder: see "cost model" in docs/concepts/corpus_scale.md for
real ones.

Memory is the largest resident set of this process and its children, read twice a second, pages of
mapped files included. The folder keeps what is finished: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from jaxrecipes.checkpoint.encoder import ImportedEncoder
from jaxrecipes.checkpoint.random_model import random_encoder
from jaxrecipes.data.document_file import DocumentFile, write_document_file
from jaxrecipes.data.documents import Document
from jaxrecipes.models.encoder import encode
from jaxrecipes.models.pooling import pool
from jaxrecipes.neighbors.corpus.duplicates import deduplicate_corpus
from jaxrecipes.neighbors.corpus.embed import embed_corpus
from jaxrecipes.neighbors.corpus.order import order_corpus
from jaxrecipes.neighbors.corpus.search import search_corpus
from jaxrecipes.neighbors.corpus.vectors import StoredVectors
from jaxrecipes.neighbors.deduplicate import Thresholds
from jaxrecipes.neighbors.embedder import choose_options, make_embedder
from jaxrecipes.neighbors.executor import LocalExecutor
from jaxrecipes.neighbors.graph import build_graph
from jaxrecipes.neighbors.greedy import greedy_path
from jaxrecipes.neighbors.order import order_statistics
from jaxrecipes.neighbors.partition import weight_loss
from jaxrecipes.neighbors.ray_executor import RayExecutor

NEIGHBORS = 10
SAME_TOPIC, WORDS_A_TEXT, COPIES = 50, 20, 50


def write_documents(count: int, seed: int) -> Iterator[Document]:
    """Makes short texts, a topic after the other is mixed over the corpus."""
    generator = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = [
        "".join(generator.choice(letters, generator.integers(3, 9))) for _ in range(20000)
    ]
    common = vocabulary[:300]
    topics = max(count // SAME_TOPIC, 1)
    kept: list[list[str]] = []
    for number in range(count):
        if kept and number % COPIES == 0:
            words = list(kept[int(generator.integers(len(kept)))])
            for place in generator.integers(0, len(words), int(generator.integers(0, 3))):
                words[place] = common[int(generator.integers(len(common)))]
        else:
            topic = int(generator.integers(topics))
            own = np.random.default_rng(topic).integers(0, len(vocabulary), 12)
            picks, which = generator.random(WORDS_A_TEXT), generator.integers(0, 12, WORDS_A_TEXT)
            others = generator.integers(0, len(common), WORDS_A_TEXT)
            words = [
                vocabulary[own[which[at]]] if picks[at] < 0.7 else common[others[at]]
                for at in range(WORDS_A_TEXT)
            ]
            if len(kept) < 10_000:
                kept.append(words)
        yield Document(f"d{number}", " ".join(words))


def centred_encoder(texts: list[str], tokens: int) -> ImportedEncoder:
    """Returns random:tiny-bert with the mean of some texts' vectors taken off."""
    encoder = random_encoder("tiny-bert", seed=0)
    embedder = make_embedder(encoder, choose_options(encoder, max_tokens=tokens))
    rows = np.zeros((2, len(texts), tokens), np.int32)  # token ids and segments
    for row, ids in enumerate(embedder.tokenize(texts)):
        rows[0, row, : len(ids)], rows[1, row, : len(ids)] = ids, 1
    token_ids, segment_ids = jnp.asarray(rows)
    positions = jnp.arange(tokens)[None] * segment_ids
    states = encode(encoder.config, encoder.params, token_ids, segment_ids, positions)
    mean = pool(states, segment_ids, encoder.pooling)[:, 0].mean(axis=0)
    last = encoder.params["layers"][str(encoder.config.num_layers - 1)]["mlp_norm"]
    last["bias"] = last["bias"] - mean
    return replace(encoder, fingerprint=f"{encoder.fingerprint} centred {tokens}")


class Measure:
    """Seconds and memory of stages, a row a stage."""

    def __init__(self, console: Console) -> None:
        """Prints what it measures on a console, too."""
        self.rows: list[tuple[str, float, float, str]] = []
        self._console = console
        self._process = psutil.Process()

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Measures a stage; what is put into the list is shown with it."""
        peak, notes, stop = [0], [], threading.Event()

        def watch() -> None:
            while not stop.is_set():
                peak[0] = max(peak[0], self._resident())
                stop.wait(0.5)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        began = time.perf_counter()
        try:
            yield notes
        finally:
            seconds = time.perf_counter() - began
            stop.set()
            watcher.join()
        self.rows.append((name, seconds, peak[0] / 2**30, " ".join(notes)))
        self._console.print(f"{name}: {seconds:.1f} s, {peak[0] / 2**30:.2f} GiB", *notes)

    def _resident(self) -> int:
        total = 0
        for process in [self._process, *self._process.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total


def measure(arguments: argparse.Namespace, folder: Path, console: Console) -> Measure:
    """Runs all stages."""
    say = lambda line: console.print(line, style="dim", highlight=False)  # noqa: E731
    executor: Any = LocalExecutor(say) if arguments.executor == "local" else RayExecutor(log=say)
    measured, count = Measure(console), arguments.documents
    options = {"executor": executor, "shard_documents": arguments.shard, "log": say}

    with measured.stage("write documents"):
        corpus = folder / "documents"
        if not (corpus / "lengths.npy").exists():
            corpus.mkdir(parents=True, exist_ok=True)
            write_document_file(write_documents(count, 0), corpus)
            documents = DocumentFile(corpus)
            # In the recipe the model's tokens; here a byte is one.
            lengths = np.array([len(one.text) for one in documents], np.int64)
            np.save(corpus / "lengths.npy", lengths)
        documents = DocumentFile(corpus)
    with measured.stage("embed"):
        embeddings = embed_corpus(
            documents,
            centred_encoder(
                [documents.text(index) for index in range(0, count, count // 200)],
                arguments.tokens,
            ),
            folder / "embeddings",
            key={"documents": str(count)},
            max_tokens=arguments.tokens,
            storage_dtype="float16",
            **options,
        )
    vectors = StoredVectors(embeddings.folder)
    search: dict[str, Any] = {
        **options,
        "index_documents": arguments.index_documents,
        "index": arguments.index,
        "recall_floor": arguments.recall_floor,
    }
    with measured.stage("search") as notes:
        lists = search_corpus(vectors, NEIGHBORS, folder / "neighbors", key="1", **search)
        notes.append(f"{lists.facts['index']}, recall {lists.facts['recall']:.3f}")
    with measured.stage("remove duplicates") as notes:
        found = deduplicate_corpus(
            lists,
            vectors,
            documents,
            corpus / "lengths.npy",
            folder / "duplicates",
            key="1",
            executor=executor,
            thresholds=Thresholds(arguments.similarity, 0.8),
            with_texts=arguments.texts,
        )
        np.save(folder / "kept.npy", found.kept)
        notes.append(f"{len(found.removed):,} removed")
    kept = StoredVectors(embeddings.folder, folder / "kept.npy")
    with measured.stage("search what is kept") as notes:
        lists = search_corpus(kept, NEIGHBORS, folder / "kept_neighbors", key="1", **search)
        notes.append(f"recall {lists.facts['recall']:.3f}")
    with measured.stage("graph of all"):
        neighbors = lists.neighbors()
        graph = build_graph(neighbors.ids, neighbors.similarities)
    with measured.stage("path through all") as notes:
        whole = greedy_path(graph, seed=0)
        notes.append(f"{int(whole.starts.sum()):,} starts")
    with measured.stage("paths of partitions, joined") as notes:
        order = order_corpus(
            lists,
            kept,
            folder / "order",
            key="1",
            executor=executor,
            partition_documents=arguments.partition,
            seed=0,
        )
        notes.append(f"{weight_loss(order, whole):.1%} of the weight lost")
    with measured.stage("statistics") as notes:
        statistics = order_statistics(whole, kept, graph)
        random = float(np.mean(_random_cosines(kept)))
        notes.append(f"adjacent cosine {statistics.mean_adjacent_cosine:.4f}, random {random:.4f}")
    return measured


def _random_cosines(vectors: StoredVectors) -> np.ndarray:
    generator = np.random.default_rng(0)
    pairs = generator.integers(0, len(vectors), (2, 2000))
    left, right = (vectors.take_rows(side) for side in pairs)
    return np.einsum("iw,iw->i", left, right)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--executor", choices=["local", "ray"], default="local")
    parser.add_argument("--shard", type=int, default=65_536, help="documents of a piece")
    parser.add_argument("--index-documents", type=int, help="rows of an index (all)")
    parser.add_argument("--index", choices=["auto", "exact", "scann"], default="auto")
    parser.add_argument("--recall-floor", type=float, default=0.9)
    parser.add_argument("--partition", type=int, default=100_000, help="documents of a partition")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a text that are read")
    parser.add_argument("--similarity", type=float, default=0.999)
    parser.add_argument("--texts", action="store_true", help="compare texts, too")
    parser.add_argument("--folder", type=Path, help="keeps what is finished")
    parser.add_argument("--markdown", type=Path, help="append the table to a file")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        measured = measure(arguments, folder, console)
        disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    total = sum(row[1] for row in measured.rows)
    peak = max(row[2] for row in measured.rows)
    title = (
        f"{arguments.documents:,} documents, executor {arguments.executor}, {os.cpu_count()} cores "
        f"of {platform.machine()}; {disk / 2**30:.2f} GiB of files"
    )
    table = Table(title=title, title_justify="left")
    for name in ("stage", "seconds", "peak GiB", "documents/s", ""):
        table.add_column(name, justify="right" if name not in ("stage", "") else "left")
    lines = [
        f"**{title}**",
        "",
        "| stage | seconds | peak GiB | documents/s | |",
        "|---|---|---|---|---|",
    ]
    rows = [*measured.rows, ("all", total, peak, "")]
    for name, seconds, memory, note in rows:
        speed = f"{arguments.documents / max(seconds, 1e-9):,.0f}"
        cells = (name, f"{seconds:.1f}", f"{memory:.2f}", speed, note)
        table.add_row(*cells)
        lines.append(f"| {' | '.join(cells)} |")
    console.print(table)
    console.print(f"largest resident set of this process: {_largest():.2f} GiB")
    if arguments.markdown is not None:
        with arguments.markdown.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n\n")


def _largest() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
