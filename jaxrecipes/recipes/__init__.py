"""The recipes: one file a method, and the one table that `jaxrecipes ls` prints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """What a user should know before choosing a recipe.

    Attributes:
        name: Its name in configs; its file here and its folder in configs/ have the same one.
        summary: What it does to the model, in one line.
        paper: Where the method is from.
        needs: What a user must bring.
        configs: Names of the configs that ship with it, the one that `jaxrecipes new` copies first.
    """

    name: str
    summary: str
    paper: str
    needs: str
    configs: tuple[str, ...]


RECIPES = (
    Recipe(
        "block_expansion",
        "insert new blocks that start as the identity, train only them",
        "LLaMA Pro, arXiv 2401.02415",
        "documents of a domain",
        ("quickstart", "tiny", "controls", "tpu_v5e", "tpu_v5e_16"),
    ),
    Recipe(
        "curated_tapt",
        "pretrain on the larger pool that a task was drawn from, then learn its labels",
        "Don't Stop Pretraining, arXiv 2004.10964",
        "a labelled task, unlabelled texts of its kind",
        ("quickstart", "tiny"),
    ),
    Recipe(
        "dapt",
        "pretrain on a domain, then learn a task's labels; encoders and decoders",
        "Don't Stop Pretraining, arXiv 2004.10964",
        "documents of a domain, a labelled task",
        ("quickstart", "tiny", "decoder"),
    ),
    Recipe(
        "full",
        "train everything: the baseline of every other recipe",
        "baseline",
        "documents of a domain",
        ("quickstart", "perturbed", "tiny"),
    ),
    Recipe(
        "freeze",
        "train the leaves that your rules choose, freeze the rest",
        "baseline",
        "documents of a domain",
        ("top_blocks", "tiny"),
    ),
    Recipe(
        "in_context_pretraining",
        "order documents by their neighbours, train everything on contexts of related ones",
        "In-Context Pretraining, arXiv 2310.10638",
        "many documents, a sentence encoder",
        ("docstrings", "tiny", "tpu_v5e"),
    ),
    Recipe(
        "knn_tapt",
        "pretrain on the domain's texts that are most like a task's, then learn its labels",
        "Don't Stop Pretraining, arXiv 2004.10964",
        "documents of a domain, a labelled task, a sentence encoder",
        ("quickstart", "tiny"),
    ),
    Recipe(
        "llm2llm",
        "a teacher writes new items like those that the student gets wrong, round after round",
        "LLM2LLM, arXiv 2403.15042",
        "a few items with answers, a teacher",
        ("gsm8k", "sst2", "tiny"),
    ),
    Recipe(
        "lora",
        "train low-rank adapters beside frozen weights; gives a PEFT adapter and a merged model",
        "LoRA, arXiv 2106.09685 (rsLoRA, DoRA, PiSSA, OLoRA)",
        "documents of a domain",
        ("quickstart", "tiny"),
    ),
    Recipe(
        "sdft_rewrite",
        "let the model say the answers in its own words, then train on those that are right",
        "SDFT, arXiv 2402.13669",
        "supervised examples, a model that follows instructions",
        ("quickstart", "tiny", "gsm8k"),
    ),
    Recipe(
        "strided_freeze",
        "train old blocks where expansion would insert new ones",
        "control for LLaMA Pro (its issue 9)",
        "documents of a domain",
        ("quickstart", "tiny"),
    ),
    Recipe(
        "tapt",
        "pretrain on a task's own texts, then learn its labels",
        "Don't Stop Pretraining, arXiv 2004.10964",
        "a labelled task",
        ("quickstart", "tiny"),
    ),
)
