"""All ways to order a corpus, in one table."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from jaxrecipes.errors import ConfigError
from jaxrecipes.neighbors.bm25 import bm25_chunk_order
from jaxrecipes.neighbors.cluster import (
    assign_clusters,
    cluster_order,
    nearest_centres,
    partition_centres,
)
from jaxrecipes.neighbors.graph import build_graph, edge_weights
from jaxrecipes.neighbors.greedy import greedy_path
from jaxrecipes.neighbors.knn_contexts import knn_contexts
from jaxrecipes.neighbors.order import Order, Vectors, adjacent_cosines, check_permutation
from jaxrecipes.neighbors.partition import partitioned_path
from jaxrecipes.neighbors.random_order import random_order
from jaxrecipes.neighbors.repo_order import repo_order
from jaxrecipes.neighbors.splice import splice_order


class NeighborLists(Protocol):
    """The nearest neighbours of every document.

    Attributes:
        ids: [n, k] int64, nearest first, without the document itself; -1 fills short lists.
        similarities: [n, k] float32 cosine similarities.
    """

    @property
    def ids(self) -> np.ndarray: ...  # noqa: D102

    @property
    def similarities(self) -> np.ndarray: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class OrderInputs:
    """What a method can order documents by. What a method does not need may be None.

    Attributes:
        count: n, documents of the corpus.
        lengths: [n] int64, tokens of each document.
        context_length: Tokens of a context.
        seed: Any integer.
        neighbors: Nearest neighbours of every document.
        vectors: [n, width] L2-normalised embeddings.
        text: Text of a document by its index.
        options: Options of the method, by name; see the functions of ``METHODS``.
    """

    count: int
    lengths: np.ndarray
    context_length: int
    seed: int
    neighbors: NeighborLists | None = None
    vectors: Vectors | None = None
    text: Callable[[int], str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def path(inputs: OrderInputs) -> Order:
    """The paper's path, see ``greedy_path``.

    Options: ``degree`` (static), ``start`` (min_degree); ``partition_documents`` (0: one graph),
    the size of partitions found by k-means and traversed by ``workers`` (1) threads.
    """
    options = _options(
        inputs, degree="static", start="min_degree", partition_documents=0, workers=1
    )
    ids, similarities = _lists(inputs, "path")
    walk: dict[str, Any] = {key: options[key] for key in ("degree", "start")}
    size = options["partition_documents"]
    if not size:
        return greedy_path(build_graph(ids, similarities), seed=inputs.seed, **walk)
    vectors = _vectors(inputs, "path with partition_documents")
    centres = partition_centres(vectors, documents=size, seed=inputs.seed)
    labels = nearest_centres(vectors, centres)
    return partitioned_path(
        ids, similarities, labels, vectors, seed=inputs.seed, workers=options["workers"], **walk
    )


def random(inputs: OrderInputs) -> Order:
    """Documents in random order: ordinary pretraining."""
    _options(inputs)
    documents = random_order(inputs.count, inputs.seed)
    return _joined(documents, np.arange(inputs.count) == 0, "random", inputs)


def knn(inputs: OrderInputs) -> Order:
    """The paper's kNN baseline, see ``knn_contexts``. Documents repeat."""
    _options(inputs)
    found = knn_contexts(*_lists(inputs, "knn"), inputs.lengths, **_context(inputs))
    return _joined(*found, "knn", inputs)


def cluster(inputs: OrderInputs) -> Order:
    """k-means clusters, random inside. Option: ``documents`` (50), the wanted size of a cluster."""
    options = _options(inputs, documents=50)
    labels = assign_clusters(_vectors(inputs, "cluster"), seed=inputs.seed, **options)
    return _joined(*cluster_order(labels, seed=inputs.seed), "cluster", inputs)


def repo(inputs: OrderInputs) -> Order:
    """What the official repository computes, see ``repo_order``. The seed has no part in it."""
    _options(inputs)
    return _joined(*repo_order(*_lists(inputs, "repo")), "repo", inputs)


def splice(inputs: OrderInputs) -> Order:
    """SPLiCe, see ``splice_order``. Option: ``branches`` (1)."""
    options = _options(inputs, branches=1)
    lists = _lists(inputs, "splice")
    found = splice_order(*lists, inputs.lengths, **_context(inputs), **options)
    return _joined(*found, "splice", inputs)


def bm25_chunk(inputs: OrderInputs) -> Order:
    """BM25Chunk, see ``bm25_chunk_order``. Option: ``buffer_documents`` (2048). Without a seed."""
    options = _options(inputs, buffer_documents=2048)
    if inputs.text is None:
        raise ConfigError(
            "in_context_pretraining.order: bm25_chunk reads the documents' texts; none were given."
        )
    found = bm25_chunk_order(
        inputs.text, inputs.lengths, context_length=inputs.context_length, **options
    )
    return _joined(*found, "bm25_chunk", inputs)


METHODS: dict[str, Callable[[OrderInputs], Order]] = {
    "path": path,
    "random": random,
    "knn": knn,
    "cluster": cluster,
    "repo": repo,
    "splice": splice,
    "bm25_chunk": bm25_chunk,
}


def order_documents(method: str, inputs: OrderInputs) -> Order:
    """Orders a corpus.

    Args:
        method: A key of ``METHODS``.
        inputs: What to order by.

    Returns:
        The order; every document exactly once, except by ``knn``.

    Raises:
        ConfigError: The method or an option is unknown, or the method needs an input that is None.
        DataError: An input is wrong; the message says which.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"in_context_pretraining.order: unknown method {method!r}; expected "
            f"{', '.join(METHODS)}.{hint}"
        )
    order = METHODS[method](inputs)
    if method != "knn":
        check_permutation(order, inputs.count)
    return order


def _joined(documents: np.ndarray, starts: np.ndarray, method: str, inputs: OrderInputs) -> Order:
    similarities = np.zeros(len(documents), np.float32)
    if inputs.vectors is not None:
        similarities[1:] = adjacent_cosines(documents, inputs.vectors)
    elif inputs.neighbors is not None:
        graph = build_graph(inputs.neighbors.ids, inputs.neighbors.similarities)
        similarities[1:] = edge_weights(graph, documents[:-1], documents[1:])
    similarities[starts] = 0
    return Order(documents, similarities, starts, method)


def _lists(inputs: OrderInputs, method: str) -> tuple[np.ndarray, np.ndarray]:
    if inputs.neighbors is None:
        raise ConfigError(
            f"in_context_pretraining.order: {method} needs nearest neighbours; none were given."
        )
    return inputs.neighbors.ids, inputs.neighbors.similarities


def _vectors(inputs: OrderInputs, method: str) -> Vectors:
    if inputs.vectors is None:
        raise ConfigError(
            f"in_context_pretraining.order: {method} needs embeddings; none were given."
        )
    return inputs.vectors


def _context(inputs: OrderInputs) -> dict[str, int]:
    return {"context_length": inputs.context_length, "seed": inputs.seed}


def _options(inputs: OrderInputs, **defaults: Any) -> dict[str, Any]:
    """Fills in defaults; an unknown name, a wrong type or a number below its least is an error."""
    for name, value in inputs.options.items():
        if name not in defaults:
            raise ConfigError(
                f"in_context_pretraining.{name}: unknown option; expected "
                f"{', '.join(defaults) or 'none, the method has no options'}."
            )
        default = defaults[name]
        if type(value) is not type(default):
            raise ConfigError(
                f"in_context_pretraining.{name}: {value!r} is no {type(default).__name__}; the "
                f"default is {default!r}."
            )
        least = min(default, 1) if isinstance(default, int) else 0
        if isinstance(value, int) and value < least:
            raise ConfigError(f"in_context_pretraining.{name}: {value}; expected at least {least}.")
    return {**defaults, **inputs.options}
