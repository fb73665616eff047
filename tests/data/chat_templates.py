"""Twelve chat templates, written here in the structure of public ones, each with its expectation.

`answer` says how an assistant's turn has to look in the supervised tokens: a function of its
content, whether it is the last message, and the position among the assistant turns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
QWEN = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PHI = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}"
    "{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n"
    "{% if message['role'] == 'user' %}\n{{ '<|user|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
DEEPSEEK = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
    "{% endif %}{% set ns = namespace(system='') %}"
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{% set ns.system = message['content'] %}{% endif %}{% endfor %}"
    "{{ bos_token }}{{ ns.system }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{{ messages[0]['content'] }}"
    "{% else %}{% set loop_messages = messages %}"
    "{{ 'A chat between a curious user and an artificial intelligence assistant.' }}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if message['role'] == 'user' %}{{ ' USER: ' + message['content'] | trim }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ASSISTANT: ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
GENERATION = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' + '\\n' }}{% endgeneration %}"
    "{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Thoughts of earlier turns are left out, the last turn always has a place for them.
THINKING = (
    "{% set ns = namespace(last=-1) %}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{% set content = message['content'] %}"
    "{% if message['role'] == 'assistant' %}{% set thoughts = '' %}"
    "{% if '</think>' in content %}"
    "{% set thoughts = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{% if loop.index0 > ns.last %}"
    "{{ '<|im_start|>assistant\\n<think>\\n' + thoughts + '\\n</think>\\n\\n' + content }}"
    "{% else %}{{ '<|im_start|>assistant\\n' + content }}{% endif %}{{ '<|im_end|>\\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

IM_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Case:
    """A template with the tokenizer it belongs to.

    Attributes:
        template: Jinja.
        special: Special tokens; end of sequence first.
        begin: The BOS; None where the tokenizer has none.
        adds_begin: The tokenizer puts the BOS in front of any text.
        answer: (content, is it the last message) -> what has to be supervised.
        alternates: Users and assistants have to alternate.
    """

    template: str
    special: tuple[str, ...]
    answer: Callable[[str, bool], str]
    begin: str | None = None
    adds_begin: bool = False
    alternates: bool = False


CASES: dict[str, Case] = {
    "chatml": Case(CHATML, IM_TOKENS, lambda text, last: text + "<|im_end|>"),
    "llama3": Case(
        LLAMA3,
        ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>"),
        lambda text, last: text.strip() + "<|eot_id|>",
        begin="<|begin_of_text|>",
        adds_begin=True,
    ),
    "llama2": Case(
        LLAMA2,
        ("</s>", "<s>"),
        lambda text, last: f" {text.strip()} </s>",
        begin="<s>",
        adds_begin=True,
        alternates=True,
    ),
    "mistral": Case(
        MISTRAL,
        ("</s>", "<s>", "[INST]", "[/INST]"),
        lambda text, last: text + "</s>",
        begin="<s>",
        adds_begin=True,
    ),
    "gemma": Case(
        GEMMA,
        ("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        lambda text, last: text.strip() + "<end_of_turn>",
        begin="<bos>",
        adds_begin=True,
    ),
    "qwen": Case(QWEN, IM_TOKENS[::-1], lambda text, last: text + "<|im_end|>"),
    "phi": Case(
        PHI,
        ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
        lambda text, last: text + "<|end|>",
    ),
    "zephyr": Case(
        ZEPHYR,
        ("</s>", "<s>"),
        lambda text, last: text + "</s>",
        begin="<s>",
        adds_begin=True,
    ),
    "deepseek": Case(
        DEEPSEEK,
        ("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        lambda text, last: text + "<｜end▁of▁sentence｜>",
        begin="<｜begin▁of▁sentence｜>",
        adds_begin=True,
    ),
    "vicuna": Case(
        VICUNA,
        ("</s>", "<s>"),
        lambda text, last: " " + text.strip() + "</s>",
        begin="<s>",
        adds_begin=True,
    ),
    "generation": Case(GENERATION, IM_TOKENS, lambda text, last: text + "<|im_end|>"),
    "thinking": Case(
        THINKING,
        IM_TOKENS,
        lambda text, last: ("<think>\n\n</think>\n\n" if last else "") + text + "<|im_end|>",
    ),
}


def build_tokenizer(case: Case, *, merges: bool = True) -> Any:
    """A byte-level BPE tokenizer that splits text as GPT-2's does, with the case's tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=(340 if merges else 256) + len(case.special),
        special_tokens=list(case.special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Line breaks and blanks that merge are what makes the borders of turns hard.
    texts = ["a\n\nb\n\n\nc  d   e", "the cat sat on the mat", "ASSISTANT: USER: [INST] <|im_end|>"]
    raw.train_from_iterator(texts * 3, trainer)
    post: list[Any] = [processors.ByteLevel(trim_offsets=True)]
    if case.adds_begin and case.begin is not None:
        post.append(
            processors.TemplateProcessing(
                single=f"{case.begin} $A",
                special_tokens=[(case.begin, raw.token_to_id(case.begin))],
            )
        )
    raw.post_processor = processors.Sequence(post)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=case.special[0],
        bos_token=case.begin,
        extra_special_tokens=list(case.special),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = case.template
    return tokenizer
