"""What a set of adapters is, in PEFT's own terms, so that a config can go to PEFT and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from jaxrecipes.errors import ConfigError

ALL_LINEAR = "all-linear"
AdapterInit = Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora"]
# These take a part of the kernel into the adapter and leave the rest as the frozen base.
RESIDUAL_INITS: tuple[AdapterInit, ...] = ("pissa", "olora")


@dataclass(frozen=True)
class AdapterOptions:
    """Options of low-rank adapters; names of modules are Hugging Face's, as PEFT matches them.

    Attributes:
        rank: Rank of every adapter that `rank_pattern` does not name.
        alpha: Numerator of the scale, likewise.
        targets: Which modules get an adapter. "all-linear" (in any case): every linear layer but
            the output head. Any other string: a regular expression that a whole module name must
            match. Names: a module of that name, or whose name ends with a dot and it.
        exclude: Modules to leave out, an expression or names, like `targets`.
        rank_pattern: Rank by name or expression; the first key that matches a module counts.
        alpha_pattern: Alpha, likewise.
        layers_to_transform: Only layers of these indices; with names in `targets` only.
        layers_pattern: Names of the lists that hold the layers; empty takes the first number.
        use_rslora: Scale is alpha / sqrt(rank) instead of alpha / rank (arXiv 2312.03732).
        use_dora: Each output has a trained magnitude (arXiv 2402.09353).
        init: "kaiming": A uniform in +-1/sqrt(inputs), B zero (loralib's). "gaussian": A normal
            with deviation 1/rank, B zero. "orthogonal": both random, their product zero; the rank
            must be even. "pissa" (arXiv 2404.02948), "olora" (arXiv 2406.01775): from the kernel's
            SVD or QR. Embeddings always start with A zero and B standard normal.
        modules_to_save: Modules that train whole. PEFT matches the *end of the name*, without a
            dot: "norm" is also every `input_layernorm`.
        trainable_tokens: Ids whose rows of the input embedding train; where the head is tied, they
            train in the head, too.
        embeddings: The input embedding gets an adapter, whatever `targets` says.
        dropout: Probability with which an adapter's input is dropped in training; of linear layers,
            as in PEFT.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str | tuple[str, ...] = ALL_LINEAR
    exclude: str | tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    use_rslora: bool = False
    use_dora: bool = False
    init: AdapterInit = "kaiming"
    modules_to_save: tuple[str, ...] = ()
    trainable_tokens: tuple[int, ...] = ()
    embeddings: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuses options that contradict themselves.

        Raises:
            ConfigError: Names the option, its value and what was expected.
        """
        for name, rank in {"rank": self.rank, **self.rank_pattern}.items():
            if rank < 1:
                raise ConfigError(f"adapters: {name} has rank {rank}; a rank is at least 1")
        for name, alpha in {"alpha": self.alpha, **self.alpha_pattern}.items():
            if not math.isfinite(alpha) or (alpha <= 0 and self.init in RESIDUAL_INITS):
                raise ConfigError(
                    f"adapters: {name} has alpha {alpha}; expected a finite number, and with init "
                    f"{' or '.join(RESIDUAL_INITS)} one above 0"
                )
        if self.init not in get_args(AdapterInit):
            raise ConfigError(
                f"adapters: init is {self.init!r}; expected one of "
                f"{', '.join(get_args(AdapterInit))}"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"adapters: dropout is {self.dropout}; expected 0 or more, below 1")
        if isinstance(self.targets, str) and (self.layers_to_transform or self.layers_pattern):
            raise ConfigError(
                "adapters: layers_to_transform and layers_pattern work with a list of names; "
                f"targets is the expression {self.targets!r}, which can name layers itself"
            )
        if self.layers_pattern and not self.layers_to_transform:
            raise ConfigError("adapters: layers_pattern needs layers_to_transform")
        tokens = self.trainable_tokens
        if len(set(tokens)) != len(tokens) or any(token < 0 for token in tokens):
            raise ConfigError("adapters: trainable_tokens must be token ids, 0 or more, each once")

    @property
    def takes_all_linear(self) -> bool:
        """Whether `targets` is the word for all linear layers."""
        return isinstance(self.targets, str) and self.targets.lower() == ALL_LINEAR

    def scale(self, rank: int, alpha: float) -> float:
        """Returns the factor on `A B`."""
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank
