"""The sections that belong to one recipe each; each has its recipe's name."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from jaxrecipes.config.section import Pattern, Section

RecipeName = Literal[
    "block_expansion",
    "full",
    "freeze",
    "in_context_pretraining",
    "lora",
    "sdft_rewrite",
    "strided_freeze",
]
RECIPE_NAMES: tuple[str, ...] = get_args(RecipeName)
# A recipe without options (full) has no section.
RECIPE_SECTIONS = (
    "block_expansion",
    "freeze",
    "in_context_pretraining",
    "lora",
    "sdft_rewrite",
    "strided_freeze",
)
# Recipe -> sections of other recipes that it reads, too, where they are given.
ALSO_READS: dict[str, tuple[str, ...]] = {"sdft_rewrite": ("lora",)}


class BlockExpansionSection(Section):
    """Options of recipe block_expansion: insert blocks, train them, freeze the rest."""

    new_blocks: int = Field(ge=1, le=1024, description="Blocks to insert.")
    placement: Literal["interleaved", "prefix", "suffix"] | list[int] = Field(
        default="interleaved",
        description="interleaved: one group of new blocks above each group of old ones (the "
        "paper's). prefix, suffix: all below or above the old blocks (the paper's controls). Or a "
        "list of indices in the expanded model, increasing.",
    )
    per_group: int = Field(
        default=1,
        ge=1,
        description="New blocks above each group (the paper's P); interleaved only.",
    )
    init: Literal["identity", "copy", "random"] = Field(
        default="identity",
        description="identity: copies whose two output projections are zero, so that the model "
        "computes the base function at the start. copy (plain copies) and random are controls.",
    )

    @field_validator("placement")
    @classmethod
    def _increasing(cls, value: str | list[int]) -> str | list[int]:
        if isinstance(value, list) and (value != sorted(set(value)) or any(at < 0 for at in value)):
            raise PydanticCustomError(
                "placement", "positions must be increasing indices, 0 or more, each once"
            )
        return value


class FreezeRule(Section):
    """One rule: which leaves, and whether they train."""

    pattern: Pattern = Field(
        description="Regular expression that a whole leaf path, such as "
        "layers/7/attention/query/kernel, must match."
    )
    train: bool = Field(description="true: matching leaves train. false: they are frozen.")


class FreezeSection(Section):
    """Options of recipe freeze: train chosen leaves in place."""

    rules: list[FreezeRule] = Field(
        min_length=1,
        description="Ordered rules; the first that matches a leaf decides. A leaf that no rule "
        "matches is an error, so the last pattern is usually '.*'.",
    )


class DuplicatesSection(Section):
    """Which documents count as copies of one another; one of them is kept."""

    most: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Largest share of documents that may go; the run stops above it, because then "
        "the thresholds do not fit the encoder, or the corpus is not what it should be.",
    )

    similarity: float | None = Field(
        default=0.95,
        gt=0,
        le=1,
        description="Two documents are duplicates from this cosine on. null: not looked at.",
    )
    overlap: float | None = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Neighbours are duplicates from this share of common runs of five words on "
        "(Jaccard). null: not looked at.",
    )


class RaySection(Section):
    """What a piece of work asks of a Ray cluster; read where executor is ray."""

    cpus: float = Field(default=1, gt=0, le=4096, description="CPUs of a piece.")
    tpus: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="TPU chips of a piece that embeds or searches exactly: all chips of a host.",
    )
    gpus: int = Field(
        default=0, ge=0, le=4096, description="GPUs of a piece that embeds or searches exactly."
    )


class InContextPretrainingSection(Section):
    """Options of recipe in_context_pretraining: related documents share a context."""

    encoder: str = Field(
        min_length=1,
        description="The sentence encoder that says what is related: a Hugging Face or "
        "sentence-transformers folder, a hub id, package:NAME, or random:tiny-bert (random "
        "weights, to try the plumbing).",
    )
    encoder_tokens: int | None = Field(
        default=None,
        ge=8,
        description="First tokens of a document that the encoder reads. null: as many as it can.",
    )
    encoder_prompt: str = Field(
        default="", description="Put before each document, for encoders that were trained with one."
    )
    order: Literal[
        "path", "random", "knn", "cluster", "repo", "splice", "bm25_chunk", "best_fit"
    ] = Field(
        default="path",
        description="path: the paper's, a greedy path through the graph of neighbours. random: the "
        "paper's standard baseline. knn: its repeating baseline, each document with its nearest. "
        "cluster: k-means groups, random inside. repo: what the official code does. splice, "
        "bm25_chunk: the orders of arXiv 2312.17296 and 2402.13991. best_fit: random documents "
        "packed without cuts (arXiv 2404.10830).",
    )
    neighbors: int = Field(
        default=10, ge=1, le=1000, description="Nearest documents of each that make the graph."
    )
    degree: Literal["static", "remaining"] = Field(
        default="static",
        description="path only: whether the degree that chooses a start counts all neighbours or "
        "those that are left. The paper does not say; its difference is small.",
    )
    start: Literal["min_degree", "random"] = Field(
        default="min_degree", description="path only: which document starts, and starts again."
    )
    index: Literal["auto", "exact", "scann"] = Field(
        default="auto", description="How neighbours are searched. auto: by the number of documents."
    )
    recall_floor: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="Least share of true neighbours, measured on a sample; below, the run stops.",
    )
    duplicates: DuplicatesSection = Field(
        default_factory=DuplicatesSection,
        description="Near copies are removed first; the paper's ablation says this is essential.",
    )
    executor: Literal["local", "ray"] = Field(
        default="local",
        description="Who embeds, searches, deduplicates and walks partitions. local: this process. "
        "ray: a Ray cluster (the one of RAY_ADDRESS, or one started here), from files that all of "
        "its machines see. The result is the same.",
    )
    ray: RaySection = Field(
        default_factory=RaySection, description="What a piece asks of the cluster."
    )
    shard_documents: int = Field(
        default=8192,
        ge=1,
        description="Documents of a piece of work, rounded up to 8192 where they are searched. "
        "What is finished is not made again after a kill. Larger for larger corpora.",
    )
    index_documents: int | None = Field(
        default=None,
        ge=1,
        description="Documents of one index. null: all, as long as they fit into memory (12 bytes "
        "a number of a vector).",
    )
    partition_documents: int | None = Field(
        default=None,
        ge=2,
        description="path only: documents of a partition, walked by itself, so that no graph holds "
        "all. null: one graph.",
    )


class LoraSection(Section):
    """Options of recipe lora: low-rank adapters beside frozen weights, named as PEFT names them."""

    rank: int = Field(default=16, ge=1, le=8192, description="Rank of an adapter (PEFT: r).")
    alpha: float | None = Field(
        default=None,
        gt=0,
        description="The adapter's output is multiplied by alpha / rank. null: twice the rank.",
    )
    targets: str | list[str] = Field(
        default="all-linear",
        description="Modules that get an adapter. all-linear: every linear layer but the head. A "
        "list of Hugging Face names (q_proj, mlp.up_proj), each the end of a module's name. Or one "
        "regular expression that a whole module name must match.",
    )
    exclude: str | list[str] = Field(
        default_factory=list, description="Modules to leave out, written like targets."
    )
    embeddings: bool = Field(
        default=False, description="The input embedding gets an adapter, too; a tied head does not."
    )
    rank_pattern: dict[str, int] = Field(
        default_factory=dict,
        description="Other ranks: the end of a module's name, or an expression for it, and a rank.",
    )
    alpha_pattern: dict[str, float] = Field(
        default_factory=dict, description="Other alphas, likewise."
    )
    layers_to_transform: list[int] = Field(
        default_factory=list, description="Only these layers; where targets is a list."
    )
    layers_pattern: list[str] = Field(
        default_factory=list,
        description="Name of the list that layers_to_transform counts in; empty: the first.",
    )
    use_rslora: bool = Field(
        default=False,
        description="Multiply by alpha / sqrt(rank), so that large ranks learn as fast (rsLoRA).",
    )
    use_dora: bool = Field(
        default=False, description="A trained magnitude for each output (DoRA); slower, larger."
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Probability with which a value of an adapter's input is dropped in training "
        "(PEFT: lora_dropout).",
    )
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora"] = Field(
        default="kaiming",
        description="How A and B start. kaiming: the paper's code. pissa, olora: from the SVD or "
        "QR decomposition of the weight, of which only the rest stays frozen.",
    )
    base_quantization: Literal["none", "int8", "nf4"] = Field(
        default="none",
        description="How the frozen kernels of linear layers are stored (QLoRA). int8: 8 bits, one "
        "scale an output. nf4: 4 bits, one scale for each 64 inputs of an output. They are "
        "written out in compute_dtype for each product.",
    )
    double_quantization: bool = Field(
        default=False, description="With nf4: its scales in 8 bits, too; half a bit less a weight."
    )
    loraplus_lr_ratio: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Rate of B, of magnitudes, norms and biases, as a multiple of learning_rate, "
        "which A and everything else learns with (LoRA+, whose authors take about 16). null: 1.",
    )
    loraplus_lr_embedding: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="With loraplus_lr_ratio and embeddings: the rate of the embedding's adapter. "
        "null: 1e-6, as in PEFT.",
    )
    modules_to_save: list[str] = Field(
        default_factory=list,
        description="Modules that train whole: ends of names, without a dot, as in PEFT (norm is "
        "every norm).",
    )
    trainable_tokens: list[int] = Field(
        default_factory=list, description="Token ids whose embeddings train, and no others."
    )


class StridedFreezeSection(Section):
    """Options of recipe strided_freeze: train old blocks where expansion would insert new ones."""

    blocks: int = Field(
        ge=1,
        le=1024,
        description="Existing blocks to train: those that an interleaved expansion by as many "
        "blocks would copy. All others are frozen. The control that tells depth from freezing.",
    )
