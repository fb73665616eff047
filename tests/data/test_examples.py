"""Rows of every shape: found by their columns, read, and refused with file, line and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jaxrecipes.data.documents import ReadReport
from jaxrecipes.data.example_shapes import COLUMNS, SHAPES
from jaxrecipes.data.example_sources import find_shape, read_examples
from jaxrecipes.data.examples import Completion, Conversation, Labelled
from jaxrecipes.data.sources import SourceSpec
from jaxrecipes.errors import ConfigError, DataError

USER, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
CHAT = [USER, ANSWER]
TURNS = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
ROWS: dict[str, dict[str, Any]] = {
    "chat": {"messages": CHAT},
    "sharegpt": {"conversations": TURNS},
    "prompt_completion": {"prompt": "Q", "completion": "A"},
    "alpaca": {"instruction": "Q", "input": "", "output": "A"},
    "documents": {"text": "Q"},
    "sentence_pair": {"premise": "P", "hypothesis": "H", "label": 1},
    "classification": {"sentence": "S", "label": "good"},
}


def write(tmp_path: Path, *rows: Any) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: str, columns: Any = None, **options: Any) -> list[Any]:
    return list(read_examples(SourceSpec(path, columns=columns or {}), **options))


def test_every_shape_has_columns_and_a_row_here():
    assert set(COLUMNS) == set(SHAPES) == set(ROWS)


@pytest.mark.parametrize("shape", ROWS)
def test_shapes_are_found_by_their_columns(tmp_path, shape):
    assert find_shape(SourceSpec(write(tmp_path, ROWS[shape]))) == shape


def test_labels_beside_a_text_do_not_make_a_corpus_a_task(tmp_path):
    path = write(tmp_path, {"text": "T", "label": 1})
    assert find_shape(SourceSpec(path)) == "documents"
    assert find_shape(SourceSpec(path, columns={"text": "text"})) == "documents"
    assert find_shape(SourceSpec(path), "classification") == "classification"
    mapped = SourceSpec(path, columns={"label": "label"})
    assert find_shape(mapped) == "classification"
    assert [(one.texts, one.label) for one in read_examples(mapped)] == [(("T",), 1)]


def test_columns_of_several_shapes_are_not_guessed_about(tmp_path):
    path = write(tmp_path, {**ROWS["chat"], **ROWS["alpaca"]})
    with pytest.raises(DataError, match="several shapes: chat, alpaca.*shape: chat"):
        find_shape(SourceSpec(path))
    assert isinstance(read(path, shape="alpaca")[0], Conversation)
    assert find_shape(SourceSpec(path, columns={"output": "output"})) == "alpaca"


def test_what_the_rows_of_each_shape_become(tmp_path):
    def only(row: dict[str, Any], **options: Any) -> Any:
        return read(write(tmp_path, row), **options)[0]

    for shape in ("chat", "sharegpt", "alpaca"):
        assert only(ROWS[shape]).messages == tuple(CHAT)
    assert only({"instruction": "I", "input": "C", "output": "A", "system": "S"}).messages == (
        {"role": "system", "content": "S"},
        {"role": "user", "content": "I\n\nC"},
        ANSWER,
    )
    completion = only(ROWS["prompt_completion"])
    assert isinstance(completion, Completion)
    assert (completion.prompt, completion.completion) == ("Q", "A")
    conversational = only({"prompt": [*CHAT, USER], "completion": [ANSWER]})
    assert conversational.messages == (*CHAT, USER, ANSWER)
    assert conversational.first_supervised == 3
    pair = only(ROWS["sentence_pair"])
    assert isinstance(pair, Labelled) and pair.texts == ("P", "H") and pair.label == 1
    assert pair.conversation().messages == (
        {"role": "user", "content": "P\n\nH"},
        {"role": "assistant", "content": "1"},
    )
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    calling = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, ANSWER]
    tools = [{"type": "function", "function": {"name": "f"}}]
    for given in (tools, json.dumps(tools)):
        chat = only({"messages": calling, "tools": given})
        assert chat.messages[1] == {"role": "assistant", "tool_calls": [call]}
        assert chat.tools == tuple(tools)
    roles = [m["role"] for m in only({"conversations": [*TURNS, *TURNS], "system": "S"}).messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"]


def test_ids_groups_columns_and_empty_answers(tmp_path):
    rows = [
        {"key": "a", "q": "Q", "a": "A", "author": 7},
        {"key": "b", "q": "Q", "a": "  ", "author": 7},
    ]
    report = ReadReport()
    columns = {"id": "key", "group": "author", "prompt": "q", "completion": "a"}
    found = read(write(tmp_path, *rows), columns, report=report)
    assert [(one.id, one.group) for one in found] == [("a", "7")]
    assert report.dropped == {"empty answer": 1} and report.examples == {"empty answer": ["b"]}
    assert read(write(tmp_path, ROWS["chat"]))[0].id == "rows.jsonl:1"
    with pytest.raises(DataError, match="no example was found"):
        read(write(tmp_path, {"prompt": "Q", "completion": ""}))


def test_parquet_and_csv_and_saved_data_sets(tmp_path):
    import pyarrow
    import pyarrow.parquet

    # A column of structs gives every message all keys: those that are null are absent.
    messages = [USER | {"name": "bob"}, ANSWER]
    table = pyarrow.Table.from_pylist([{"id": 1, "messages": messages}])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    (found,) = read(str(tmp_path / "rows.parquet"))
    assert (found.id, list(found.messages)) == ("1", messages)
    assert found.where.endswith("rows.parquet: row 1")
    (tmp_path / "rows.csv").write_text('premise,hypothesis,label\nP,"H, too",yes\n')
    (pair,) = read(str(tmp_path / "rows.csv"))
    assert (pair.texts, pair.label) == (("P", "H, too"), "yes")
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([ROWS["chat"]]).save_to_disk(str(tmp_path / "saved"))
    assert read(str(tmp_path / "saved"))[0].messages == tuple(CHAT)


BAD: list[tuple[Any, str | None, str]] = [
    ({"messages": "x"}, None, "messages holds str 'x'; expected a list of messages"),
    ({"messages": []}, None, "expected a list of messages that is not empty"),
    ({"messages": ["x"]}, None, r"messages\[0\] holds str 'x'; expected an object with role"),
    ({"messages": TURNS}, None, "these are sharegpt turns: give shape: sharegpt"),
    ({"messages": [USER, {"role": "bot", "content": "A"}]}, None, r"messages\[1\].role.*assistant"),
    ({"messages": [USER, {"role": ["assistant"]}]}, None, r"messages\[1\].role holds list"),
    ({"messages": [USER, {"role": "assistant"}]}, None, r"messages\[1\].content holds null"),
    (
        {"messages": [USER, {"role": "assistant", "content": 3}]},
        None,
        "holds int 3; expected",
    ),
    ({"messages": [USER]}, None, "'rows.jsonl:2' has no assistant turn.*roles found: user"),
    ({"messages": CHAT, "tools": "{"}, None, "tools is no valid JSON"),
    ({"messages": CHAT, "tools": ["f"]}, None, "tools holds list.*expected a list of JSON schemas"),
    ({"messages": [USER, {"role": "assistant", "content": "a\x00"}]}, None, "NUL character"),
    ({"messages": [USER | {"name": "\ud800"}, ANSWER]}, None, r"messages\[0\].name: .*surrogate"),
    ({"other": 1}, "chat", "the row has no 'messages'; it has other"),
    ({"conversations": CHAT}, "sharegpt", "these are chat messages: give shape: chat"),
    ({"conversations": [{"from": "me", "value": "x"}]}, "sharegpt", r"\[0\].from holds.*human"),
    ({"conversations": [{"from": "gpt", "value": None}]}, "sharegpt", r"\[0\].value holds null"),
    ({"conversations": 5}, "sharegpt", "conversations holds int 5"),
    ({"instruction": "I", "output": None}, "alpaca", "output holds null; expected a string"),
    ({"prompt": "Q", "completion": 5}, "prompt_completion", "completion holds int 5"),
    ({"prompt": "Q", "completion": [ANSWER]}, "prompt_completion", "prompt holds str 'Q'"),
    ({"prompt": CHAT, "completion": [USER]}, "prompt_completion", "turn in its completion"),
    ({"sentence": "S", "label": True}, "classification", "label holds bool True; expected a label"),
    ({"sentence": "S", "label": None}, "classification", "label holds null"),
    ({"premise": "P", "hypothesis": 1, "label": 1}, "sentence_pair", "hypothesis holds int 1"),
]


@pytest.mark.parametrize(("row", "shape", "message"), BAD)
def test_every_bad_row_is_named_with_its_line_and_what_was_expected(tmp_path, row, shape, message):
    path = write(tmp_path, ROWS[shape or "chat"], row)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert caught.value.exit_code == 3


def test_missing_columns_come_with_a_mapping_to_paste(tmp_path):
    path = write(tmp_path, {"question": "Q", "reply": "A", "id": 3})
    with pytest.raises(DataError) as caught:
        read(path)
    for part in (
        f"{path}:1: column 'text' not found",
        "columns found:  question, reply, id",
        "columns: {text: question}",
    ):
        assert part in str(caught.value)
    with pytest.raises(DataError, match="columns: {prompt: question, completion: reply}"):
        read(path, shape="prompt_completion")
    with pytest.raises(ConfigError, match="no role 'label'"):
        read(path, {"label": "reply"}, shape="chat")


def test_sources_without_columns_have_no_shape_but_documents(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    spec = SourceSpec(str(tmp_path / "a.txt"))
    assert find_shape(spec) == "documents"
    with pytest.raises(ConfigError, match="text source, which has no columns"):
        find_shape(spec, "chat")
    with pytest.raises(DataError, match="these are plain documents"):
        list(read_examples(spec))


def test_equal_examples_have_equal_texts_and_a_border_counts(tmp_path):
    texts = [
        read(write(tmp_path, row))[0].text
        for row in (
            {"prompt": "a", "completion": "bc"},
            {"prompt": "ab", "completion": "c"},
            {"completion": "bc", "prompt": "a"},
        )
    ]
    assert texts[0] != texts[1] and texts[0] == texts[2]
