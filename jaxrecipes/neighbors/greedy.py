"""The paper's traversal: a greedy path of high weight through all documents."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from jaxrecipes.errors import ConfigError
from jaxrecipes.neighbors.graph import Graph
from jaxrecipes.neighbors.order import Order
from jaxrecipes.neighbors.random_order import random_priorities

Degree = Literal["static", "remaining"]
Start = Literal["min_degree", "random"]
_HEAVIEST = 8  # neighbours of a row that the walk looks at first; 32 bytes


def greedy_path(
    graph: Graph, *, seed: int, degree: Degree = "static", start: Start = "min_degree"
) -> Order:
    """Visits every document once, following heavy edges (arXiv 2310.10638, algorithm 1).

    Start at an unvisited document of minimum degree. Go on to the unvisited neighbour with the
    highest weight; where none is left, start again, joined with weight 0. The paper takes any
    neighbour before a new start, so an edge of negative weight is followed too.

    Ties are broken the same way everywhere: between neighbours of equal weight the lower index goes
    first; between starts of equal degree a random priority of (seed, index) decides, see
    ``random_priorities``. Weights are compared, never added, so no rounding can change the order.

    Time is O(n + E) after sorting the starts in O(n log n) for ``static``, O((n + E) log n) for
    ``remaining``; memory is O(n) beyond the graph.

    Args:
        graph: n documents.
        seed: Decides between starts of equal degree.
        degree: Degree in the graph (``static``), or counting unvisited neighbours only
            (``remaining``). The paper does not say which; starts differ, the path hardly.
        start: ``min_degree`` is the paper's; ``random`` starts anywhere, for comparison.

    Returns:
        Order of n documents, method "path". The number of weight-0 joins is the number of starts
        less one.

    Raises:
        ConfigError: An option has no valid value, or ``remaining`` with random starts.
    """
    for name, value, valid in (("degree", degree, Degree), ("start", start, Start)):
        if value not in get_args(valid):
            raise ConfigError(
                f"order.{name}: unknown value {value!r}; expected {', '.join(get_args(valid))}."
            )
    if start == "random" and degree == "remaining":
        raise ConfigError(
            "order.degree: remaining has no effect where order.start is random, because random "
            "starts ask for no degree. Leave degree out, or choose start: min_degree."
        )
    by_priority = np.argsort(random_priorities(graph.count, seed))  # distinct: no ties to break
    if start == "random":
        return _walk(graph, by_priority)
    degrees = graph.degrees[by_priority]
    # NumPy sorts 16-bit integers by counting, several times faster than larger ones.
    narrow = degrees.astype(np.min_scalar_type(int(degrees.max(initial=0))))
    by_degree = by_priority[np.argsort(narrow, kind="stable")]
    if degree == "static":
        return _walk(graph, by_degree)
    from jaxrecipes.neighbors import greedy_loops  # numba takes a second to import

    places = np.arange(graph.count, dtype=np.int32)
    keys = graph.degrees.astype(np.uint64) << np.uint64(32)
    keys[by_priority] |= places.astype(np.uint64)
    heap = by_degree.astype(np.int32)
    places[by_degree] = places.copy()
    edges = (graph.indptr, graph.indices, graph.weights)
    return Order(*greedy_loops.walk_remaining(*edges, heap, keys, places), method="path")


def _walk(graph: Graph, start_order: np.ndarray) -> Order:
    from jaxrecipes.neighbors import greedy_loops

    heaviest = greedy_loops.heaviest_neighbors(graph.indptr, graph.indices, _HEAVIEST)
    documents, edges = greedy_loops.walk(graph.indptr, graph.indices, heaviest, start_order)
    starts = edges < 0
    similarities = np.zeros(len(edges), np.float32)
    similarities[~starts] = graph.weights[edges[~starts]]
    return Order(documents, similarities, starts, method="path")
