"""Arms that differ in the order of documents: same documents, same tokens, another order."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jaxrecipes import cli
from jaxrecipes.data.document_file import DocumentFile
from jaxrecipes.data.pack import pack
from jaxrecipes.data.rows import row_arrays
from jaxrecipes.data.store import PreparedSet, open_prepared
from jaxrecipes.data.tokenize import TokenizedDocument
from jaxrecipes.evaluate.likelihood import evaluate_set
from jaxrecipes.evaluate.rows import rows_from_prepared
from jaxrecipes.neighbors.order import Order
from tests.experiment.small import small_config, write_config
from tests.tiny import tiny_config, tiny_params

pytestmark = pytest.mark.slow

# Random weights find every text alike; only what is the same counts as a duplicate.
OPTIONS = {
    "encoder": "random:tiny-bert",
    "encoder_tokens": 64,
    "neighbors": 4,
    "duplicates": {"similarity": 0.999999, "overlap": 0.9},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run with three arms."""
    folder = tmp_path_factory.mktemp("in_context")
    data = small_config(folder / "out")
    del data["block_expansion"]
    texts = folder / "texts.jsonl"
    # One text twice: one of the two goes.
    lines = [f"Text {n} is about {'stones' if n % 2 else 'rivers'}. " * 4 for n in range(40)]
    documents = [{"id": f"t{n}", "text": text} for n, text in enumerate([*lines, lines[0]])]
    texts.write_text("".join(json.dumps(one) + "\n" for one in documents))
    data |= {"recipe": "in_context_pretraining", "in_context_pretraining": OPTIONS}
    data["data"] |= {"attend": "context", "learn": [{"source": str(texts)}]}
    data["train"] |= {"steps": 2}
    data["evaluate"] |= {"learn_documents": 6}
    data["compare"] = [
        {
            "name": name,
            "recipe": "in_context_pretraining",
            "in_context_pretraining": {**OPTIONS, "order": name},
        }
        for name in ("random", "best_fit")
    ]
    assert cli.main(["run", str(write_config(folder / "config.yaml", data))]) == 0
    return folder / "out"


def orders(output: Path) -> dict[str, dict]:
    return {
        arm: json.loads((output / "arms" / arm / "orders.json").read_text())["sources"][0]
        for arm in ("in_context_pretraining", "random", "best_fit")
    }


def packed(output: Path, method: str, fit: str = "fill") -> tuple[PreparedSet, Path]:
    """The packed set of an order, and the folder of the order."""
    for folder in (output / "data" / "in_context").glob("order-*-packed"):
        order = folder.with_name(folder.name.removesuffix("-packed"))
        inputs = json.loads((order / "stage.json").read_text())["inputs"]
        if inputs["order"] == method and inputs["source"]["split"][0] == "train":
            return open_prepared(folder), order
    raise AssertionError(method)


def tokens_of(prepared: PreparedSet) -> Counter[str]:
    """Tokens of each document in the rows."""
    found: Counter[str] = Counter()
    for row in range(len(prepared)):
        for name, _, tokens in prepared.document_ids(row):
            found[name] += tokens
    return found


def test_arms_read_the_same_documents_and_tokens_in_another_order(finished):
    sets = {name: packed(finished, name)[0] for name in ("path", "random", "best_fit")}
    counts = {name: tokens_of(prepared) for name, prepared in sets.items()}
    assert counts["path"] == counts["random"] == counts["best_fit"]
    rows = {
        name: [prepared.document_ids(row) for row in range(len(prepared))]
        for name, prepared in sets.items()
    }
    assert rows["path"] != rows["random"]
    # Rows are full but for the last; best-fit rows may not be.
    full = sets["path"].length
    assert [len(sets["path"].row(at).token_ids) for at in range(len(sets["path"]) - 1)] == [
        full
    ] * (len(sets["path"]) - 1)
    # Under best fit no document is cut that fits into a row.
    pieces = Counter(name for row in rows["best_fit"] for name, _, _ in row)
    assert all(pieces[name] == 1 for name, count in counts["best_fit"].items() if count <= full)


def test_rows_are_the_order_cut_where_they_are_full(finished):
    prepared, folder = packed(finished, "path")
    documents, order = DocumentFile(folder), Order.load(folder)
    read = [name for row in range(len(prepared)) for name, _, _ in prepared.document_ids(row)]
    first_times = list(dict.fromkeys(read))
    assert first_times == [document.id for document in documents]
    assert len(order) == len(first_times)
    assert sorted(order.documents.tolist()) == list(range(len(order)))
    # A document that ends one row goes on in the next.
    offsets: dict[str, int] = {}
    for row in range(len(prepared)):
        for name, offset, tokens in prepared.document_ids(row):
            assert offset == offsets.get(name, 0)
            offsets[name] = offset + tokens


def test_the_report_says_what_each_order_is_like(finished):
    found = orders(finished)
    assert [one["order"] for one in found.values()] == ["path", "random", "best_fit"]
    assert all(one["duplicates"]["removed"] == 1 for one in found.values())
    example = found["random"]["duplicates"]["examples"][0]
    assert {example["index"], example["kept"]} == {"t0", "t40"}
    path, random = found["in_context_pretraining"], found["random"]
    assert path["mean_adjacent_cosine"] > random["mean_adjacent_cosine"]
    assert path["coverage"] == random["coverage"] == 1
    assert path["tokens"] == random["tokens"] == found["best_fit"]["tokens"]
    shown = {arm: [one["document"] for one in found[arm]["examples"]] for arm in found}
    assert len(set(map(tuple, shown.values()))) == 1 and len(shown["random"]) == 2
    page = (finished / "report.html").read_text()
    for text in ("Order of documents", "What the document before is worth", "near duplicates"):
        assert text in page
    results = json.loads((finished / "results.json").read_text())
    gains = [arm["after"]["context"]["gain"]["value"] for arm in results["arms"]]
    assert len(gains) == 3 and np.isfinite(gains).all()


def test_too_many_duplicates_stop_the_run(tmp_path, capsys):
    data = small_config(tmp_path / "out")
    del data["block_expansion"]
    options = {**OPTIONS, "duplicates": {"similarity": 0.1, "overlap": None}}
    data |= {"recipe": "in_context_pretraining", "in_context_pretraining": options}
    data["data"]["attend"] = "context"
    code = cli.main(["run", str(write_config(tmp_path / "config.yaml", data))])
    said = " ".join(capsys.readouterr().err.split())
    assert code == 3
    assert "count as near duplicates" in said and "duplicates.most (0.5)" in said
    assert not (tmp_path / "out" / "arms").exists()


@pytest.mark.parametrize("kind", ["llama", "sliding"])
def test_the_order_is_invisible_where_documents_do_not_see_each_other(kind):
    """The loss of every document, in two orders: equal under `document`, not under `context`."""
    config = tiny_config(kind)
    params = tiny_params(config)
    generator = np.random.default_rng(0)
    texts = [generator.integers(0, config.vocab_size, size) for size in (5, 9, 4, 7, 3, 8, 6, 6)]
    documents = [TokenizedDocument(str(at), ids, 1) for at, ids in enumerate(texts)]

    def losses(order: list[int], attend: str) -> np.ndarray:
        given = [documents[at] for at in order]
        rows = pack(given, length=16, attend=attend, fit="best")
        arrays = [row_arrays(row, length=16, attend=attend) for row in rows]
        names = [document.id for document in given]
        sums = evaluate_set(
            config, params, rows_from_prepared(arrays, document_ids=names), batch_size=2
        )
        by_name = dict(zip(sums.document_ids, sums.nll, strict=True))
        return np.array([by_name[document.id] for document in documents])

    forward, backward = list(range(8)), list(range(8))[::-1]
    np.testing.assert_allclose(losses(forward, "document"), losses(backward, "document"), rtol=1e-5)
    apart = np.abs(losses(forward, "context") - losses(backward, "context"))
    assert apart.max() > 0.1
