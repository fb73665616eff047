"""What the adaptive recipes read: the task, unlabelled texts, and what must not be among them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxrecipes.checkpoint.encoder import ImportedEncoder, import_encoder
from jaxrecipes.checkpoint.random_model import random_encoder
from jaxrecipes.config import AdaptiveConfig
from jaxrecipes.config.data import LearnSection, SourceSection
from jaxrecipes.config.phases import PretrainPhase
from jaxrecipes.data.classification_rows import LabelMap, read_labelled
from jaxrecipes.data.examples import Labelled
from jaxrecipes.data.mixture import TextMixture, make_mixture
from jaxrecipes.data.plain_texts import (
    Overlap,
    PlainText,
    find_overlaps,
    read_plain_texts,
    refuse_overlaps,
    without_labels,
)
from jaxrecipes.errors import DataError
from jaxrecipes.experiment.base_model import RANDOM_PREFIX
from jaxrecipes.experiment.fine_tuning import Task
from jaxrecipes.experiment.sources import source_spec
from jaxrecipes.experiment.task_model import TaskModel
from jaxrecipes.recipes.curated_tapt import new_texts
from jaxrecipes.recipes.dapt import domain_parts
from jaxrecipes.recipes.knn_tapt import SelectedTexts, select_texts
from jaxrecipes.recipes.tapt import task_texts

Weighted = list[tuple[list[PlainText], float]]


@dataclass(frozen=True)
class PhaseTexts:
    """What a phase reads.

    Attributes:
        learned: Sets of texts with their weights.
        names: Where each set is from: task, domain, selected or random.
        general: Sets of general texts that are replayed, with their weights.
        share: Share of an epoch's rows that they are.
    """

    learned: Weighted
    names: tuple[str, ...]
    general: Weighted
    share: float

    def fingerprint(self) -> dict[str, Any]:
        """Hashes every text and what decides how often it is read."""
        return {
            "learned": [[hash_texts(texts), weight] for texts, weight in self.learned],
            "general": [[hash_texts(texts), weight] for texts, weight in self.general],
            "share": self.share,
        }

    def mixture(
        self, model: TaskModel, phase: PretrainPhase, length: int, seed: int
    ) -> TextMixture:
        """Tokenizes the texts and makes their batches.

        Args:
            model: Its tokenizer is used.
            phase: Says how many texts a batch has.
            length: Longest row in tokens.
            seed: Of the order.
        """

        def tokenized(sets: Weighted) -> list[Any]:
            return [(model.tokenize_plain(texts, length), weight) for texts, weight in sets]

        return make_mixture(
            domain_parts(tokenized(self.learned)),
            replay=domain_parts(tokenized(self.general)),
            share=self.share,
            rows=phase.batch_size,
            max_tokens=length,
            pad_token_id=model.pad_token_id,
            seed=seed,
        )


@dataclass
class AdaptiveData:
    """The texts of an experiment, read once.

    Attributes:
        config: The experiment.
        folder: Run folder, for the selection.
        console: Where to say what is done.
        task: The task, tokenized.
        train: Texts of all training rows.
        dev: Texts of the dev rows.
        held_out: Texts of all dev and test rows.
        overlaps: Training rows whose texts stand among these.
        fingerprint: Hash of the labelled rows as they are used.
    """

    config: AdaptiveConfig
    folder: Path
    console: Console
    task: Task
    train: list[PlainText]
    dev: list[PlainText]
    held_out: list[PlainText]
    overlaps: list[Overlap]
    fingerprint: str

    def phase_texts(self, phase: PretrainPhase) -> PhaseTexts:
        """Returns what a phase reads, once no text of dev and test rows is among it.

        Raises:
            DataError: One is, and `task.transductive` is false.
        """
        learned: Weighted = []
        names: list[str] = []
        for name in phase.read:
            sets = self._named(name, with_task="task" in phase.read)
            learned += sets
            names += [name] * len(sets)
        replay = self.config.replay
        share = 0.0 if replay is None else replay.share
        share = share if phase.replay is None else phase.replay
        general = self.general if share else []
        if not self.config.task.transductive:
            read = [text for texts, _ in [*learned, *general] for text in texts]
            refuse_overlaps(find_overlaps(read, self.held_out), phase.name)
        return PhaseTexts(learned, tuple(names), general, share)

    def _named(self, name: str, *, with_task: bool) -> Weighted:
        if name == "task":
            return [(self.task_texts, 1.0)]
        if name == "domain":
            if not with_task:
                return self.domain
            found, known = [], self.task_texts
            for texts, weight in self.domain:
                new = new_texts(texts, known)
                known = [*known, *new]
                found += [(new, weight)] if new else []
            return found
        selection = self.selection
        rows = selection.selected if name == "selected" else selection.control
        return [([self.pool[int(row)] for row in rows], 1.0)]

    @cached_property
    def task_texts(self) -> list[PlainText]:
        """The task's texts that pretraining may read."""
        transductive = self.config.task.transductive
        return task_texts(self.train, self.overlaps, transductive=transductive)

    @cached_property
    def domain(self) -> Weighted:
        """Texts of each source of the domain, with its weight."""
        section = self.config.domain
        return [] if section is None else _read_sources(section.sources)

    @cached_property
    def general(self) -> Weighted:
        """Texts of each source of replay, with its weight."""
        section = self.config.replay
        return [] if section is None else _read_sources(section.sources)

    @cached_property
    def pool(self) -> list[PlainText]:
        """All texts of the domain that are not the task's, each once."""
        texts = [text for texts, _ in self.domain for text in texts]
        return new_texts(texts, self.task_texts)

    @cached_property
    def selection(self) -> SelectedTexts:
        """The texts of the pool that are most like the task's."""
        options = self.config.knn
        assert options is not None  # adaptive_conflicts asks for it
        return select_texts(
            self.task_texts,
            self.pool,
            options,
            self.folder,
            encoder=_read_encoder(options.encoder, self.config.seed),
            texts={"task": hash_texts(self.task_texts), "pool": hash_texts(self.pool)},
            seed=self.config.seed,
            log=lambda line: self.console.print(line, style="dim", highlight=False),
        )


def read_adaptive_data(
    config: AdaptiveConfig, model: TaskModel, folder: Path, console: Console
) -> AdaptiveData:
    """Reads the task, and says what stands in its training rows and in dev or test rows.

    Args:
        config: The experiment.
        model: Its tokenizer is used.
        folder: The run folder.
        console: Where to say what is done.

    Returns:
        The data; unlabelled texts are read when a phase asks for them.

    Raises:
        DataError: Rows cannot be used: names file and line.
        ConfigError: The model cannot read rows of `task.max_tokens`.
    """
    section = config.task
    train, dev, test = (_read_rows(source) for source in (section.train, section.dev, section.test))
    labels = LabelMap.of_training(train)

    def part(examples: Sequence[Labelled], rows: int | None) -> list[Labelled]:
        chosen = np.random.default_rng(config.seed).permutation(len(examples))[:rows]
        return [examples[place] for place in sorted(chosen.tolist())]

    parts = [part(train, section.train_rows), part(dev, section.dev_rows), list(test)]
    tokenized = [
        model.tokenize_labelled([one.texts for one in rows], section.max_tokens).labelled(
            labels.numbers(rows)
        )
        for rows in parts
    ]
    unlabelled = without_labels(train)
    held_out = without_labels([*dev, *test])
    overlaps = find_overlaps(unlabelled, held_out)
    if overlaps:
        first = overlaps[0]
        left_out = "" if section.transductive else "; pretraining does not read them"
        console.print(
            f"{len(overlaps)} of {len(train)} training rows stand in dev or test rows, too, for "
            f"example {first.text!r} ({first.where}, which is {first.held_out}){left_out}",
            style="yellow",
            highlight=False,
            markup=False,
        )
    digest = hashlib.sha256()
    for rows in parts:
        digest.update(hash_texts(without_labels(rows)).encode())
        digest.update(repr(labels.numbers(rows)).encode())
    digest.update(repr(labels.names).encode())
    return AdaptiveData(
        config=config,
        folder=folder,
        console=console,
        task=Task(labels, tokenized[0], tokenized[1], tokenized[2], section.max_tokens),
        train=unlabelled,
        dev=without_labels(parts[1]),
        held_out=held_out,
        overlaps=overlaps,
        fingerprint=digest.hexdigest(),
    )


def hash_texts(texts: Sequence[PlainText]) -> str:
    """Hashes texts in their order, wherever they are from."""
    digest = hashlib.sha256()
    for text in texts:
        for part in (*text.texts, ""):
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
    return digest.hexdigest()


def _read_rows(section: SourceSection) -> list[Labelled]:
    rows = read_labelled(source_spec(section))[: section.limit_documents]
    texts = {"classification": 1, "sentence_pair": 2}.get(section.shape)
    for row in rows:
        if texts is not None and len(row.texts) != texts:
            raise DataError(
                f"{row.where}: the row has {len(row.texts)} texts, and shape is {section.shape}; "
                "leave shape out, or map the columns text and second_text"
            )
    return rows


def _read_sources(sources: Sequence[LearnSection]) -> Weighted:
    return [
        (read_plain_texts(source_spec(source), source.limit_documents), source.weight)
        for source in sources
    ]


def _read_encoder(reference: str, seed: int) -> ImportedEncoder:
    if reference.startswith(RANDOM_PREFIX):
        return random_encoder(reference.removeprefix(RANDOM_PREFIX), seed=seed)
    return import_encoder(reference)
