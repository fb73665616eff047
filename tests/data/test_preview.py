from __future__ import annotations

import io
import json

import numpy as np
from rich.console import Console

from jaxrecipes.data.preview import preview_source, printable, render_preview, row_text
from jaxrecipes.data.rows import Row
from jaxrecipes.data.sources import SourceSpec


def corpus(tmp_path, texts):
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"key": f"k{i}", "body": text}) + "\n" for i, text in enumerate(texts))
    )
    return SourceSpec(str(path), columns={"text": "body", "id": "key"})


def shown(renderable) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_the_preview_shows_format_mapping_lengths_duplicates_and_drops(tmp_path, tokenizer):
    texts = ["the cat sat", "another thing", "the cat sat", "", "on the mat " * 30]
    source = corpus(tmp_path, texts)
    preview = preview_source(source, tokenizer, vocab_size=300, length=24, overlong="split")
    text = shown(render_preview(preview, tokenizer, rows=9))
    for part in (
        "a.jsonl (jsonl, 1 file)",
        "{text: body, id: key}",
        "1 empty",
        "1 split: k4",
        "exact duplicates  1: k2",
        "[k0, tokens 0-",
        "over 24",
        "padding]",
    ):
        assert part in text, part
    assert preview.duplicates == 1
    assert preview.complete
    assert len(preview.lengths) == 4
    assert not preview_source(
        source, tokenizer, vocab_size=300, length=24, overlong="split", maximum_documents=2
    ).complete


def test_a_document_that_is_too_long_is_shown_and_not_raised(tmp_path, tokenizer):
    source = corpus(tmp_path, ["the mat " * 50])
    preview = preview_source(source, tokenizer, vocab_size=300, length=16)
    text = shown(render_preview(preview, tokenizer))
    assert "would stop here" in text and "'k0' has" in text


def test_colours_tell_targets_and_documents_apart(tokenizer):
    first, second = (tokenizer(text)["input_ids"] for text in ("the cat", "mat on"))
    row = Row(
        np.array([*first, *second], np.int32),
        np.array([[0, 0, len(first)], [1, 0, len(second)]]),
    )
    text = row_text(row, ["one", "two"], tokenizer, length=20, attend="document")
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert "strike" in styles[tokenizer.decode(first[:1])]
    assert styles[tokenizer.decode(first[1:])] == "cyan"
    assert styles[tokenizer.decode(second[1:])] == "green"
    assert f"[{20 - len(first) - len(second)} padding]" in text.plain


def test_control_characters_of_a_document_never_reach_the_terminal(tmp_path, tokenizer):
    assert printable("a\x1b[31m\x07\u202eb\nc") == "a␛[31m␇\N{REPLACEMENT CHARACTER}b\nc"
    source = corpus(tmp_path, ["red \x1b[31m text [bold]not markup[/bold]"])
    preview = preview_source(source, tokenizer, vocab_size=300, length=64)
    text = shown(render_preview(preview, tokenizer))
    assert "\x1b" not in text
    assert "[bold]not markup[/bold]" in text
