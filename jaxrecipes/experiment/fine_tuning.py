"""Fine-tuning on a classification task, once for each seed, with programs compiled once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrecipes.data.classification_rows import LabelMap
from jaxrecipes.data.text_batches import TextBatches, TokenizedTexts, texts_by_length
from jaxrecipes.evaluate.classification import SCORES, EarlyStopping, Score
from jaxrecipes.experiment.task_model import TaskModel
from jaxrecipes.models.heads import ClassificationHead, init_classifier
from jaxrecipes.params.layout import to_runtime
from jaxrecipes.params.paths import Tree
from jaxrecipes.train.encoder_step import make_objective_step
from jaxrecipes.train.objectives import classification_objective, text_logits
from jaxrecipes.train.perturb.schedule import UNPERTURBED, Perturbation
from jaxrecipes.train.state import create_state

# (canonical tree, steps) -> the optimizer of the runtime tree, and its rate.
OptimizerMaker = Callable[[Tree, int], tuple[optax.GradientTransformation, optax.Schedule]]
_EVALUATION_ROWS = 64
# Standard deviations above the mean at which a step would be refused: arms make equal steps.
_NEVER = 1e6


@dataclass(frozen=True)
class Task:
    """A classification task, tokenized.

    Attributes:
        labels: Its classes.
        train: Rows to learn from, some or all.
        dev: Rows to choose the epoch by.
        test: Rows to report.
        max_tokens: Longest row.
    """

    labels: LabelMap
    train: TokenizedTexts
    dev: TokenizedTexts
    test: TokenizedTexts
    max_tokens: int


@dataclass(frozen=True)
class FineTuning:
    """Settings of a fine-tuning.

    Attributes:
        epochs: Passes over the training rows.
        make_optimizer: Builds the optimizer.
        patience: Epochs without a better dev score after which to stop; None for all epochs. The
            parameters of the best epoch are tested either way.
        rows: Rows of a batch.
        dropout: Of an encoder's embeddings and residual branches; the head has its own.
        score: What the best epoch is chosen by.
        perturbation: Steps -> what is done to word embeddings.
    """

    epochs: int
    make_optimizer: OptimizerMaker
    patience: int | None = 3
    rows: int = 16
    dropout: float = 0.1
    score: Score = "macro_f1"
    perturbation: Callable[[int], Perturbation] = lambda steps: UNPERTURBED


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
        tokens: Tokens that were read in training, padding left out.
    """

    params: Tree
    dev: list[float]
    predictions: np.ndarray
    train_score: float
    seconds: float
    steps: int
    tokens: int

    def row(self, arm: str, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what `SeedResults` keeps of it: JSON values, without the parameters.

        Args:
            arm: The arm.
            seed: The seed.
            options: All that decides the result besides.
        """
        return {
            "arm": arm,
            "seed": seed,
            "predictions": self.predictions.tolist(),
            "dev": self.dev,
            "train_score": self.train_score,
            "seconds": round(self.seconds, 1),
            "steps": self.steps,
            "tokens": self.tokens,
            "options": dict(options),
        }


class FineTuner:
    """Fine-tunes from any start for any number of seeds; its programs are compiled once."""

    def __init__(
        self, model: TaskModel, head: ClassificationHead, task: Task, settings: FineTuning
    ) -> None:
        """Builds optimizer, step and prediction.

        Raises:
            ConfigError: A setting is out of its range or does not fit the model.
        """
        self.model, self.head, self.task, self.settings = model, head, task, settings
        self.backbone = model.backbone(settings.dropout)
        self.steps_per_epoch = -(-len(task.train) // settings.rows)
        self.total = self.steps_per_epoch * settings.epochs
        self.perturbation = settings.perturbation(self.total)
        shape = {**model.params, "classifier": self._new_head(0)}
        self.optimizer, schedule = settings.make_optimizer(shape, self.total)
        step = make_objective_step(
            classification_objective(self.backbone, head),
            self.optimizer,
            schedule,
            perturbation=self.perturbation,
            dropout=model.encoder is not None and max(settings.dropout, head.dropout) > 0,
            spike_sigma=_NEVER,
        )
        self.step = jax.jit(step, donate_argnums=0)
        self.logits = jax.jit(self._logits)

    def _new_head(self, seed: int) -> Tree:
        return init_classifier(self.head, self.model.config.hidden_size, jax.random.key(seed))

    def _logits(self, params: Tree, batch: Any) -> jax.Array:
        embeddings = self.backbone.embed(params, batch)
        return text_logits(self.backbone, self.head, params, embeddings, batch)[:, 0]

    def predict(self, params: Tree, texts: TokenizedTexts) -> np.ndarray:
        """Returns the likeliest class of each text, int [texts]."""
        found = np.zeros(len(texts), np.int64)
        pad = self.model.pad_token_id
        for members, batch in texts_by_length(texts, _EVALUATION_ROWS, self.task.max_tokens, pad):
            logits = np.asarray(self.logits(params, batch))
            found[members] = logits[: len(members)].argmax(axis=-1)
        return found

    def start(self, canonical: Tree, seed: int) -> Tree:
        """Returns the runtime tree before the first step, with a fresh head."""
        leaves = {name: value for name, value in canonical.items() if name != "masked_head"}
        params = to_runtime(self.model.layout, {**leaves, "classifier": self._new_head(seed)})
        return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)

    def run(
        self,
        canonical: Tree,
        seed: int,
        *,
        teacher: Tree | None = None,
        show: Callable[[int, Mapping[str, Any]], None] = lambda step, metrics: None,
    ) -> Outcome:
        """Fine-tunes.

        Args:
            canonical: The model to start from; a head of masked language modelling is left out.
            seed: Of head, order, dropout and noise.
            teacher: Runtime tree of a trained model, for Kim and Kang's method.
            show: Takes the number of a step and its `loss`, `tokens_per_second` and `skipped`,
                after each epoch.
        """
        began = epoch_began = time.monotonic()
        settings, task = self.settings, self.task
        batches = TextBatches(
            task.train, settings.rows, task.max_tokens, self.model.pad_token_id, seed
        )
        params = self.start(canonical, seed)
        first = self.perturbation.first_teacher(params, jax.tree.map(jnp.copy, teacher))
        state = create_state(params, self.optimizer, spike_window=8, teacher=first)
        key = jax.random.key(seed)
        stop = EarlyStopping(settings.patience or settings.epochs)
        best, dev = jax.tree.map(jnp.copy, state.trainable), []
        epoch_tokens = int(task.train.lengths.sum())
        for number in range(self.total):
            state, metrics = self.step(state, {}, batches.batch(number), key)
            if (number + 1) % batches.per_epoch == 0:
                dev.append(self._score(state.trainable, task.dev))
                if stop.improved(dev[-1]):
                    best = jax.tree.map(jnp.copy, state.trainable)
                now = time.monotonic()
                speed = epoch_tokens / max(now - epoch_began, 1e-9)
                epoch_began = now
                shown = {"loss": metrics["loss"], "tokens_per_second": speed, "skipped": 0}
                show(number + 1, shown)
                if stop.should_stop:
                    break
        return Outcome(
            best,
            dev,
            self.predict(best, task.test),
            self._score(best, task.train),
            time.monotonic() - began,
            len(dev) * batches.per_epoch,
            len(dev) * epoch_tokens,
        )

    def _score(self, params: Tree, texts: TokenizedTexts) -> float:
        assert texts.labels is not None
        return SCORES[self.settings.score](self.predict(params, texts), texts.labels)
