"""The stages in pieces: what the in-memory methods give, whatever the pieces, whenever killed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxrecipes.checkpoint.random_model import random_encoder
from jaxrecipes.data.document_file import DocumentFile
from jaxrecipes.errors import DataError
from jaxrecipes.neighbors import exact, scann_index, search
from jaxrecipes.neighbors.corpus import embed as corpus_embed
from jaxrecipes.neighbors.corpus import search as corpus_search
from jaxrecipes.neighbors.corpus.search import search_corpus
from jaxrecipes.neighbors.corpus.vectors import StoredVectors
from jaxrecipes.neighbors.deduplicate import find_duplicates
from jaxrecipes.neighbors.embed import embed_documents
from jaxrecipes.neighbors.embeddings import (
    finish_growing,
    open_growing,
    partial_folder,
    shard_entry,
    shard_folder,
    write_shard,
)
from jaxrecipes.neighbors.executor import LocalExecutor
from jaxrecipes.neighbors.methods import OrderInputs, order_documents
from jaxrecipes.neighbors.pieces import PIECE, make_piece
from jaxrecipes.neighbors.search import find_neighbors
from tests.neighbors.pipeline import (
    DyingExecutor,
    KilledError,
    Settings,
    assert_same,
    make_documents,
    run_stages,
    write_corpus,
)
from tests.neighbors.vectors import unit_vectors

SETTINGS = Settings(
    shard_documents=64,
    index_documents=128,
    partition_documents=60,
    with_texts=True,
)


@pytest.fixture(scope="module")
def encoder():
    return random_encoder("tiny-bert", seed=0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "documents", make_documents(300))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several pieces of every stage also of a small corpus."""
    monkeypatch.setattr(search, "ROW_BLOCK", 128)
    monkeypatch.setattr(search, "QUERY_ROWS", 64)
    monkeypatch.setattr(corpus_search, "QUERY_ROWS", 64)
    monkeypatch.setattr(
        exact.ExactIndex.__init__, "__kwdefaults__", {"query_block": 1024, "row_block": 128}
    )


@pytest.fixture(scope="module")
def expected(corpus, encoder, tmp_path_factory):
    """What the in-memory methods give."""
    folder = tmp_path_factory.mktemp("memory")
    documents = list(DocumentFile(corpus))
    embeddings = embed_documents(
        documents,
        encoder,
        folder / "embeddings",
        key={"corpus": "1"},
        shard_documents=64,
        tokens_per_batch=1024,
        max_tokens=16,
        compute_dtype="float32",
    )
    vectors = embeddings.vectors(0, len(documents))
    lists = find_neighbors(vectors, 5)
    duplicates = find_duplicates(
        lists,
        vectors,
        np.load(corpus / "lengths.npy"),
        ids=[one.id for one in documents],
        texts=lambda index: documents[index].text,
        similarity=SETTINGS.similarity,
    )
    kept = vectors[duplicates.kept]
    again = find_neighbors(kept, 5)
    order = order_documents(
        "path",
        OrderInputs(
            count=len(kept),
            lengths=np.ones(len(kept), np.int64),
            context_length=64,
            seed=3,
            neighbors=again,
            vectors=kept,
            options={"partition_documents": 60},
        ),
    )
    return embeddings, lists, duplicates, again, order


def test_pieces_give_what_the_in_memory_methods_give(corpus, encoder, expected, tmp_path):
    found = run_stages(corpus, tmp_path, encoder, LocalExecutor(), SETTINGS)
    embeddings, lists, duplicates, again, order = expected
    # The files, too.
    files = sorted(path for path in embeddings.folder.rglob("*") if path.is_file())
    assert len(files) == 5 * 3 + 1
    for path in files:
        other = tmp_path / "embeddings" / path.relative_to(embeddings.folder)
        assert path.read_bytes() == other.read_bytes()
    np.testing.assert_array_equal(found["ids"], lists.ids)
    np.testing.assert_array_equal(found["similarities"], lists.similarities)
    assert 5 < len(duplicates.removed) < 100
    np.testing.assert_array_equal(found["kept"], duplicates.kept)
    assert found["removed"] == [vars(one) for one in duplicates.removed]
    np.testing.assert_array_equal(found["kept_ids"], again.ids)
    np.testing.assert_array_equal(found["kept_similarities"], again.similarities)
    np.testing.assert_array_equal(found["documents"], order.documents)
    np.testing.assert_array_equal(found["weights"], order.similarities)
    np.testing.assert_array_equal(found["starts"], order.starts)
    # Indexes and partial lists are gone, merged lists are there.
    assert not (tmp_path / "neighbors" / "found").exists()
    assert len(list((tmp_path / "neighbors" / "lists").iterdir())) == 5


def pieces_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """The finished pieces, and what changes when one is written again."""
    found = {}
    for path in folder.rglob(PIECE):
        parts = path.relative_to(folder).parts[:-1]
        # Embeddings grow beside their place.
        named = Path(*("embeddings" if part == ".embeddings.partial" else part for part in parts))
        found[named] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


@pytest.mark.slow
def test_a_run_killed_between_pieces_makes_only_what_is_missing(corpus, encoder, tmp_path):
    whole = DyingExecutor(10**6)
    expected = run_stages(corpus, tmp_path / "whole", encoder, whole, SETTINGS)
    total = len(whole.started)
    assert total > 60
    for stop in [*range(3, total, 9), total - 1]:
        folder = tmp_path / str(stop)
        with pytest.raises(KilledError):
            run_stages(corpus, folder, encoder, DyingExecutor(stop), SETTINGS)
        before = pieces_of(folder)
        found = run_stages(corpus, folder, encoder, LocalExecutor(), SETTINGS)
        assert_same(found, expected)
        after = pieces_of(folder)
        # Partial lists go when they are merged; nothing else was touched.
        stayed = {path for path in before if "found" not in path.parts}
        assert {path: before[path] for path in stayed} == {path: after[path] for path in stayed}
        assert len(after) > len(stayed)
    again = pieces_of(tmp_path / "whole")
    assert_same(run_stages(corpus, tmp_path / "whole", encoder, whole, SETTINGS), expected)
    assert pieces_of(tmp_path / "whole") == again


def test_a_damaged_list_is_searched_again_and_no_other(corpus, encoder, tmp_path):
    expected = run_stages(corpus, tmp_path, encoder, LocalExecutor(), SETTINGS)
    lists = tmp_path / "neighbors" / "lists"
    file = lists / "000002" / "ids.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    before = pieces_of(lists)
    executor = DyingExecutor(10**6)
    assert_same(run_stages(corpus, tmp_path, encoder, executor, SETTINGS), expected)
    assert [one for one in executor.started if one.startswith(("search", "merge"))] == [
        "search 0",
        "search 1",
        "search 2",
        "merge 0",
    ]
    changed = {path.name for path, was in pieces_of(lists).items() if was != before[path]}
    assert changed == {"000002"}


def test_sizes_of_pieces_change_nothing_but_the_vectors_last_bits(corpus, encoder, tmp_path):
    """Batches differ with the shards of embeddings, so vectors are given here."""
    one = run_stages(corpus, tmp_path / "one", encoder, LocalExecutor(), SETTINGS)
    vectors = StoredVectors(tmp_path / "one" / "embeddings")
    for number, (shard, rows) in enumerate([(64, None), (128, 128), (300, 256)]):
        lists = search_corpus(
            vectors,
            5,
            tmp_path / str(number),
            key="1",
            executor=LocalExecutor(),
            shard_documents=shard,
            index_documents=rows,
            index="exact",
            log=lambda _: None,
        ).neighbors()
        np.testing.assert_array_equal(lists.ids, one["ids"])
        np.testing.assert_array_equal(lists.similarities, one["similarities"])


def store_vectors(folder: Path, rows: np.ndarray, shard: int) -> StoredVectors:
    """Writes vectors as embeddings."""
    parts, entries = {"made": {"by": "hand"}}, []
    partial = partial_folder(folder)
    open_growing(partial, parts, print)
    for number, start in enumerate(range(0, len(rows), shard)):
        some = rows[start : start + shard]

        def build(target, some=some):
            write_shard(target, ["x"] * len(some), some)
            return {"documents": len(some), "tokens": 1, "digest": ""}

        entries.append(shard_entry(make_piece(shard_folder(partial, number), "k", build)))
    finish_growing(partial, folder, parts, entries, width=rows.shape[1], dtype="float32")
    return StoredVectors(folder)


def test_stored_vectors_are_their_rows_also_where_some_are_left_out(tmp_path):
    rows = unit_vectors(50, 0)
    stored = store_vectors(tmp_path / "e", rows, 16)
    kept = np.array([0, 3, 15, 16, 17, 40, 49])
    np.save(tmp_path / "kept.npy", kept)
    some = StoredVectors(tmp_path / "e", tmp_path / "kept.npy")
    assert (len(stored), len(some), some.width) == (50, 7, 16)
    np.testing.assert_array_equal(some[2:5], rows[kept[2:5]])
    chosen = np.array([6, 0, 0, 3])
    np.testing.assert_array_equal(some.take_rows(chosen), rows[kept[chosen]])
    chosen = np.array([49, 0, 17, 16, 0])
    np.testing.assert_array_equal(stored.take_rows(chosen), rows[chosen])
    np.testing.assert_array_equal(stored[10:20], rows[10:20])
    assert stored.take_rows(np.empty(0, np.int64)).shape == (0, 16)


def test_a_row_that_cannot_be_searched_is_named_before_any_search(tmp_path):
    rows = unit_vectors(300, 0)
    rows[200, 3] = np.nan
    with pytest.raises(DataError, match="row 200 holds a NaN"):
        search_corpus(
            store_vectors(tmp_path / "e", rows, 64),
            3,
            tmp_path / "n",
            key="1",
            executor=LocalExecutor(),
            shard_documents=64,
            index_documents=128,
            log=lambda _: None,
        )


def test_other_devices_go_on_with_vectors_that_were_begun_elsewhere(
    corpus, encoder, tmp_path, monkeypatch
):
    """Devices choose the size of batches; what was begun with another is not begun again."""

    def embed(executor, tokens):
        monkeypatch.setattr(corpus_embed, "suitable_tokens", lambda: tokens)
        return corpus_embed.embed_corpus(
            DocumentFile(corpus),
            encoder,
            tmp_path / "e",
            key={"corpus": "1"},
            executor=executor,
            shard_documents=64,
            max_tokens=16,
            log=lambda _: None,
        )

    with pytest.raises(KilledError):
        embed(DyingExecutor(1 + 3), 512)  # devices are asked, three shards are made
    executor = DyingExecutor(100)
    found = embed(executor, 2048)
    assert found.manifest["key_parts"]["options"]["tokens_per_batch"] == "512"
    assert executor.started == [f"embed {number}" for number in range(5)]
    assert embed(DyingExecutor(0), 4096).reused


@pytest.mark.long
@pytest.mark.skipif(bool(scann_index.missing_scann()), reason="ScaNN is not installed")
def test_scann_indexes_are_built_once_saved_and_judged_together(tmp_path, monkeypatch):
    monkeypatch.undo()
    rows = unit_vectors(33_000, 2, width=24, clusters=300)
    stored = store_vectors(tmp_path / "e", rows, 10_000)
    lines: list[str] = []
    options = {
        "key": "1",
        "shard_documents": 12_000,
        "index_documents": 16_384,
        "index": "scann",
        "recall_sample": 200,
        "log": lines.append,
    }
    executor = DyingExecutor(3 + 4)  # three indexes, four searches
    with pytest.raises(KilledError):
        search_corpus(stored, 5, tmp_path / "n", executor=executor, **options)
    indexes = pieces_of(tmp_path / "n" / "index")
    assert len(indexes) == 3
    executor = DyingExecutor(10**6)
    kept = []

    class Watching(DyingExecutor):
        def run(self, work):
            result = super().run(work)
            if work.name == "index":
                kept.append(pieces_of(tmp_path / "n" / "index"))
            return result

    found = search_corpus(stored, 5, tmp_path / "n", executor=Watching(10**6), **options)
    assert kept == [indexes]
    assert found.facts["recall"] >= 0.95 and found.facts["recall_sample"] == 200
    assert any("recall@5 of ScaNN on 200 documents" in line for line in lines)
    lists, whole = found.neighbors(), find_neighbors(rows, 5)
    assert np.mean(lists.similarities >= whole.similarities[:, -1:] - 1e-6) > 0.95
    assert not (lists.ids == np.arange(len(rows))[:, None]).any()
    assert sorted(path.name for path in (tmp_path / "n").iterdir()) == ["lists", "summary"]
