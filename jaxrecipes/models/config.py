"""What a decoder computes, as one frozen and hashable value.

A family (Llama, Mistral, Qwen, Gemma) is nothing but a choice of these fields: there is one decoder
for all of them. The value is static under `jax.jit`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxrecipes.errors import ConfigError

FULL_ATTENTION = "full_attention"
SLIDING_ATTENTION = "sliding_attention"
LAYER_TYPES = (FULL_ATTENTION, SLIDING_ATTENTION)
ACTIVATIONS = ("silu", "gelu_tanh")


@dataclass(frozen=True)
class LinearScaling:
    """Rotary positions divided by a factor (position interpolation, arXiv 2306.15595)."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's frequency-dependent scaling of rotary wavelengths.

    Attributes:
        factor: Divisor of the low frequencies.
        low_frequency_factor: Wavelengths above `original_max_position / this` are divided fully.
        high_frequency_factor: Wavelengths below `original_max_position / this` are kept.
        original_max_position: Context length, in tokens, before the extension.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_max_position: int


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding of one kind of layer.

    Attributes:
        theta: Base of the geometric series of wavelengths.
        scaling: How the wavelengths are stretched for longer contexts, or None.
    """

    theta: float = 10_000.0
    scaling: LinearScaling | Llama3Scaling | None = None


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer.

    Attributes:
        family: Name of the family, as the checkpoint's tensors are named: llama, mistral, qwen2,
            qwen3, gemma2 or gemma3.
        vocab_size: Rows of the embedding table.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the gated feed-forward layer.
        num_layers: Number of blocks.
        num_heads: Query heads of a block.
        num_kv_heads: Key and value heads of a block; divides `num_heads`.
        head_dim: Width of one head.
        max_position_embeddings: Longest context, in tokens, that the checkpoint was made for.
        norm_epsilon: Added to the mean square in RMSNorm.
        tie_embeddings: The output head is the transposed embedding table.
        activation: Non-linearity of the gate, "silu" or "gelu_tanh".
        attention_bias: The query, key and value projections have a bias.
        attention_output_bias: The attention output projection has a bias.
        mlp_bias: The three feed-forward projections have a bias.
        query_key_norm: RMSNorm over each head of query and key (Qwen3, Gemma 3).
        norm_plus_one: RMSNorm multiplies by `1 + scale` (Gemma).
        sandwich_norms: A second norm after attention and after the feed-forward layer (Gemma).
        embedding_scale: Factor on the embedding output (Gemma: the square root of `hidden_size`).
        query_scale: Factor on the attention logits.
        attention_softcap: Attention logits become `cap * tanh(logits / cap)` (Gemma 2).
        final_softcap: The same for the output logits (Gemma 2).
        layer_types: For each layer "full_attention" or "sliding_attention".
        sliding_window: Number of latest positions that a sliding layer sees, itself included.
        rope: Rotary embedding of full-attention layers, and of sliding ones without `rope_local`.
        rope_local: Rotary embedding of sliding layers (Gemma 3).
        new_blocks: Indices of the blocks that block expansion inserted, in order; empty for a base.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    layer_types: tuple[str, ...]
    query_scale: float
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = True
    activation: str = "silu"
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = False
    norm_plus_one: bool = False
    sandwich_norms: bool = False
    embedding_scale: float | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    sliding_window: int | None = None
    rope: RopeConfig = RopeConfig()
    rope_local: RopeConfig | None = None
    new_blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuses a configuration that contradicts itself.

        Raises:
            ConfigError: Names the field, its value and what was expected.
        """
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads "
                f"({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; rotary embeddings need an even width")
        if len(self.layer_types) != self.num_layers:
            raise ConfigError(
                f"layer_types lists {len(self.layer_types)} layers, num_layers is {self.num_layers}"
            )
        for index, layer_type in enumerate(self.layer_types):
            if layer_type not in LAYER_TYPES:
                raise ConfigError(
                    f"layer_types[{index}] is {layer_type!r}; expected one of {LAYER_TYPES}"
                )
        if SLIDING_ATTENTION in self.layer_types and not self.sliding_window:
            raise ConfigError(
                "layer_types has sliding_attention layers but sliding_window is not set"
            )
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation is {self.activation!r}; expected one of {ACTIVATIONS}")
        if any(not 0 <= index < self.num_layers for index in self.new_blocks) or list(
            self.new_blocks
        ) != sorted(set(self.new_blocks)):
            raise ConfigError(
                f"new_blocks is {self.new_blocks}; expected increasing indices below "
                f"{self.num_layers}"
            )

    def with_layers(self, layer_types: tuple[str, ...], new_blocks: tuple[int, ...]) -> ModelConfig:
        """Returns the model with other layers: depth, types and inserted indices together."""
        return replace(
            self, num_layers=len(layer_types), layer_types=layer_types, new_blocks=new_blocks
        )

    def window(self, layer: int) -> int | None:
        """Returns the sliding window of a layer in tokens, or None where it sees everything."""
        return self.sliding_window if self.layer_types[layer] == SLIDING_ATTENTION else None

    def layer_rope(self, layer: int) -> RopeConfig:
        """Returns the rotary embedding that a layer uses."""
        if self.layer_types[layer] == SLIDING_ATTENTION and self.rope_local is not None:
            return self.rope_local
        return self.rope
