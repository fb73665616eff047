"""Tiny random encoders as transformers writes them, and a word-piece tokenizer for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxrecipes.checkpoint.encoder import ImportedEncoder
from jaxrecipes.checkpoint.random_model import ENCODER_PRESETS
from jaxrecipes.checkpoint.tokenizer import load_tokenizer
from jaxrecipes.models.encoder import init_encoder_params

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "road", "fast", "slow", "and", "moon"]
SPECIAL = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
}
_COMMON: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "hidden_act": "gelu",
    "attn_implementation": "eager",
}
# One entry a kind of checkpoint.
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {**_COMMON, "model_type": "bert", "layer_norm_eps": 1e-12},
    "roberta": {
        **_COMMON,
        "model_type": "roberta",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 66,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    },
    "xlm-roberta": {
        **_COMMON,
        "model_type": "xlm-roberta",
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu_new",
        "max_position_embeddings": 70,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    },
    "bge-m3": {
        **_COMMON,
        "model_type": "xlm-roberta",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 8194,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    },
    # Narrow heads and few layers.
    "minilm": {
        **_COMMON,
        "model_type": "bert",
        "layer_norm_eps": 1e-12,
        "hidden_size": 24,
        "num_attention_heads": 6,
        "num_hidden_layers": 6,
        "intermediate_size": 96,
    },
    "contriever": {
        **_COMMON,
        "model_type": "bert",
        "layer_norm_eps": 1e-12,
        "hidden_act": "relu",
        "pooler_type": "first_token_transform",
    },
}


def write_encoder(folder: Path, kind: str, *, head: bool = False) -> Path:
    """Writes a tiny encoder with noise in every tensor; with `head` as a masked language model."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    config = AutoConfig.for_model(**ENCODERS[kind])
    torch.manual_seed(len(kind))
    make = AutoModelForMaskedLM if head else AutoModel
    model = make.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms and biases too, so that a dropped or swapped one shows.
            scale = 0.3 if parameter.ndim == 1 else 0.15
            offset = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            parameter.copy_(offset + scale * torch.randn_like(parameter))
    model.save_pretrained(folder)
    write_word_tokenizer(folder, "bert" if config.model_type == "bert" else "roberta")
    return folder


def tiny_encoder(folder: Path, *, seed: int = 0) -> ImportedEncoder:
    """Makes a small BERT in memory, without torch; its tokenizer is read from a folder."""
    config = replace(
        ENCODER_PRESETS["tiny-bert"], vocab_size=60, max_position_embeddings=64, pad_token_id=0
    )
    leaves, structure = jax.tree.flatten(init_encoder_params(config, jax.random.key(seed)))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [
        leaf + 0.15 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_word_tokenizer(folder, "bert")
    return ImportedEncoder(
        config=config,
        params=jax.tree.unflatten(structure, noisy),
        tokenizer=load_tokenizer(folder),
        pooling="mean",
        normalize=True,
        max_tokens=64,
        prompts={},
        default_prompt="",
        source=folder,
        fingerprint=f"tiny {seed}",
        unused=(),
    )


def write_word_tokenizer(folder: Path, style: str) -> None:
    """Writes a tokenizer of words and letters with the special tokens of a family."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = [mark + chr(97 + index) for index in range(10) for mark in ("", "##")]
    special = SPECIAL[style]
    vocabulary = {token: index for index, token in enumerate([*special, *WORDS, *letters])}
    unknown = "[UNK]" if style == "bert" else "<unk>"
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    first, last = ("[CLS]", "[SEP]") if style == "bert" else ("<s>", "</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "cls_token": first,
        "sep_token": last,
        "pad_token": special[0] if style == "bert" else "<pad>",
        "unk_token": unknown,
        "mask_token": special[4],
        "model_max_length": 64,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def add_sentence_files(folder: Path, **changes: Any) -> None:
    """Makes a folder a sentence-transformers folder; `changes` replaces the content of a file."""
    library = "sentence_transformers.models."
    files = {
        "modules": [
            {"idx": 0, "name": "0", "path": "", "type": library + "Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": library + "Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": library + "Normalize"},
        ],
        "pooling": {"word_embedding_dimension": 32, "pooling_mode_cls_token": True},
        "transformer": {"max_seq_length": 16, "do_lower_case": False},
        "sentences": {"prompts": {"query": "the cat"}, "default_prompt_name": None},
        **changes,
    }
    (folder / "1_Pooling").mkdir(exist_ok=True)
    names = {
        "modules": "modules.json",
        "pooling": "1_Pooling/config.json",
        "transformer": "sentence_bert_config.json",
        "sentences": "config_sentence_transformers.json",
    }
    for part, name in names.items():
        (folder / name).write_text(json.dumps(files[part]), encoding="utf-8")
