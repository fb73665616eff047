"""What `tapt.py` and `adversarial.py` share: a task, fine-tuning on it, results that are kept.

A results file has one JSON line for each arm and seed with the predictions on the test rows; what
is there already, with the same options, is not run again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrecipes.checkpoint.encoder import ImportedEncoder
from jaxrecipes.data.classification_rows import LabelMap, read_labelled
from jaxrecipes.data.text_batches import (
    TextBatches,
    TokenizedTexts,
    texts_by_length,
    tokenize_texts,
)
from jaxrecipes.evaluate.classification import (
    EarlyStopping,
    Score,
    accuracy,
    macro_f1,
    over_seeds,
    paired_difference,
)
from jaxrecipes.models.encoder import encoder_layout
from jaxrecipes.models.heads import ClassificationHead, init_classifier
from jaxrecipes.params.layout import to_runtime
from jaxrecipes.params.paths import Tree, flatten
from jaxrecipes.train.backbone import encoder_backbone
from jaxrecipes.train.encoder_step import make_objective_step
from jaxrecipes.train.objectives import classification_objective, text_logits
from jaxrecipes.train.optimizer import OptimizerSettings, learning_rate_schedule, make_optimizer
from jaxrecipes.train.perturb import Clean, Perturbation, Perturber
from jaxrecipes.train.state import create_state

SCORES: Mapping[Score, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
}
EVALUATION_ROWS = 64
# Standard deviations above the mean at which a step would be refused: arms make equal steps.
NEVER = 1e6


@dataclass(frozen=True)
class Task:
    """A classification task, tokenized.

    Attributes:
        labels: Its classes.
        train: Rows to learn from, some or all.
        dev: Rows to choose the epoch by.
        test: Rows to report.
        unlabelled: All training texts, long ones in pieces, for pretraining.
        max_tokens: Longest row.
    """

    labels: LabelMap
    train: TokenizedTexts
    dev: TokenizedTexts
    test: TokenizedTexts
    unlabelled: TokenizedTexts
    max_tokens: int


def read_task(
    folder: Path,
    encoder: ImportedEncoder,
    *,
    max_tokens: int,
    train_rows: int | None,
    dev_rows: int | None,
) -> Task:
    """Reads train.jsonl, dev.jsonl and test.jsonl; subsets are drawn once, by the seed 0."""
    tokenizer = encoder.tokenizer.backend_tokenizer
    tokenize = partial(tokenize_texts, tokenizer, max_tokens=max_tokens)
    everything = read_labelled(folder / "train.jsonl")
    labels = LabelMap.of_training(everything)

    def part(examples: Sequence[Any], rows: int | None) -> TokenizedTexts:
        chosen = np.random.default_rng(0).permutation(len(examples))[:rows]
        kept = [examples[place] for place in sorted(chosen.tolist())]
        return tokenize([example.texts for example in kept]).labelled(labels.numbers(kept))

    return Task(
        labels,
        part(everything, train_rows),
        part(read_labelled(folder / "dev.jsonl"), dev_rows),
        part(read_labelled(folder / "test.jsonl"), None),
        tokenize([example.texts for example in everything], split_long=True),
        max_tokens,
    )


@dataclass(frozen=True)
class FineTuning:
    """Settings of a fine-tuning, after Gururangan et al. (arXiv 2004.10964, appendix).

    Attributes:
        epochs: Passes over the training rows.
        patience: Epochs without a better dev score after which to stop; None for all epochs. The
            parameters of the best epoch are tested either way.
        learning_rate: Peak; 6 % of the steps warm up, the rest decay linearly to zero.
        rows: Rows of a batch.
        dropout: Of embeddings, residual branches and the head.
        score: What the best epoch is chosen by.
        perturber: Method that perturbs word embeddings.
    """

    epochs: int
    patience: int | None = 3
    learning_rate: float = 5e-5
    rows: int = 16
    dropout: float = 0.1
    score: Score = "macro_f1"
    perturber: Perturber = Clean()


@dataclass(frozen=True)
class Outcome:
    """A fine-tuned model.

    Attributes:
        params: Runtime tree of the best epoch.
        dev: Dev score of each epoch.
        predictions: int [test rows].
        train_score: Score on the training rows, dropout off.
        seconds: Wall time with compilation.
        steps: Steps that were made.
    """

    params: Tree
    dev: list[float]
    predictions: np.ndarray
    train_score: float
    seconds: float
    steps: int


class FineTuner:
    """Fine-tunes one arm for any number of seeds; its programs are compiled once."""

    def __init__(
        self, encoder: ImportedEncoder, head: ClassificationHead, task: Task, settings: FineTuning
    ) -> None:
        """Builds optimizer, step and prediction."""
        self.encoder, self.head, self.task, self.settings = encoder, head, task, settings
        layout = encoder_layout(encoder.config)
        self.layout = layout
        self.backbone = encoder_backbone(encoder.config, layout=layout, dropout=settings.dropout)
        self.steps_per_epoch = -(-len(task.train) // settings.rows)
        self.total = self.steps_per_epoch * settings.epochs
        shape = {**encoder.params, "classifier": self._new_head(0)}
        self.optimizer, schedule = make_adamw(
            shape, layout, total=self.total, learning_rate=settings.learning_rate
        )
        self.perturbation = Perturbation(settings.perturber, total_steps=self.total)
        step = make_objective_step(
            classification_objective(self.backbone, head),
            self.optimizer,
            schedule,
            perturbation=self.perturbation,
            dropout=settings.dropout > 0,
            spike_sigma=NEVER,
        )
        self.step = jax.jit(step, donate_argnums=0)
        self.logits = jax.jit(self._logits)

    def _new_head(self, seed: int) -> Tree:
        return init_classifier(self.head, self.encoder.config.hidden_size, jax.random.key(seed))

    def _logits(self, params: Tree, batch: Any) -> jax.Array:
        embeddings = self.backbone.embed(params, batch)
        return text_logits(self.backbone, self.head, params, embeddings, batch)[:, 0]

    def predict(self, params: Tree, texts: TokenizedTexts) -> np.ndarray:
        """Returns the likeliest class of each text, int [texts]."""
        found = np.zeros(len(texts), np.int64)
        pad = self.encoder.config.pad_token_id
        batches = texts_by_length(texts, EVALUATION_ROWS, self.task.max_tokens, pad)
        for members, batch in batches:
            logits = np.asarray(self.logits(params, batch))
            found[members] = logits[: len(members)].argmax(axis=-1)
        return found

    def start(self, canonical: Tree, seed: int) -> Tree:
        """Returns the runtime tree before the first step, with a fresh head."""
        leaves = {name: value for name, value in canonical.items() if name != "masked_head"}
        params = to_runtime(self.layout, {**leaves, "classifier": self._new_head(seed)})
        return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)

    def run(self, canonical: Tree, seed: int, teacher: Tree | None = None) -> Outcome:
        """Fine-tunes.

        Args:
            canonical: The encoder to start from.
            seed: Of head, order, dropout and noise.
            teacher: Runtime tree of a trained model, for Kim and Kang's method.
        """
        began = time.monotonic()
        settings, task = self.settings, self.task
        pad = self.encoder.config.pad_token_id
        batches = TextBatches(task.train, settings.rows, task.max_tokens, pad, seed)
        params = self.start(canonical, seed)
        first = self.perturbation.first_teacher(params, jax.tree.map(jnp.copy, teacher))
        state = create_state(params, self.optimizer, spike_window=8, teacher=first)
        key = jax.random.key(seed)
        stop = EarlyStopping(settings.patience or settings.epochs)
        best, dev = state.trainable, []
        for number in range(self.total):
            state, _ = self.step(state, {}, batches.batch(number), key)
            if (number + 1) % batches.per_epoch == 0:
                dev.append(self._score(state.trainable, task.dev))
                if stop.improved(dev[-1]):
                    best = jax.tree.map(jnp.copy, state.trainable)
                if stop.should_stop:
                    break
        return Outcome(
            best,
            dev,
            self.predict(best, task.test),
            self._score(best, task.train),
            time.monotonic() - began,
            len(dev) * batches.per_epoch,
        )

    def _score(self, params: Tree, texts: TokenizedTexts) -> float:
        assert texts.labels is not None
        return SCORES[self.settings.score](self.predict(params, texts), texts.labels)


def make_adamw(
    params: Tree, layout: Any, *, total: int, learning_rate: float
) -> tuple[Any, Callable[[Any], Any]]:
    """Returns AdamW as RoBERTa is trained with, no decay on biases and norms, and its schedule."""
    settings = OptimizerSettings(
        total_steps=total,
        learning_rate=learning_rate,
        schedule="linear",
        warmup_steps=min(round(0.06 * total), total - 1),
        final_ratio=0.0,
        weight_decay=0.1,
        beta2=0.98,
        epsilon=1e-6,
    )
    decays = {path: path.endswith(("kernel", "table")) for path in flatten(params)}
    optimizer = make_optimizer(settings, layout=layout, decays=decays)
    return optimizer, learning_rate_schedule(settings)


@dataclass(frozen=True)
class Results:
    """Results of arms and seeds in a file; see the module's docstring.

    Attributes:
        path: JSONL file.
        options: All that decides a result besides arm and seed.
    """

    path: Path
    options: Mapping[str, Any]

    def rows(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Returns what is there for these options: (arm, seed) -> row."""
        if not self.path.exists():
            return {}
        found = {}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was killed while it wrote
            if row["options"] == json.loads(json.dumps(self.options)):
                found[row["arm"], row["seed"]] = row
        return found

    def add(self, arm: str, seed: int, outcome: Outcome, **more: Any) -> None:
        """Appends a result."""
        row = {
            "arm": arm,
            "seed": seed,
            "predictions": outcome.predictions.tolist(),
            "dev": outcome.dev,
            "train_score": outcome.train_score,
            "seconds": round(outcome.seconds, 1),
            "steps": outcome.steps,
            **more,
            "options": dict(self.options),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A new line first: the end of a killed run's last line may be missing.
        broken = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if broken else "") + json.dumps(row) + "\n")


def markdown(
    rows: Mapping[tuple[str, int], Mapping[str, Any]],
    arms: Iterable[str],
    labels: np.ndarray,
    *,
    base: str,
) -> str:
    """Makes a table: scores of each arm over its seeds, and the difference to a base arm.

    Args:
        rows: From `Results.rows`.
        arms: In the order of the table; one without results is left out.
        labels: int [test rows].
        base: The arm that the others are compared with.

    Returns:
        Markdown. Intervals are 95 %, by paired bootstrap over test rows, of means over seeds.
    """

    def predictions(arm: str) -> np.ndarray:
        found = [row["predictions"] for (name, _), row in sorted(rows.items()) if name == arm]
        return np.array(found, np.int64).reshape(len(found), -1)

    lines = [
        f"| arm | seeds | accuracy | macro-F1 | train score | macro-F1 vs {base} | "
        f"accuracy vs {base} | steps | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    of_base = predictions(base)
    for arm in arms:
        of_arm = predictions(arm)
        if not len(of_arm):
            continue
        own = [row for (name, _), row in rows.items() if name == arm]
        scores = {
            name: over_seeds([score(one, labels) for one in of_arm]).show()
            for name, score in SCORES.items()
        }
        differences = {"macro_f1": "", "accuracy": ""}
        if arm != base and len(of_base):
            for name in SCORES:
                found = paired_difference(of_arm, of_base, labels, name)
                low, high = found.low or 0.0, found.high or 0.0
                differences[name] = (
                    f"{100 * found.value:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
                )
        train = over_seeds([row["train_score"] for row in own]).show()
        steps = np.mean([row["steps"] for row in own])
        seconds = np.mean([row["seconds"] for row in own])
        lines.append(
            f"| {arm} | {len(of_arm)} | {scores['accuracy']} | {scores['macro_f1']} | {train} | "
            f"{differences['macro_f1']} | {differences['accuracy']} | {steps:.0f} | {seconds:.0f} |"
        )
    return "\n".join(lines)
