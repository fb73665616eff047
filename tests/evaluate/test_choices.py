from __future__ import annotations

import json

import numpy as np
import pytest

from jaxrecipes.errors import DataError
from jaxrecipes.evaluate.choices import (
    ChoiceItem,
    LastWordItem,
    choice_scores,
    encode_choices,
    encode_last_words,
    last_word_scores,
    read_choice_items,
    read_last_word_items,
)

from .conftest import loud_params, tiny_config
from .test_likelihood import log_probabilities


def encode(text: str) -> list[int]:
    return [1] + [2 + ord(character) % 95 for character in text]


ITEMS = [
    ChoiceItem("a", ("cat",) * 3, (" on", " o", " mat"), 1),
    ChoiceItem("b", ("do ", "dig "), ("bone", "bone"), 0),
    ChoiceItem("c", ("hi",) * 2, (" there", " you"), 1),
]


def test_scores_equal_brute_force():
    config = tiny_config()
    params = loud_params(config, 3)
    scores = choice_scores(config, params, encode_choices(ITEMS, encode))
    expected = []
    for item in ITEMS:
        for context, choice in zip(item.contexts, item.choices, strict=True):
            tokens, first = encode(context + choice), len(encode(context.rstrip(" ")))
            rows = log_probabilities(config, params, tokens)[first - 1 : -1]
            expected.append(rows[np.arange(len(tokens) - first), tokens[first:]].sum())
    np.testing.assert_allclose(scores.log_probabilities, expected, rtol=1e-4)
    sums = [expected[:3], expected[3:5], expected[5:]]
    lengths = [[2, 1, 3], [4, 4], [5, 3]]
    for index, item in enumerate(ITEMS):
        values = np.asarray(sums[index])
        assert scores.correct[index] == (values.argmax() == item.answer)
        assert scores.correct_normalized is not None
        assert scores.correct_normalized[index] == (
            (values / lengths[index]).argmax() == item.answer
        )
        probability = np.exp(values - np.logaddexp.reduce(values))[item.answer]
        assert scores.probability[index] == pytest.approx(probability, rel=1e-3)


def test_last_word_is_correct_where_greedy_writes_it():
    config = tiny_config()
    params = loud_params(config, 3)
    context = encode("the cat sat")
    first = int(log_probabilities(config, params, context)[-1].argmax())
    second = int(log_probabilities(config, params, [*context, first])[-1].argmax())
    wrong = (second + 1) % 97
    table = {"the cat sat": context, "the cat sat A": [*context, first, second]}
    table["the cat sat B"] = [*context, first, wrong]
    items = [LastWordItem(target, "the cat sat", target) for target in (" A", " B")]
    scores = last_word_scores(config, params, encode_last_words(items, table.__getitem__))
    assert scores.correct.tolist() == [1.0, 0.0]
    expected = log_probabilities(config, params, [*context, first])
    assert scores.log_probabilities[0] == pytest.approx(
        expected[-2, first] + expected[-1, second], rel=1e-4
    )


def test_paired_change_of_accuracy():
    config = tiny_config()
    items = encode_choices(ITEMS, encode)
    scores = choice_scores(config, loud_params(config, 3), items)
    assert scores.change(scores).value == 0
    other = choice_scores(config, loud_params(config, 3), encode_choices(ITEMS[:2], encode))
    with pytest.raises(DataError, match="same items"):
        scores.change(other)


def test_long_contexts_are_cut_on_the_left_and_counted():
    item = ChoiceItem("long", ("x" * 200,) * 2, (" yes", " no"), 0)
    encoded = encode_choices([item], encode, max_length=50)
    assert encoded.truncated == 2
    assert encoded.rows.segment_ids.max() == 2
    with pytest.raises(DataError, match="long, choice 0 has"):
        encode_choices([item], encode, max_length=3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"items.jsonl:2: not JSON"),
        ("[]", r"items.jsonl:2: expected a JSON object"),
        ({"choices": ["a", "b"], "answer": 0}, r"items.jsonl:2: .*'question'"),
        ({"question": "q", "choices": ["a"], "answer": 0}, r"items.jsonl:2: .*at least two"),
        (
            {"question": "q", "choices": ["a", "b"], "answer": 2},
            r"items.jsonl:2: answer is 2.*0 to 1",
        ),
        ({"question": "q", "choices": ["a", "b"], "answer": "A"}, r"items.jsonl:2: answer is 'A'"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, r"answer is True"),
        ({"contexts": ["a", "b"], "answer": 0}, r"items.jsonl:2: .*'continuation'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "items.jsonl"
    good = json.dumps({"id": "g", "question": "q?", "choices": ["a", "b"], "answer": 1})
    path.write_text(good + "\n" + (line if isinstance(line, str) else json.dumps(line)) + "\n")
    with pytest.raises(DataError, match=message):
        read_choice_items(path)


def test_unreadable_files_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="missing.jsonl"):
        read_choice_items(tmp_path / "missing.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(DataError, match="no items"):
        read_last_word_items(empty)
    empty.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_last_word_items(empty)


def test_files_are_read_in_the_forms_they_have(tmp_path):
    path = tmp_path / "items.jsonl"
    entries = [
        {"id": "g", "question": "q? ", "choices": ["a", " b"], "answer": 1},
        {"id": "w", "contexts": ["he", "she"], "continuation": "ran", "answer": 0},
    ]
    path.write_text("\n".join(map(json.dumps, entries)))
    assert read_choice_items(path, prompt="{question}") == [
        ChoiceItem("g", ("q?", "q?"), (" a", " b"), 1),
        ChoiceItem("w", ("he", "she"), (" ran", " ran"), 0),
    ]
    path.write_text(json.dumps({"id": "l", "context": "a b ", "target": "c"}))
    assert read_last_word_items(path) == [LastWordItem("l", "a b", " c")]
