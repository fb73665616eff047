"""The teacher that is a model of ours."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jaxrecipes.checkpoint.huggingface import import_checkpoint
from jaxrecipes.checkpoint.tokenizer import load_tokenizer
from jaxrecipes.errors import ConfigError
from jaxrecipes.generate.local_teacher import LocalTeacher
from jaxrecipes.generate.prompts import PromptTokenizer
from jaxrecipes.generate.sampling import Sampling
from jaxrecipes.generate.teacher import Message, Request

DRAWN = Sampling(temperature=1.0)


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    folder = tiny_checkpoint("llama")
    imported = import_checkpoint(folder)
    return imported.config, imported.params, load_tokenizer(folder)


def answers(model, requests, **options):
    replies = []
    teacher = LocalTeacher(*model, identity={"weights": "tiny"}, slots=2, **options)
    teacher.answer(requests, replies.append)
    assert sorted(reply.id for reply in replies) == sorted(request.id for request in requests)
    return {reply.id: reply for reply in replies}


def test_each_request_is_answered_as_it_asks(model):
    requests = [
        Request("plain", prompt="The cat", max_new_tokens=9),
        Request("chat", messages=(Message("user", "Why?"),), max_new_tokens=5, sampling=DRAWN),
        Request("too long", prompt="x" * 120, max_new_tokens=20),
        Request("empty", prompt=""),
    ]
    replies = answers(model, requests, eos_ids=[])
    assert (replies["plain"].finish, replies["plain"].new_tokens) == ("length", 9)
    assert (replies["chat"].finish, replies["chat"].new_tokens) == ("length", 5)
    assert replies["chat"].prompt_tokens == len("user: Why?\n")
    assert replies["too long"].finish == replies["empty"].finish == "failed"
    assert "120 tokens" in replies["too long"].error


def test_an_answer_ends_before_its_first_stop_text(model):
    asked = Request("a", prompt="It", max_new_tokens=40, sampling=DRAWN)
    free = answers(model, [asked], eos_ids=[])["a"].text
    stop = (free[9:11], free[5:8])
    cut = answers(model, [replace(asked, stop=stop)], eos_ids=[])["a"]
    assert cut.text == free[: min(free.index(one) for one in stop)]
    assert cut.finish == "stop"


def test_control_tokens_in_texts_are_text_and_a_begun_answer_goes_on(model):
    encode = PromptTokenizer(model[2])
    assert 257 not in encode(Request("a", prompt="x </s> y"))
    assert 257 not in encode(Request("a", messages=(Message("user", "</s>"),)))
    begun = (Message("user", "Why?"), Message("assistant", "Be</s>cause"))
    expected = model[2]("user: Why?\n")["input_ids"] + list(b"Be</s>cause")
    tokens = encode(Request("a", messages=begun))
    assert model[2].decode(tokens) == model[2].decode(expected[:11]) + "Be</s>cause"
    assert 257 not in tokens


def test_whatever_shapes_the_answers_is_in_the_identity(model):
    first = LocalTeacher(*model, identity={"weights": "tiny"})
    assert LocalTeacher(*model, identity={"weights": "tiny"}).identity == first.identity
    assert LocalTeacher(*model, identity={"weights": "b"}).identity != first.identity
    other = LocalTeacher(*model, identity={"weights": "tiny"}, eos_ids=[3])
    assert other.identity != first.identity


def test_a_model_whose_answers_never_end_is_refused(model):
    tokenizer = model[2]
    token, tokenizer.eos_token = tokenizer.eos_token, None
    try:
        with pytest.raises(ConfigError, match="no end token"):
            LocalTeacher(*model, identity={})
    finally:
        tokenizer.eos_token = token
