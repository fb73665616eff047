from __future__ import annotations

import numpy as np
import pytest

from jaxrecipes.checkpoint.huggingface import import_checkpoint
from jaxrecipes.checkpoint.tokenizer import load_tokenizer
from jaxrecipes.errors import CheckpointError
from jaxrecipes.generate.answers import render_prompt, write_answers
from jaxrecipes.generate.sampling import Sampling

PROMPTS = {"one": "Hello!", "two": "How do bees make honey?", "three": "Why?"}


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    folder = tiny_checkpoint("llama")
    imported = import_checkpoint(folder)
    return imported.config, imported.params, load_tokenizer(folder)


def write(model, prompts=PROMPTS, **options):
    options = {"max_new_tokens": 8, "sampling": Sampling(temperature=1.0), "seed": 4, **options}
    return write_answers(*model, prompts, **options)


def test_prompts_are_rendered_with_the_chat_template(model):
    tokenizer = model[2]
    rendered = render_prompt(tokenizer, "Hello!")
    assert tokenizer.decode(rendered) == "user: Hello!\n"
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        assert tokenizer.decode(render_prompt(tokenizer, "Hello!")) == "Hello!"
    finally:
        tokenizer.chat_template = template


def test_a_template_with_a_date_gives_the_same_tokens_every_day(model):
    tokenizer = model[2]
    template = tokenizer.chat_template
    tokenizer.chat_template = "{{ date_string }} {{ messages[0]['content'] }}"
    try:
        assert tokenizer.decode(render_prompt(tokenizer, "Hello!")) == "26 Jul 2024 Hello!"
    finally:
        tokenizer.chat_template = template


def test_the_mask_is_true_on_the_answer_only(model):
    answers = write(model)
    assert [answer.id for answer in answers] == list(PROMPTS)
    for answer in answers:
        assert answer.prompt == PROMPTS[answer.id]
        assert 1 <= len(answer.answer_ids) <= 8
        assert answer.token_ids[answer.loss_mask].tolist() == list(answer.answer_ids)
        assert answer.token_ids[~answer.loss_mask].tolist() == render_prompt(
            model[2], answer.prompt
        )
        assert answer.token_ids.dtype == np.int32


def test_an_answer_does_not_depend_on_the_other_prompts(model):
    together = write(model)
    assert write(model) == together
    assert write(model, {"three": PROMPTS["three"]}) == together[2:]
    assert write(model, seed=5) != together


def test_answers_end_with_the_tokenizers_end_token(model):
    end = write(model, max_new_tokens=4)[0].answer_ids[1]
    short = write(model, max_new_tokens=4, eos_ids=[end])[0]
    assert short.answer_ids[-1] == end
    assert len(short.answer_ids) <= 2
    tokenizer = model[2]
    token, tokenizer.eos_token = tokenizer.eos_token, None
    try:
        with pytest.raises(CheckpointError, match="no end token"):
            write(model)
    finally:
        tokenizer.eos_token = token
