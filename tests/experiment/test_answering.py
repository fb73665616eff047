"""The verb `generate`."""

from __future__ import annotations

import json

import pytest

from jaxrecipes.cli import main
from jaxrecipes.errors import DataError
from jaxrecipes.experiment.answering import read_prompt_file
from jaxrecipes.generate.teacher import Message


def test_a_killed_run_goes_on_where_it_was(tiny_checkpoint, tmp_path, capsys):
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    lines = [{"id": "x", "prompt": "Why?"}, {"messages": [{"role": "user", "content": "How?"}]}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["generate", str(tiny_checkpoint("llama")), "--input", str(prompts)]
    command += ["--output", str(answers), "--max-new-tokens", "5", "--temperature", "1"]
    command += ["--samples", "2", "--top-k", "40", "--slots", "2"]
    assert main(command) == 0
    whole = [json.loads(line) for line in answers.read_text().splitlines()]
    assert sorted(row["id"] for row in whole) == ["2#0", "2#1", "x#0", "x#1"]
    assert len({row["text"] for row in whole}) > 2
    kept = answers.read_bytes()[:-30]
    answers.write_bytes(kept)
    capsys.readouterr()
    assert main(command) == 0
    again = [json.loads(line) for line in answers.read_text().splitlines()]
    assert again == whole
    assert answers.read_bytes().startswith(kept)
    assert "has 3 of 4 answers" in " ".join(capsys.readouterr().out.split())
    # Other options are other answers, in the same file or another one.
    assert main([*command, "--seed", "1"]) == 0
    assert len(answers.read_text().splitlines()) == 8


def test_answers_are_printed_with_their_prompts(tiny_checkpoint, capsys):
    command = ["generate", str(tiny_checkpoint("llama")), "one", "two", "--max-new-tokens", "3"]
    assert main([*command, "--repetition-penalty", "1.2", "--stop", "###"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("> one") < printed.index("> two")
    assert main([*command, "--min-p", "2"]) == 2
    assert "min_p is 2.0" in capsys.readouterr().err
    assert main([*command[:-1], "4000"]) == 3
    assert "2 of 2 prompts could not be answered" in " ".join(capsys.readouterr().err.split())


def test_prompt_files(tmp_path):
    text = tmp_path / "prompts.txt"
    text.write_text("one\n\n two\r\n")
    assert read_prompt_file(text) == [("1", "one"), ("3", " two")]
    chat = tmp_path / "chat.jsonl"
    chat.write_text('{"id": 7, "messages": [{"role": "user", "content": "Hi"}]}\n')
    assert read_prompt_file(chat) == [("7", (Message("user", "Hi"),))]
    for bad in ('{"text": "x"}', "[1]", "{", '{"messages": [{"role": "boss", "content": "x"}]}'):
        chat.write_text('{"prompt": "fine"}\n' + bad)
        with pytest.raises(DataError, match=r"chat.jsonl:2: expected a JSON object"):
            read_prompt_file(chat)
