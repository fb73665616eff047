"""What is supervised of a conversation, for twelve templates in the structure of public ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.data.chat_template import ChatTemplate, chat_template_of, read_chat_template
from jaxrecipes.data.examples import Completion, Conversation
from jaxrecipes.data.marks import marking_tokenizer
from jaxrecipes.data.render import LEFT_OUT, render_conversation
from jaxrecipes.data.tokenize_examples import ExampleTokenizer, tokenize_prompt
from jaxrecipes.errors import ConfigError, DataError
from tests.data.chat_templates import CASES, CHATML, IM_TOKENS, THINKING, Case, build_tokenizer

TOKENIZERS = {name: build_tokenizer(case) for name, case in CASES.items()}
WEATHER = [
    {"role": "user", "content": "Is it warm?"},
    {"role": "assistant", "content": "It is."},
    {"role": "user", "content": "And tomorrow?"},
    {"role": "assistant", "content": "Cold,\n\nI fear."},
]


def chat(*contents: str, system: str | None = None, **options: Any) -> Conversation:
    """A conversation in which user and assistant alternate."""
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(contents)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return Conversation("c", "chats.jsonl:7", tuple(messages), **options)


def supervised(tokenizer: Any, conversation: Any, **options: Any) -> list[str]:
    """The decoded runs of supervised tokens."""
    document = ExampleTokenizer(tokenizer, vocab_size=len(tokenizer), **options)(conversation)
    targets = np.flatnonzero(document.supervised)
    runs = np.split(document.token_ids[targets], np.flatnonzero(np.diff(targets) > 1) + 1)
    return [tokenizer.decode(run.tolist(), skip_special_tokens=False) for run in runs]


def expected(case: Case, contents: list[str]) -> list[str]:
    last = len(contents) - 1
    return [case.answer(text, at == last) for at, text in enumerate(contents) if at % 2]


def with_template(template: str, special: tuple[str, ...] = IM_TOKENS) -> Any:
    return build_tokenizer(Case(template, special, lambda text, last: text))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_supervised_tokens_are_the_assistants_turns_with_their_end_token(name, system):
    contents = [message["content"] for message in WEATHER]
    found = supervised(TOKENIZERS[name], chat(*contents, system=system))
    assert found == expected(CASES[name], contents)
    last = supervised(TOKENIZERS[name], chat(*contents, system=system), turns="last")
    assert last == expected(CASES[name], contents)[-1:]


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_the_tokenizers_own_template_behind_one_bos(name):
    tokenizer, case = TOKENIZERS[name], CASES[name]
    document = ExampleTokenizer(tokenizer, vocab_size=len(tokenizer))(
        chat(*(message["content"] for message in WEATHER))
    )
    own = tokenizer.apply_chat_template(WEATHER, tokenize=True)["input_ids"]
    begin = tokenizer.bos_token_id
    if case.adds_begin and own[0] != begin:
        own = [begin, *own]
    assert document.token_ids.tolist() == own
    assert begin is None or document.token_ids[:2].tolist().count(begin) == 1
    text = tokenizer.apply_chat_template(WEATHER, tokenize=False)
    assert document.byte_count == len(text.encode())


def test_the_mask_is_the_renderers_own_where_the_template_has_blocks():
    tokenizer = TOKENIZERS["generation"]
    document = ExampleTokenizer(tokenizer, vocab_size=len(tokenizer))(chat("a", "b", "c", "d"))
    messages = list(chat("a", "b", "c", "d").messages)
    own = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True)
    assert own["input_ids"] == document.token_ids.tolist()
    mask = np.array(own["assistant_masks"], bool)
    # The block of this template holds the line break after the end token, which no model writes.
    breaks = [t == "Ċ" for t in tokenizer.convert_ids_to_tokens(document.token_ids.tolist())]
    assert (mask & ~document.supervised).tolist() == [
        bool(masked and is_break) for masked, is_break in zip(mask, breaks, strict=True)
    ]
    assert not (document.supervised & ~mask).any()


SPELLED = sorted(
    {token for case in CASES.values() for token in case.special}
    | {"[INST]", "[/INST]", " USER: ", "ASSISTANT:", "<|user|>\n", "<<SYS>>", "\ue000", "\ue001"}
)
WORDS = st.one_of(
    st.sampled_from([*SPELLED, "\n", "\n\n", " ", "  ", "the", " cat", "é", "👩‍👩‍👧", "\u200b"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=4),
)
# A template decides by the words for thoughts what it writes; it is tested on its own below.
CONTENTS = st.lists(WORDS, max_size=5).map("".join).filter(lambda text: "think>" not in text)


@pytest.mark.parametrize("name", CASES)
@given(contents=st.lists(CONTENTS, min_size=2, max_size=5))
@settings(max_examples=40, deadline=None)
def test_any_content_also_one_that_spells_out_the_markers(name, contents):
    tokenizer, case = TOKENIZERS[name], CASES[name]
    contents = contents[: len(contents) // 2 * 2]
    assert supervised(tokenizer, chat(*contents)) == expected(case, contents)
    document = ExampleTokenizer(tokenizer, vocab_size=len(tokenizer))(chat(*contents))
    ids = document.token_ids.tolist()
    messages = list(chat(*contents).messages)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    prefix = case.begin if case.adds_begin and not text.startswith(str(case.begin)) else ""
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"{prefix}{text}"
    # Control tokens are those that the template writes around empty words, and no others.
    plain = tokenizer.apply_chat_template([{**m, "content": "x"} for m in messages])["input_ids"]
    special = set(tokenizer.all_special_ids)
    wanted = [token for token in plain if token in special]
    assert [token for token in ids if token in special][bool(prefix) :] == wanted


def test_a_turn_begins_where_the_prompt_of_a_model_ends():
    """Also where a tokenizer would join the two: they are kept apart, as they are in use."""
    tokenizer = TOKENIZERS["chatml"]
    assert "ĊĊ" in tokenizer.get_vocab()
    document = ExampleTokenizer(tokenizer, vocab_size=len(tokenizer))(chat("a", "\nb"))
    tokens = tokenizer.convert_ids_to_tokens(document.token_ids.tolist())
    first = int(np.flatnonzero(document.supervised)[0])
    assert tokens[first - 1 : first + 2] == ["Ċ", "Ċ", "b"]


@pytest.mark.parametrize("name", CASES)
def test_a_prompt_is_the_beginning_of_the_example_that_answers_it(name):
    """One function renders what is learned and what is answered; both have one BOS."""
    tokenizer = TOKENIZERS[name]
    asked = "Is <s> <|im_end|> warm?"
    prompt = tokenize_prompt([{"role": "user", "content": asked}], tokenizer)
    document = ExampleTokenizer(tokenizer, vocab_size=len(tokenizer))(chat(asked, "Yes"))
    before = document.token_ids[: document.supervised.tolist().index(True)].tolist()
    # A tokenizer may cut the line breaks before an answer in another way than those at the end.
    assert tokenizer.decode(prompt) == tokenizer.decode(before)
    special = set(tokenizer.all_special_ids)
    assert [one for one in prompt if one in special] == [one for one in before if one in special]


def test_only_the_completion_of_a_conversational_prompt():
    tokenizer = TOKENIZERS["chatml"]
    assert supervised(tokenizer, chat("a", "b", "c", "d", first_supervised=2)) == ["d<|im_end|>"]


@pytest.mark.parametrize(
    ("prompt", "completion"), [("Two and two:", " 4"), ("x ", "y"), ("", "a"), ("<|im", "_end|>b")]
)
def test_a_completion_is_supervised_with_the_end_of_text(prompt, completion):
    tokenizer = TOKENIZERS["chatml"]
    example = Completion("c", "f:1", prompt, completion)
    found = supervised(tokenizer, example)
    assert found == [completion + tokenizer.eos_token]
    ids = ExampleTokenizer(tokenizer, vocab_size=len(tokenizer))(example).token_ids.tolist()
    assert tokenizer.decode(ids) == prompt + completion + tokenizer.eos_token
    assert sum(token in tokenizer.all_special_ids for token in ids) == 1


def test_a_template_without_end_tokens_gets_one_at_the_end():
    plain = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    prompted = plain + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    wanted = ["b\n", "d\n<|im_start|>"]  # the case's end of sequence
    assert supervised(with_template(prompted), chat("a", "b", "c", "d")) == wanted
    # Without a generation prompt the header is still none of the assistant's words.
    assert supervised(with_template(plain), chat("a", "b", "c", "d")) == wanted


def test_thoughts_are_learned_where_the_template_writes_them_and_refused_where_it_drops_them():
    tokenizer = with_template(THINKING)
    thought = "<think>\nhm\n</think>\n\nd"
    assert supervised(tokenizer, chat("a", "b", "c", thought)) == [
        "b<|im_end|>",
        thought + "<|im_end|>",
    ]
    conversation = chat("a", "<think>\nhm\n</think>\n\nb", "c", "d")
    with pytest.raises(DataError, match=r"chats.jsonl:7: example 'c': message 1") as caught:
        supervised(tokenizer, conversation)
    assert "turns: last" in str(caught.value)
    assert supervised(tokenizer, conversation, turns="last") == [
        "<think>\n\n</think>\n\nd<|im_end|>"
    ]


def test_a_part_that_the_template_leaves_out_is_noted():
    cut = CHATML.replace("message['content'] +", "message['content'].split('</t>')[-1] +")
    tokenizer = with_template(cut)
    example = ExampleTokenizer(tokenizer, vocab_size=len(tokenizer))
    assert example(chat("a", "hm</t>b")).changes == (LEFT_OUT,)
    assert supervised(tokenizer, chat("a", "hm</t>b")) == ["b<|im_end|>"]
    assert example(chat("a", "b")).changes == ()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("message['content'] | upper", "rewrites what it says"),
        ("message['content'] + message['content']", "rewrites or leaves out"),
        ("'secret'", "rewrites or leaves out"),
        ("message['content'].replace('b', 'x')", "rewrites what it says"),
    ],
)
def test_a_template_that_changes_the_words_is_refused(content, reason):
    template = CHATML.replace("message['content']", f"({content})")
    with pytest.raises(DataError, match=reason) as caught:
        supervised(with_template(template), chat("a", "bcd", "e", "fgh"))
    assert "generation" in str(caught.value) and "message 1 (assistant)" in str(caught.value)


def test_what_the_template_itself_refuses_is_said_with_the_row():
    with pytest.raises(DataError, match=r"chats.jsonl:7: example 'c': .*Roles must alternate"):
        supervised(TOKENIZERS["llama2"], Conversation("c", "chats.jsonl:7", (WEATHER[1],)))


def test_a_block_without_the_end_token_is_closed_and_a_missing_block_is_an_error():
    short = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    )
    contents = ["a", "b", "c", "d"]
    assert supervised(with_template(short), chat(*contents)) == ["b<|im_end|>", "d<|im_end|>"]
    last_only = short.replace("m.role == 'assistant'", "loop.last")
    with pytest.raises(DataError, match="none around this turn"):
        supervised(with_template(last_only), chat(*contents))
    assert supervised(with_template(last_only), chat(*contents), turns="last") == ["d<|im_end|>"]


def test_tool_calls_are_supervised_and_their_results_are_not():
    template = (
        "{% if tools %}{{ '<|im_start|>tools\\n' + tools[0].name + '<|im_end|>\\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}"
        "{% for call in m.tool_calls or [] %}{{ '<call>' + call.function.name + '</call>' }}"
        "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    call = {"type": "function", "function": {"name": "look<|im_end|>", "arguments": {}}}
    messages = (
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "warm"},
        {"role": "assistant", "content": "Warm."},
    )
    tokenizer = with_template(template)
    conversation = Conversation("c", "f:1", messages, tools=({"name": "look"},))
    assert supervised(tokenizer, conversation) == [
        "<call>look<|im_end|></call><|im_end|>",
        "Warm.<|im_end|>",
    ]
    assert "tools\nlook" in tokenizer.apply_chat_template(
        list(messages), tools=[{"name": "look"}], tokenize=False
    )


def test_rendering_is_that_of_transformers_and_sandboxed():
    tokenizer = TOKENIZERS["llama3"]
    template = chat_template_of(tokenizer)
    assert template.render(WEATHER) == tokenizer.apply_chat_template(WEATHER, tokenize=False)
    escape = ChatTemplate("{{ messages.__class__.__mro__ }}", {})
    with pytest.raises(DataError, match="cannot render"):
        escape.render(WEATHER)
    marks = marking_tokenizer(tokenizer)
    rendered = render_conversation(chat("a", "b"), template, marks)
    assert rendered.shown == template.render(chat("a", "b").messages)


def test_templates_are_read_from_a_file_or_as_they_are(tmp_path):
    (tmp_path / "t.jinja").write_text(CHATML)
    assert read_chat_template(str(tmp_path / "t.jinja")) == CHATML == read_chat_template(CHATML)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_chat_template(str(tmp_path / "none.jinja"))
    with pytest.raises(ConfigError, match="line 1 of the chat template is not valid Jinja"):
        read_chat_template("{% for x in messages %}{{ x }}")
