from __future__ import annotations

import json

import numpy as np
import pytest

from jaxrecipes.errors import DataError
from jaxrecipes.evaluate.choices import encode_choices
from jaxrecipes.evaluate.frontier import Curve, curve_from_records, equal_learning
from jaxrecipes.evaluate.record import (
    build_suite,
    evaluate_arm,
    read_metrics,
    read_records,
    validate_record,
)
from jaxrecipes.evaluate.rows import pack_scored

from .conftest import loud_params, tiny_config
from .test_choices import ITEMS, encode
from .test_likelihood import documents


@pytest.fixture(scope="module")
def records():
    config = tiny_config()
    base = loud_params(config, 0)
    suite = build_suite(
        config,
        base,
        learn=pack_scored(documents(12, 0), length=32),
        keep=pack_scored(documents(9, 1), length=32),
        choices=encode_choices(ITEMS, encode),
        token_bytes=np.full(97, 2, np.int32),
        batch_size=2,
        chunk=32,
    )
    before = evaluate_arm(suite, config, base, step=0, tokens=0)
    after = evaluate_arm(suite, config, loud_params(config, 1), step=10, tokens=640)
    return before, after


def test_records_survive_json_and_validation(records, tmp_path):
    path = tmp_path / "evaluations.jsonl"
    path.write_text("".join(json.dumps(one, allow_nan=False) + "\n" for one in records))
    assert read_records(path) == list(records)
    assert {"step", "tokens", "learn", "keep", "choices"} <= records[0].keys()
    assert records[1]["last_words"] is None


def test_the_base_has_neither_changed_nor_diverged(records):
    before, after = records
    for name in ("learn", "keep"):
        assert before[name]["change"]["value"] == pytest.approx(0, abs=1e-6)
        assert before[name]["kl"]["value"] == pytest.approx(0, abs=1e-6)
        assert after[name]["kl"]["value"] > 0.1
        change = after[name]["loss"]["value"] - before[name]["loss"]["value"]
        assert after[name]["change"]["value"] == pytest.approx(change, abs=1e-5)
    assert before["choices"]["change"]["value"] == 0


def test_sums_by_document_add_up_to_the_measures(records):
    after = records[1]
    for name in ("learn", "keep"):
        sums, block = after["document_sums"][name], after[name]
        assert sum(sums["tokens"]) == block["scored_tokens"]
        for field, measure in (("nll", "loss"), ("kl", "kl")):
            value = sum(sums[field]) / sum(sums["tokens"])
            assert value == pytest.approx(block[measure]["value"], rel=1e-5)


def test_records_make_curves_that_can_be_compared(records):
    before, after = records
    better = json.loads(json.dumps(after))
    block = better["document_sums"]["learn"]
    block["nll"] = [value * 0.5 for value in block["base_nll"]]
    change = (sum(block["nll"]) - sum(block["base_nll"])) / sum(block["tokens"])
    better["learn"]["change"]["value"] = change
    curve = curve_from_records("a", [before, better])
    assert isinstance(curve, Curve) and curve.has_sums
    result = equal_learning([curve, curve])
    assert result.gain == pytest.approx(-change)
    assert result.forgetting["a"].value == pytest.approx(after["keep"]["kl"]["value"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": -1}, "step is -1"),
        ({"tokens": "many"}, "tokens is 'many'"),
        ({"learn": None}, "learn is missing"),
        ({"learn": {"loss": None}}, "learn.loss is missing"),
        ({"keep": 3}, "keep is 3"),
        ({"choices": {"accuracy": 0.5}}, "choices.accuracy is 0.5; expected"),
        ({"learn": {"loss": {"value": 1}, "perplexity": {}}}, "learn.loss is"),
    ],
)
def test_wrong_records_are_named(records, change, message):
    with pytest.raises(DataError, match=f"here: {message}"):
        validate_record({**records[0], **change}, "here")


def test_a_line_cut_by_a_kill_is_passed_over_and_others_are_errors(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = json.dumps({"step": 1, "loss": 2.0, "tokens": 5})
    path.write_text(line + "\n" + line[:9])
    assert len(read_metrics(path)) == 1
    path.write_text(line[:9] + "\n" + line + "\n")
    with pytest.raises(DataError, match=r"metrics.jsonl:1: not JSON"):
        read_metrics(path)
    path.write_text('{"step": 1}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl:1: expected"):
        read_metrics(path)
    with pytest.raises(DataError, match="missing.jsonl"):
        read_records(tmp_path / "missing.jsonl")
