"""Small models with random weights and a byte tokenizer: to try the plumbing, never for results."""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax

from jaxrecipes.checkpoint.export_model import export_checkpoint
from jaxrecipes.models.config import FULL_ATTENTION, ModelConfig
from jaxrecipes.models.decoder import init_params

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


def write_random_model(folder: Path, preset: str, *, seed: int) -> None:
    """Writes a Hugging Face folder with random weights and a tokenizer of single bytes.

    Args:
        folder: Where to.
        preset: A key of `PRESETS`.
        seed: Seed of the weights.
    """
    config = PRESETS[preset]
    with tempfile.TemporaryDirectory() as temporary:
        _write_byte_tokenizer(Path(temporary), config)
        export_checkpoint(
            folder,
            config,
            init_params(config, jax.random.key(seed)),
            tokenizer_source=temporary,
            hf_config=None,
            model_card=f"# random:{preset}\n\nRandom weights (seed {seed}). It knows nothing.\n",
        )


def _write_byte_tokenizer(folder: Path, config: ModelConfig) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(END_OF_TEXT, special=True), AddedToken(PAD, special=True)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        model_max_length=config.max_position_embeddings,
    ).save_pretrained(folder)
