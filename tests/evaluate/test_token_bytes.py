from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jaxrecipes.evaluate.token_bytes import token_byte_lengths

TEXTS = [
    "Plain words, twice: plain words.",
    "Zürich – naïve café €5",
    "日本語 and 한국어 🙂\n\ttabs",
]


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def with_byte_fallback() -> PreTrainedTokenizerFast:
    letters = sorted(set("".join(TEXTS).replace(" ", "\u2581")) - set("🙂日\n\t"))
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    model = models.BPE(
        {name: index for index, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("make", [byte_level, with_byte_fallback])
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_tokens_add_up_to_bytes_of_text(make, text):
    tokenizer = make()
    lengths = token_byte_lengths(tokenizer, len(tokenizer) + 5)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert lengths[ids].sum() == len(text.encode())
    assert lengths[-5:].sum() == 0


def test_special_tokens_are_no_text():
    tokenizer = byte_level()
    lengths = token_byte_lengths(tokenizer, len(tokenizer))
    assert tokenizer.eos_token_id is not None
    assert lengths[tokenizer.eos_token_id] == 0
