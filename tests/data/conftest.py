"""A small byte-level tokenizer, built here so that no test needs a download."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


def build_tokenizer(*, add_bos: bool = False):
    """A BPE tokenizer over bytes with a few merges; ids: 0 eos, 1 bos, then the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>", "<|begin|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(["the cat sat on the mat", "another thing of the other kind"], trainer)
    if add_bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", bos_token="<|begin|>")
