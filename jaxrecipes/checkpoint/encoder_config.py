"""`config.json` of BERT, RoBERTa and XLM-RoBERTa checkpoints -> EncoderConfig.

As for decoders every key is read here, known not to change the hidden states, or at a value that
switches its feature off; anything else is an error that names the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxrecipes.checkpoint.config_reader import ConfigReader
from jaxrecipes.checkpoint.families import INERT_KEYS
from jaxrecipes.errors import CheckpointError, ConfigError
from jaxrecipes.models.encoder_config import ENCODER_FAMILIES, EncoderConfig

_READ_KEYS = frozenset(
    {
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "max_position_embeddings", "type_vocab_size", "layer_norm_eps"),
        *("hidden_act", "position_embedding_type"),
    }
)
_INERT_ENCODER_KEYS = INERT_KEYS | {
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "gradient_checkpointing"),
    *("tie_word_embeddings", "output_past", "directionality", "pooler_type", "pooler_fc_size"),
    *("pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head"),
}
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def parse_encoder_config(values: Mapping[str, Any], *, where: str) -> EncoderConfig:
    """Turns the content of a `config.json` into an EncoderConfig.

    Args:
        values: The JSON object.
        where: Put before error messages, for example the file's path.

    Returns:
        The model.

    Raises:
        CheckpointError: The family is unknown, a value is missing or of the wrong type, or a key
            changes the computation in a way that is not supported.
    """
    family = values.get("model_type")
    if family not in ENCODER_FAMILIES:
        raise CheckpointError(
            f"{where}: model_type is {family!r}; supported encoders are "
            f"{', '.join(ENCODER_FAMILIES)} (MiniLM and Contriever are bert, BGE-M3 is "
            "xlm-roberta)"
        )
    for key, value in values.items():
        switched_off = value is None or value is False or value in (0, "", [], {})
        if key not in _READ_KEYS | _INERT_ENCODER_KEYS and not switched_off:
            raise CheckpointError(
                f"{where}: key {key!r} has the value {value!r}, which is not supported for an "
                f"encoder of family {family}; use another checkpoint, or remove the key if you "
                "know that it has no effect"
            )
    reader = ConfigReader(values, where)
    positions = reader.text("position_embedding_type", "absolute")
    if positions != "absolute":
        raise CheckpointError(
            f"{where}: key 'position_embedding_type' is {positions!r}; only 'absolute' is supported"
        )
    activation = reader.text("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise CheckpointError(
            f"{where}: key 'hidden_act' has the value {activation!r}; supported are "
            f"{', '.join(_ACTIVATIONS)}"
        )
    pad = reader.integer("pad_token_id", 0 if family == "bert" else 1, minimum=0)
    try:
        return EncoderConfig(
            family=family,
            vocab_size=reader.integer("vocab_size"),
            hidden_size=reader.integer("hidden_size"),
            intermediate_size=reader.integer("intermediate_size"),
            num_layers=reader.integer("num_hidden_layers"),
            num_heads=reader.integer("num_attention_heads"),
            max_position_embeddings=reader.integer("max_position_embeddings", 512),
            type_vocab_size=reader.integer("type_vocab_size", 2),
            norm_epsilon=reader.number("layer_norm_eps", 1e-12),
            activation=_ACTIVATIONS[activation],
            position_offset=0 if family == "bert" else pad + 1,
            pad_token_id=pad,
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from None
