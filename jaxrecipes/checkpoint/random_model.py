"""Small models with random weights and a byte tokenizer: to try the plumbing, never for results."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from jaxrecipes.checkpoint.encoder import ImportedEncoder
from jaxrecipes.checkpoint.export_encoder import export_encoder
from jaxrecipes.checkpoint.export_model import export_checkpoint
from jaxrecipes.errors import ConfigError
from jaxrecipes.models.config import FULL_ATTENTION, ModelConfig
from jaxrecipes.models.decoder import init_params
from jaxrecipes.models.encoder import init_encoder_params
from jaxrecipes.models.encoder_config import EncoderConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
PRESETS = {
    "tiny-llama": ModelConfig(
        family="llama",
        vocab_size=258,
        hidden_size=64,
        intermediate_size=176,
        num_layers=6,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_position_embeddings=2048,
        layer_types=(FULL_ATTENTION,) * 6,
        query_scale=16**-0.5,
    )
}

_TINY_BERT = EncoderConfig(
    family="bert",
    vocab_size=258,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=2,
    max_position_embeddings=256,
    type_vocab_size=2,
    norm_epsilon=1e-12,
    activation="gelu",
    position_offset=0,
    pad_token_id=257,
)
# The masked one has a mask token, and the special tokens that encoders have around a text.
ENCODER_PRESETS = {
    "tiny-bert": _TINY_BERT,
    "tiny-masked-bert": replace(_TINY_BERT, vocab_size=261, pad_token_id=256),
}
MASKED_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_random_model(folder: Path, preset: str, *, seed: int) -> None:
    """Writes a Hugging Face folder with random weights and a tokenizer of single bytes.

    Args:
        folder: Where to.
        preset: A key of `PRESETS`.
        seed: Seed of the weights.
    """
    config = PRESETS[preset]
    with tempfile.TemporaryDirectory() as temporary:
        byte_tokenizer(config.max_position_embeddings).save_pretrained(temporary)
        export_checkpoint(
            folder,
            config,
            init_params(config, jax.random.key(seed)),
            tokenizer_source=temporary,
            hf_config=None,
            model_card=f"# random:{preset}\n\nRandom weights (seed {seed}). It knows nothing.\n",
        )


def random_encoder(preset: str, *, seed: int) -> ImportedEncoder:
    """Draws a text encoder with random weights; what it calls related means nothing.

    Args:
        preset: A key of `ENCODER_PRESETS`.
        seed: Seed of the weights.

    Raises:
        ConfigError: There is no such preset.
    """
    if preset not in ENCODER_PRESETS:
        raise ConfigError(
            f"random:{preset}: unknown; expected one of "
            + ", ".join(f"random:{name}" for name in ENCODER_PRESETS)
        )
    config = ENCODER_PRESETS[preset]
    return ImportedEncoder(
        config=config,
        params=init_encoder_params(config, jax.random.key(seed)),
        tokenizer=_encoder_tokenizer(preset, config.max_tokens),
        pooling="mean",
        normalize=True,
        max_tokens=config.max_tokens,
        prompts={},
        default_prompt="",
        source=Path(f"random:{preset}"),
        fingerprint=f"random:{preset}:{seed}",
        unused=(),
    )


def write_random_encoder(folder: Path, preset: str, *, seed: int) -> None:
    """Writes a text encoder with random weights as a Hugging Face folder.

    Args:
        folder: Where to.
        preset: A key of `ENCODER_PRESETS`.
        seed: Seed of the weights.

    Raises:
        ConfigError: There is no such preset.
    """
    encoder = random_encoder(preset, seed=seed)
    config = encoder.config
    values = {
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "type_vocab_size": config.type_vocab_size,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": config.activation,
        "pad_token_id": config.pad_token_id,
    }
    card = f"# random:{preset}\n\nRandom weights (seed {seed}). It knows nothing.\n"
    with tempfile.TemporaryDirectory() as temporary:
        encoder.tokenizer.save_pretrained(temporary)
        (Path(temporary) / "config.json").write_text(json.dumps(values), encoding="utf-8")
        source = replace(encoder, source=Path(temporary))
        export_encoder(folder, source, encoder.params, model_card=card)


def _encoder_tokenizer(preset: str, max_length: int) -> PreTrainedTokenizerFast:
    if preset != "tiny-masked-bert":
        return byte_tokenizer(max_length)
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    pad, unknown, begin, end, mask = MASKED_SPECIAL
    tokenizer = _bytes(MASKED_SPECIAL)
    numbers = [(name, tokenizer.token_to_id(name)) for name in (begin, end)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", pair=f"{begin} $A {end} $B:1 {end}:1", special_tokens=numbers
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        cls_token=begin,
        sep_token=end,
        mask_token=mask,
        model_max_length=max_length,
    )


def byte_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Makes a tokenizer whose tokens are single bytes, with an end of text and a padding token.

    Args:
        max_length: Longest input, in tokens.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_bytes((END_OF_TEXT, PAD)),
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        model_max_length=max_length,
    )


def _bytes(special: tuple[str, ...]) -> Tokenizer:
    """Makes a tokenizer of single bytes, whose special tokens have the ids from 256 on."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer
