"""The tokenizer inside a GGUF file -> `tokenizer.json` and `tokenizer_config.json`.

A GGUF file has the vocabulary, the merges (or only scores), the kind of each token and the name of
the pre-tokenizer. The rest, how text is split before the merges apply, is knowledge about that
name; an unknown name is refused, because a wrong split gives other token ids without any error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from jaxrecipes.checkpoint.gguf import metadata, open_reader
from jaxrecipes.errors import CheckpointError

_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "\u2581"

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_REGEX_SPLITS = {
    "llama-bpe": _LLAMA3_SPLIT,
    "llama3": _LLAMA3_SPLIT,
    "llama-v3": _LLAMA3_SPLIT,
    "qwen2": _QWEN2_SPLIT,
    "deepseek-r1-qwen": _QWEN2_SPLIT,
    "tekken": _TEKKEN_SPLIT,
}
# Llama 3 looks a whole word up before it merges; its files all begin a text with BOS.
_WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3", "tekken")

_SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def write_gguf_tokenizer(path: Path, folder: Path) -> None:
    """Writes the tokenizer of a GGUF file in Hugging Face form.

    Args:
        path: The GGUF file.
        folder: An existing folder; receives `tokenizer.json`, `tokenizer_config.json` (with the
            chat template) and `generation_config.json`.

    Raises:
        CheckpointError: The file is damaged, has no tokenizer, or one of an unknown kind.
    """
    reader = open_reader(path)
    values = metadata(reader)
    tokens = _array(reader, path, "tokenizer.ggml.tokens")
    kinds = _array(reader, path, "tokenizer.ggml.token_type")
    model = values.get("tokenizer.ggml.model")
    special = _special_tokens(values, tokens)
    if model == "gpt2":
        tokenizer = _byte_level(reader, path, values, tokens)
    elif model == "llama":
        tokenizer = _sentencepiece(reader, path, values, tokens, special)
    else:
        raise CheckpointError(
            f"{path}: tokenizer.ggml.model is {model!r}; supported are 'gpt2' and 'llama'"
        )
    spelled = _respelled(tokens) if model == "llama" else tokens
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(spelled, kinds, strict=True)
            if kind == _CONTROL
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False, special=False)
            for token, kind in zip(spelled, kinds, strict=True)
            if kind == _USER_DEFINED
        ]
    )
    begins = values.get(
        "tokenizer.ggml.add_bos_token",
        model == "llama" or values.get("tokenizer.ggml.pre") in _WHOLE_WORDS_FIRST,
    )
    if begins and "bos_token" in special:
        _begin_with(tokenizer, special["bos_token"], values["tokenizer.ggml.bos_token_id"])
    if tokenizer.get_vocab_size(with_added_tokens=True) != len(tokens):
        raise CheckpointError(
            f"{path}: the rebuilt tokenizer has "
            f"{tokenizer.get_vocab_size(with_added_tokens=True)} tokens, the file lists "
            f"{len(tokens)}; its vocabulary has duplicates"
        )
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(begins),
        "model_max_length": _context_length(values),
        **special,
    }
    if "tokenizer.chat_template" in values:
        settings["chat_template"] = values["tokenizer.chat_template"]
    generation = {
        name: values[f"tokenizer.ggml.{key}"]
        for name, key in (
            ("bos_token_id", "bos_token_id"),
            ("eos_token_id", "eos_token_id"),
            ("pad_token_id", "padding_token_id"),
        )
        if f"tokenizer.ggml.{key}" in values
    }
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", settings)
    _write(folder / "generation_config.json", generation)


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _array(reader: GGUFReader, path: Path, name: str) -> list[Any]:
    field = reader.fields.get(name)
    if field is None:
        raise CheckpointError(
            f"{path}: metadata key {name} is missing; the file carries no usable tokenizer. Give a "
            f"Hugging Face folder as the tokenizer's source"
        )
    return field.contents()


def _special_tokens(values: dict[str, Any], tokens: list[str]) -> dict[str, str]:
    special: dict[str, str] = {}
    for name, key in _SPECIAL_TOKENS.items():
        token_id = values.get(f"tokenizer.ggml.{key}")
        if token_id is not None and 0 <= token_id < len(tokens):
            special[name] = tokens[token_id]
    return special


def _context_length(values: dict[str, Any]) -> int:
    return int(values.get(f"{values.get('general.architecture')}.context_length", 2**31 - 1))


def _byte_level(
    reader: GGUFReader, path: Path, values: dict[str, Any], tokens: list[str]
) -> Tokenizer:
    """Byte-level BPE: GPT-2's scheme with the split that the file's `pre` names."""
    pre = values.get("tokenizer.ggml.pre", "default")
    merges = [tuple(merge.split(" ", 1)) for merge in _array(reader, path, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=pre in _WHOLE_WORDS_FIRST,
        )
    )
    if pre in _REGEX_SPLITS:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_REGEX_SPLITS[pre]), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    elif pre == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif pre == "gpt-2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        supported = ", ".join([*_REGEX_SPLITS, "smollm", "gpt-2"])
        raise CheckpointError(
            f"{path}: tokenizer.ggml.pre is {pre!r}; supported are {supported}. Give a Hugging "
            f"Face folder as the tokenizer's source"
        )
    if pre in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _respelled(tokens: list[str]) -> list[str]:
    """Runs of blanks stand in Gemma's files as blanks; the model's vocabulary has U+2581."""
    return [
        _SPACE * len(token) if len(token) > 1 and not token.strip(" ") else token
        for token in tokens
    ]


def _sentencepiece(
    reader: GGUFReader,
    path: Path,
    values: dict[str, Any],
    tokens: list[str],
    special: dict[str, str],
) -> Tokenizer:
    """Sentencepiece BPE with byte fallback: Llama 2, Mistral and Gemma."""
    gemma = str(values.get("general.architecture")).startswith("gemma")
    tokens = _respelled(tokens)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if "tokenizer.ggml.merges" in reader.fields:
        merges = [
            tuple(merge.split(" ", 1)) for merge in _array(reader, path, "tokenizer.ggml.merges")
        ]
    elif gemma:
        # Gemma's scores do not follow the order of its merges; the order of its tokens does.
        merges = _merges(vocabulary, [-float(index) for index in range(len(tokens))])
    else:
        merges = _merges(vocabulary, _array(reader, path, "tokenizer.ggml.scores"))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=special.get("unk_token"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = values.get("tokenizer.ggml.add_space_prefix", not gemma)
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if gemma:
        tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=_SPACE, prepend_scheme="first" if prefix else "never", split=False
        )
    if prefix:
        steps.append(decoders.Strip(" ", left=1, right=0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Cuts every token into two tokens in every way that there is; the best token's cuts first."""
    found: list[tuple[float, int, int, int, int, str, str]] = []
    for token, index in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                order = (-scores[index], -len(left), -len(right))
                found.append((*order, vocabulary[left], vocabulary[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _begin_with(tokenizer: Tokenizer, token: str, token_id: int) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A",
        pair=f"{token} $A {token}:1 $B:1",
        special_tokens=[(token, token_id)],
    )
