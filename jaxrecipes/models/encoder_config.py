"""What an encoder computes, as one frozen and hashable value.

A family (BERT, RoBERTa, XLM-RoBERTa; MiniLM and Contriever are BERTs, BGE-M3 is an XLM-RoBERTa) is
nothing but a choice of these fields: there is one encoder for all of them. The value is static
under `jax.jit`.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxrecipes.errors import ConfigError

ENCODER_FAMILIES = ("bert", "roberta", "xlm-roberta")
ENCODER_ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")


@dataclass(frozen=True)
class EncoderConfig:
    """A bidirectional transformer with learned absolute positions and norms after each residual.

    Attributes:
        family: How the checkpoint's tensors are named: bert, roberta or xlm-roberta.
        vocab_size: Rows of the token table.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the feed-forward layer.
        num_layers: Number of blocks.
        num_heads: Heads of a block; divides `hidden_size`.
        max_position_embeddings: Rows of the position table.
        type_vocab_size: Rows of the type table; only row 0 is used.
        norm_epsilon: Added to the variance in LayerNorm.
        activation: Non-linearity of the feed-forward layer: "gelu" (exact), "gelu_tanh", "relu" or
            "silu".
        position_offset: Row of the position table that the first token uses: 0 for BERT,
            `pad_token_id + 1` for RoBERTa and XLM-RoBERTa.
        pad_token_id: Token id that fills a row where no text is.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_position_embeddings: int
    type_vocab_size: int
    norm_epsilon: float
    activation: str
    position_offset: int
    pad_token_id: int

    def __post_init__(self) -> None:
        """Refuses a configuration that contradicts itself.

        Raises:
            ConfigError: Names the field, its value and what was expected.
        """
        if self.family not in ENCODER_FAMILIES:
            raise ConfigError(f"family is {self.family!r}; expected one of {ENCODER_FAMILIES}")
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads")
        for name in (*sizes, "type_vocab_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_heads "
                f"({self.num_heads})"
            )
        if self.activation not in ENCODER_ACTIVATIONS:
            raise ConfigError(
                f"activation is {self.activation!r}; expected one of {ENCODER_ACTIVATIONS}"
            )
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(
                f"pad_token_id is {self.pad_token_id}; expected a row of the token table, below "
                f"{self.vocab_size}"
            )
        if self.position_offset < 0 or self.max_tokens < 1:
            raise ConfigError(
                f"position_offset is {self.position_offset}, which leaves {self.max_tokens} of the "
                f"{self.max_position_embeddings} rows of the position table"
            )

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def layer_types(self) -> tuple[str, ...]:
        """The kind of each layer, as `params.layout.plan_layout` asks for it: all are alike."""
        return ("bidirectional",) * self.num_layers

    @property
    def max_tokens(self) -> int:
        """Longest input, in tokens with the special ones: 512 for BERT, 8192 for BGE-M3."""
        return self.max_position_embeddings - self.position_offset
