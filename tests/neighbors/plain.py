"""Plain references: the same results as the package, by dicts, sets and nothing clever."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

_MASK = (1 << 64) - 1


@st.composite
def neighbour_lists(draw, max_count=24, max_width=5):
    """Random lists with ties, duplicates, own ids, short and empty lists, isolated documents."""
    count = draw(st.integers(1, max_count))
    width = draw(st.integers(1, max_width))
    # Few different ids and weights, so that ties, hubs and separate parts are frequent.
    reach = draw(st.integers(1, count))
    entry = st.tuples(
        st.one_of(st.just(-1), st.integers(0, reach - 1)),
        st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.5, 1.0]), st.floats(-1, 1, width=32)),
    )
    row = st.lists(entry, min_size=width, max_size=width)
    table = draw(st.lists(row, min_size=count, max_size=count))
    ids = np.array([[i for i, _ in row] for row in table], np.int64)
    return ids, np.array([[w for _, w in row] for row in table], np.float32)


def plain_graph(ids, similarities):
    """A dict {neighbour: weight} a document."""
    graph = [{} for _ in range(len(ids))]
    for i, row in enumerate(ids.tolist()):
        for j, weight in zip(row, similarities[i].tolist(), strict=True):
            if j >= 0 and j != i:
                weight = max(weight, graph[i].get(j, -np.inf))
                graph[i][j] = graph[j][i] = weight
    return graph


def plain_priorities(count, seed):
    """SplitMix64 in Python integers."""

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    state = mix((seed + 0x9E3779B97F4A7C15) & _MASK)
    return [mix((state + (i + 1) * 0x9E3779B97F4A7C15) & _MASK) for i in range(count)]


def plain_path(graph, *, seed, degree="static", start="min_degree"):
    """The paper's traversal, searching everything at each step."""
    priority = plain_priorities(len(graph), seed)
    unvisited = set(range(len(graph)))
    documents, similarities, starts = [], [], []

    def place(document, similarity, is_start):
        unvisited.remove(document)
        documents.append(document)
        similarities.append(similarity)
        starts.append(is_start)

    def start_key(document):
        if start == "random":
            return (0, priority[document])
        if degree == "static":
            return (len(graph[document]), priority[document])
        return (len(unvisited & graph[document].keys()), priority[document])

    while unvisited:
        place(min(unvisited, key=start_key), 0.0, True)
        while True:
            near = graph[documents[-1]]
            choices = unvisited & near.keys()
            if not choices:
                break
            best = min(choices, key=lambda j: (-near[j], j))
            place(best, near[best], False)
    return documents, similarities, starts
