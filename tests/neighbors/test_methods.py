from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.errors import ConfigError, DataError
from jaxrecipes.neighbors.graph import build_graph
from jaxrecipes.neighbors.methods import METHODS, OrderInputs, order_documents
from jaxrecipes.neighbors.order import check_permutation, order_statistics
from tests.neighbors.plain import neighbour_lists
from tests.neighbors.real import SlicesOnly, embed, nearest, newsgroups
from tests.neighbors.test_cluster import blobs


def inputs_of(lists, vectors, *, seed=0, context_length=20, texts=None, **options):
    count = len(lists[0])
    return OrderInputs(
        count=count,
        lengths=1 + np.arange(count) % 9,
        context_length=context_length,
        seed=seed,
        neighbors=SimpleNamespace(ids=lists[0], similarities=lists[1]),
        vectors=vectors,
        text=texts or (lambda index: f"word{index % 3} word{index % 5}"),
        options=options,
    )


@settings(deadline=None)
@given(neighbour_lists(), st.integers(0, 2**63), st.integers(1, 50))
def test_every_method_but_knn_names_every_document_once(lists, seed, context_length):
    vectors = blobs(len(lists[0]), 3)[0]
    inputs = inputs_of(lists, vectors, seed=seed, context_length=context_length)
    for name, method in METHODS.items():
        order = order_documents(name, inputs)
        assert order.method == name
        assert order.documents.dtype == np.int64 and order.similarities.dtype == np.float32
        assert order.starts.dtype == bool and order.starts[0]
        assert not order.similarities[order.starts].any()
        assert len(order.documents) == len(order.similarities) == len(order.starts)
        if name != "knn":
            check_permutation(order, inputs.count)
        again = method(inputs)
        np.testing.assert_array_equal(order.documents, again.documents)


def test_partitions_are_an_option_of_path():
    vectors, _ = blobs(600, 20)
    lists = nearest(vectors, 5)
    whole = order_documents("path", inputs_of(lists, vectors))
    parts = order_documents(
        "path", inputs_of(lists, SlicesOnly(vectors), partition_documents=100, workers=2)
    )
    check_permutation(parts, 600)
    assert parts.documents.tolist() != whole.documents.tolist()
    alone = order_documents("path", inputs_of(lists, vectors, partition_documents=100))
    np.testing.assert_array_equal(parts.documents, alone.documents)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("path", {"degree": "remaining"}),
        ("path", {"start": "random"}),
        ("cluster", {"documents": 5}),
        ("splice", {"branches": 3}),
        ("bm25_chunk", {"buffer_documents": 3}),
    ],
)
def test_every_option_changes_the_order(method, options):
    vectors, _ = blobs(600, 20)
    lists = nearest(vectors, 5)
    default = order_documents(method, inputs_of(lists, vectors))
    changed = order_documents(method, inputs_of(lists, vectors, **options))
    assert default.documents.tolist() != changed.documents.tolist()


def test_similarities_come_from_vectors_or_else_from_the_lists():
    vectors, _ = blobs(100, 4)
    lists = nearest(vectors, 5)
    order = order_documents("splice", inputs_of(lists, vectors))
    cosines = np.einsum("id,id->i", vectors[order.documents[1:]], vectors[order.documents[:-1]])
    np.testing.assert_allclose(
        order.similarities[1:], np.where(order.starts[1:], 0, cosines), atol=1e-6
    )
    listed = order_documents("splice", inputs_of(lists, None))
    np.testing.assert_allclose(listed.similarities, order.similarities, atol=1e-6)
    bare = OrderInputs(count=9, lengths=np.ones(9, int), context_length=4, seed=0)
    assert not order_documents("random", bare).similarities.any()


@pytest.mark.parametrize(
    ("method", "change", "options", "words"),
    [
        ("paths", {}, {}, "unknown method 'paths'.*Did you mean path?"),
        ("path", {"neighbors": None}, {}, "path needs nearest neighbours"),
        ("cluster", {"vectors": None}, {}, "cluster needs embeddings"),
        ("path", {"vectors": None}, {"partition_documents": 5}, "needs embeddings"),
        ("bm25_chunk", {"text": None}, {}, "reads the documents' texts"),
        ("path", {}, {"degre": "static"}, "degre: unknown option; expected degree, start"),
        ("random", {}, {"k": 1}, "the method has no options"),
        ("splice", {}, {"branches": "two"}, "'two' is no int"),
        ("splice", {}, {"branches": 0}, "0; expected at least 1"),
        ("path", {}, {"degree": "other"}, "expected static, remaining"),
    ],
)
def test_what_cannot_be_is_refused(method, change, options, words):
    vectors, _ = blobs(20, 4)
    inputs = inputs_of(nearest(vectors, 5), vectors, **options)
    inputs = OrderInputs(**{**vars(inputs), **change})
    with pytest.raises(ConfigError, match=words):
        order_documents(method, inputs)


def test_a_method_that_loses_a_document_is_found_out(monkeypatch):
    vectors, _ = blobs(20, 4)
    inputs = inputs_of(nearest(vectors, 5), vectors)
    order = METHODS["random"](inputs)
    order.documents[3] = order.documents[4]
    monkeypatch.setitem(METHODS, "random", lambda _: order)
    with pytest.raises(DataError, match="1 of 20 are missing"):
        order_documents("random", inputs)


def test_real_documents_keep_the_shape_that_the_pilot_found(shared_data):
    texts = newsgroups(shared_data)
    vectors = embed(texts)
    lists = nearest(vectors, 10)
    graph = build_graph(*lists)
    inputs = OrderInputs(
        count=len(texts),
        lengths=np.array([len(text) // 4 + 1 for text in texts]),
        context_length=2048,
        seed=0,
        neighbors=SimpleNamespace(ids=lists[0], similarities=lists[1]),
        vectors=vectors,
        text=texts.__getitem__,
    )
    found = {
        name: order_statistics(order_documents(name, inputs), vectors, graph) for name in METHODS
    }
    for statistics in found.values():
        print(statistics)
    cosine = {name: statistics.mean_adjacent_cosine for name, statistics in found.items()}
    weight = {name: statistics.mean_path_weight for name, statistics in found.items()}
    assert cosine["path"] >= 2 * cosine["random"]
    assert cosine["path"] >= cosine["repo"] > cosine["cluster"] > cosine["random"]
    assert weight["path"] == max(weight[name] for name in METHODS if name != "knn")
    assert cosine["bm25_chunk"] > 1.5 * cosine["random"]
    assert found["knn"].coverage < 0.8 and found["knn"].largest_repeats > 5
    assert all(found[name].coverage == 1.0 for name in METHODS if name != "knn")
    assert found["path"].starts < 0.15 * len(texts)
