"""Tasks: one prompt for training and asking, and what counts as right."""

from __future__ import annotations

import pytest

from jaxrecipes.checkpoint.random_model import byte_tokenizer
from jaxrecipes.data.examples import Completion
from jaxrecipes.data.sources import SourceSpec
from jaxrecipes.data.task_items import TaskItem, lettered, read_task_items
from jaxrecipes.data.tokenize_examples import ExampleTokenizer
from jaxrecipes.durable import write_json_lines
from jaxrecipes.errors import DataError
from jaxrecipes.evaluate.answer_tasks import TASKS, check_answers, task_of
from jaxrecipes.evaluate.duplicates import NearDuplicates
from jaxrecipes.evaluate.rouge import rouge_l
from jaxrecipes.generate.prompts import PromptTokenizer
from jaxrecipes.generate.teacher import Request

ITEMS = {
    "gsm8k": [TaskItem("0", "What is 2 + 3?", "2 + 3 = 5\n#### 5")],
    "casehold": [TaskItem("0", lettered("The court", ["holding that x", "holding that y"]), "B")],
    "snips": [TaskItem("0", "Play it", "PlayMusic"), TaskItem("1", "Rain?", "GetWeather")],
    "trec": [TaskItem("0", "Who is it?", "human"), TaskItem("1", "Where?", "location")],
    "sst2": [TaskItem("0", "a fine film", "positive"), TaskItem("1", "a bore", "negative")],
    "plain": [TaskItem("0", "add 2 3", "5"), TaskItem("1", "say no", "No")],
}
RIGHT = {
    "gsm8k": ["so #### 5", "#### 5.0\nQuestion: 7", "#### $5"],
    "casehold": ["B", " b.", "B. holding that y"],
    "snips": [" PlayMusic", "playmusic.", "PlayMusic\nNext"],
    "trec": ["Human"],
    "sst2": ["positive, since it is fine"],
    "plain": ["5", "5.0", " 5\nadd 3 4"],
}
WRONG = {
    "gsm8k": ["5", "#### -5", "#### 5 or 6", ""],
    "casehold": ["A", "BA", "both", "C. B"],
    "snips": ["PlayMusics", "Play Music", "GetWeather"],
    "trec": ["humane", "location"],
    "sst2": ["negative", "not positive"],
    "plain": ["5 apples", "-5", "", "51"],
}


@pytest.mark.parametrize("name", TASKS)
def test_what_is_right(name):
    task = task_of(name, ITEMS[name])
    answer = ITEMS[name][0].answer
    assert task.is_right(task.read(answer), answer)
    for text in RIGHT[name]:
        assert task.is_right(task.read(text), answer), text
    for text in WRONG[name]:
        assert not task.is_right(task.read(text), answer), text
    texts = [RIGHT[name][0], WRONG[name][0]]
    assert not task.majority_is_right(texts, answer)
    assert task.majority_is_right([*texts, RIGHT[name][0]], answer)


@pytest.mark.parametrize("name", TASKS)
def test_a_student_is_asked_with_the_tokens_it_was_trained_on(name):
    task = task_of(name, ITEMS[name])
    tokenizer = byte_tokenizer(512)
    encode = ExampleTokenizer(tokenizer, vocab_size=258)
    for item in ITEMS[name]:
        row = task.row(item.id, item.question, item.answer)
        trained = encode(Completion(row["id"], "here", row["prompt"], row["completion"]))
        asked = PromptTokenizer(tokenizer)(Request("0", prompt=task.prompt(item.question)))
        assert trained.token_ids[: len(asked)].tolist() == asked
        assert trained.supervised is not None
        # The answer and the end token, and nothing else, is learned.
        assert not trained.supervised[: len(asked)].any() and trained.supervised[len(asked) :].all()
        assert tokenizer.decode(trained.token_ids[len(asked) : -1]) == f" {item.answer}"
        assert trained.token_ids[-1] == tokenizer.eos_token_id
    chat = task_of(name, ITEMS[name], form="chat", instruction="Mind.")
    messages = chat.row("0", "Q", "A")["messages"]
    assert messages[0]["content"] == chat.prompt("Q") == "Mind.\n\nQ"
    assert messages[1] == {"role": "assistant", "content": "A"}


def test_answers_that_cannot_be_compared_are_refused():
    with pytest.raises(DataError, match="ends with #### and one number"):
        task_of("gsm8k", [TaskItem("0", "What?", "five", "f.jsonl:3")])
    with pytest.raises(DataError, match="at least two"):
        task_of("trec", ITEMS["trec"][:1])
    with pytest.raises(DataError, match="one of human, location"):
        check_answers(task_of("trec", ITEMS["trec"]), [TaskItem("9", "?", "number")])


def test_a_choice_has_to_be_among_the_choices():
    task = task_of("casehold", ITEMS["casehold"])
    question = ITEMS["casehold"][0].question
    assert task.fits(question, "B") and not task.fits(question, "C")
    assert not task.fits("The court", "A") and not task.fits("A. one\nC. three", "C")


def test_items_of_every_layout_and_what_is_wrong_with_rows(tmp_path):
    path = tmp_path / "rows.jsonl"

    def read(layout, *rows, **columns):
        write_json_lines(path, rows)
        return read_task_items(SourceSpec(str(path), columns=columns), layout)

    item = read("question_answer", {"id": 7, "question": " Q ", "answer": "A"})[0]
    assert (item.id, item.question, item.answer) == ("7", "Q", "A")
    assert read("question_answer", {"q": "Q", "answer": "A"}, prompt="q")[0].question == "Q"
    assert read("label", {"text": "t", "label": 3})[0].answer == "3"
    chosen = read("choices", {"context": "c", "choices": ["x", "y"], "answer": 1})[0]
    assert (chosen.question, chosen.answer) == ("c\nA. x\nB. y", "B")
    for layout, row, words in (
        ("question_answer", {"question": "Q"}, "no column answer or completion"),
        ("question_answer", {"question": "", "answer": "A"}, "not empty"),
        ("label", {"text": "t", "label": 1.5}, "a text or a whole number"),
        ("choices", {"context": "c", "choices": ["x"], "answer": 0}, "a list of 2 to"),
        ("choices", {"context": "c", "choices": ["x", "y"], "answer": 2}, "from 0 to 1"),
    ):
        with pytest.raises(DataError, match=words):
            read(layout, row)
    with pytest.raises(DataError, match="unique ids"):
        read("label", {"id": "a", "text": "t", "label": 1}, {"id": "a", "text": "u", "label": 1})
    write_json_lines(path, [{"text": f"t{n}", "label": n % 2} for n in range(9)])
    some = read_task_items(SourceSpec(str(path)), "label", limit=4)
    every = read_task_items(SourceSpec(str(path)), "label")
    assert len(some) == 4 and set(some) < set(every)
    assert read_task_items(SourceSpec(str(path)), "label", limit=4, seed=1) != some


def test_near_duplicates_are_those_of_rouge_l():
    texts = ["the cat sat on the mat", "what is two plus three", "who was the first man there"]
    new = [
        "The cat sat on the mat!",
        "the cat sat on a mat",
        "on the mat the cat sat",
        "what is two plus four",
        "no",
    ]
    for threshold in (0.3, 0.5, 0.8, 0.95):
        known = NearDuplicates(threshold, texts)
        for text in new:
            close = [other for other in texts if rouge_l(text, other).f1 > threshold]
            assert (known.find(text) is not None) == bool(close), (threshold, text)
            assert known.find(text) in [None, *close]
    known = NearDuplicates(0.8, ["我喜欢北京烤鸭"])
    assert known.find("我喜欢北京烤鸭。") and not known.find("今天天气很好")
    known.add("...")
    assert known.find("...") == "..." and known.find("!!!") is None
