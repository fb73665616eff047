"""The sets of arms whose supervised answers are rewritten before they are learned."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxrecipes import __version__
from jaxrecipes.checkpoint.encoder import import_encoder
from jaxrecipes.checkpoint.huggingface import import_checkpoint, read_model_config
from jaxrecipes.checkpoint.random_model import random_encoder
from jaxrecipes.config import Config
from jaxrecipes.config.data import SourceSection
from jaxrecipes.config.sdft_rewrite import SdftRewriteSection, SemanticSection
from jaxrecipes.config.teacher import LocalTeacherSection
from jaxrecipes.data.documents import ReadReport
from jaxrecipes.data.example_sources import ALL_ROLES, find_shape, read_examples
from jaxrecipes.data.examples import Example
from jaxrecipes.data.prepare import select
from jaxrecipes.data.sources import (
    ResolvedSource,
    SourceSpec,
    resolve_source,
    source_fingerprint,
)
from jaxrecipes.data.split import Split
from jaxrecipes.data.store import PreparedSet
from jaxrecipes.data.tokenize_examples import Supervision
from jaxrecipes.durable import hash_values, write_json, write_json_lines
from jaxrecipes.errors import DataError, JaxrecipesError
from jaxrecipes.evaluate.likelihood import evaluate_set
from jaxrecipes.evaluate.rows import rows_from_prepared
from jaxrecipes.experiment.base_model import RANDOM_PREFIX, BaseModel, locate_base
from jaxrecipes.experiment.devices import local_execution, model_shardings
from jaxrecipes.experiment.sources import source_spec, supervision
from jaxrecipes.experiment.teachers import budget_of, make_teacher
from jaxrecipes.generate.ask import ask
from jaxrecipes.generate.parse import Reject, parse_replies, write_rejects
from jaxrecipes.generate.progress import asking
from jaxrecipes.generate.reply_store import ReplyStore
from jaxrecipes.generate.teacher import Reply
from jaxrecipes.neighbors.embed import embed_texts
from jaxrecipes.recipes.sdft_rewrite import (
    Choice,
    Item,
    accept,
    choose,
    item_of,
    make_requests,
    row_of,
    split_request_id,
    summarise,
    with_answer,
)
from jaxrecipes.stages import run_stage

ROWS, PROVENANCE, REJECTS, CANDIDATES, STATISTICS = (
    "rows.jsonl",
    "provenance.jsonl",
    "rejects.jsonl",
    "candidates.jsonl",
    "statistics.json",
)
REPLIES = "replies.sqlite"
UNTOUCHED = "the last turn is no text of the assistant's"
# What decides which answer is used, but not what is written and scored.
_CHOOSING = {"ratio", "most_fallback", "most_failed"}
_SHOWN, _SHOWN_CHARACTERS = 3, 600


@dataclass(frozen=True)
class Rewriting:
    """How one arm rewrites the answers of an experiment.

    Attributes:
        config: The arm's config.
        options: Its section `sdft_rewrite`.
        base: The seed model.
        folder: Where the stages leave their results; arms share it.
        console: Where to say what is done.
    """

    config: Config
    options: SdftRewriteSection
    base: BaseModel
    folder: Path
    console: Console

    def training_sets(
        self, split: Split, prepare: Callable[..., PreparedSet]
    ) -> tuple[list[tuple[PreparedSet, float]], list[dict[str, Any]]]:
        """Rewrites and packs every source.

        Args:
            split: The side of the held-out split that is trained on.
            prepare: `data.prepare.prepare` with the experiment's tokenizer and row length.

        Returns:
            The prepared sets with their weights, and for each what became of its answers.

        Raises:
            DataError: A source holds documents, or too few answers were accepted.
            JaxrecipesError: Too many requests were not answered.
        """
        sets, statistics = [], []
        for section in self.config.data.learn:
            folder = self._rewritten(section, split, prepare)
            # The examples were selected already.
            prepared = prepare(
                folder.with_name(f"{folder.name}-packed"),
                SourceSpec(str(folder / ROWS), kind="jsonl"),
                supervision=self._supervision(section),
            )
            sets.append((prepared, section.weight))
            found = json.loads((folder / STATISTICS).read_text(encoding="utf-8"))
            statistics.append({"source": section.source, **found})
        return sets, statistics

    def _rewritten(
        self, section: SourceSection, split: Split, prepare: Callable[..., PreparedSet]
    ) -> Path:
        source = resolve_source(source_spec(section), roles=ALL_ROLES)
        if find_shape(source, self._supervision(section).shape) == "documents":
            raise DataError(
                f"{section.source}: recipe sdft_rewrite rewrites answers, and these are documents "
                "without any; expected supervised rows, such as "
                '{"prompt": "...", "completion": "..."}'
            )
        inputs = self._inputs(section, source, split)
        candidates = self.folder / f"written-{hash_values(inputs)[:16]}"
        read = partial(self._items, section, source, split)
        run_stage(candidates, inputs, lambda target: self._write(target, section, read(), prepare))
        choosing = {name: getattr(self.options, name) for name in sorted(_CHOOSING)}
        inputs = {**inputs, **choosing}
        chosen = self.folder / f"chosen-{hash_values(inputs)[:16]}"
        run_stage(chosen, inputs, lambda target: self._choose(target, section, read(), candidates))
        return chosen

    def _inputs(
        self, section: SourceSection, source: ResolvedSource, split: Split
    ) -> dict[str, Any]:
        """Returns everything that determines what is written and how it is scored."""
        options = self.options.model_dump(exclude={*_CHOOSING, "teacher"})
        return {
            "code": __version__,
            "base": self.base.fingerprint,
            "chat_template": self.base.chat_template,
            "compute_dtype": self.config.model.compute_dtype,
            "length": self.config.data.length,
            "limit": section.limit_documents,
            "options": options,
            "seed": self.config.seed,
            "source": source_fingerprint(source),
            "split": [split.part, split.held_out, split.seed],
            "supervision": self._supervision(section).key(self.base.tokenizer),
            "teacher": self._teacher_key,
        }

    @cached_property
    def _teacher_key(self) -> dict[str, Any]:
        section = self.options.teacher
        if not isinstance(section, LocalTeacherSection):
            return {"server": section.base_url, "model": section.model}
        if section.checkpoint is None:
            return {"weights": self.base.fingerprint}
        found = locate_base(
            section.checkpoint,
            section.revision,
            self.folder / "teacher",
            seed=self.config.seed,
            console=self.console,
        )
        return {"weights": found.fingerprint}

    def _supervision(self, section: SourceSection) -> Supervision:
        return supervision(section, self.config.data.supervise)

    def _items(
        self, section: SourceSection, source: ResolvedSource, split: Split
    ) -> Iterator[tuple[Example, Item | None]]:
        read = partial(read_examples, source, shape=self._supervision(section).shape)
        for example in select(read, split, section.limit_documents, ReadReport()):
            yield example, item_of(example)

    def _write(
        self,
        target: Path,
        section: SourceSection,
        examples: Iterator[tuple[Example, Item | None]],
        prepare: Callable[..., PreparedSet],
    ) -> None:
        """Asks for rewritings, verifies and scores them."""
        items = {item.example.id: item for _, item in examples if item is not None}
        replies = self._ask(list(items.values()), section.source)

        def parse(id_: str, text: str) -> str:
            return accept(text, items[split_request_id(id_)[0]], self.options)

        parsed = parse_replies(replies, parse)
        accepted = {split_request_id(id_): text for id_, text in parsed.answers.items()}
        rejects = list(parsed.rejects)
        if self.options.semantic is not None:
            rejects += _other_meaning(accepted, items, self.options.semantic, self.config.seed)
        write_rejects(target / REJECTS, rejects)
        nll = self._score(target, items, accepted, prepare)
        reasons: dict[str, list[str]] = {name: [] for name in items}
        for reject in rejects:
            reasons[split_request_id(reject.id)[0]].append(reject.reason)
        texts: dict[str, dict[int, str]] = {name: {} for name in items}
        for (name, sample), text in accepted.items():
            texts[name][sample] = text
        rows = [
            {
                "id": name,
                "accepted": sorted(texts[name].items()),
                "reasons": reasons[name],
                "nll": [[sample, value] for (one, sample), value in nll.get(name, {}).items()],
            }
            for name in items
        ]
        write_json_lines(target / CANDIDATES, rows)

    def _ask(self, items: Sequence[Item], source: str) -> Mapping[str, Reply]:
        options = self.options
        requests = make_requests(items, options, seed=self.config.seed)
        teacher = make_teacher(
            options.teacher,
            self.base,
            self.folder / "teacher",
            compute_dtype=self.config.model.compute_dtype,
            seed=self.config.seed,
            console=self.console,
        )
        with (
            ReplyStore(self.folder / REPLIES) as store,
            asking(self.console, f"rewriting {source}") as progress,
        ):
            replies = ask(
                teacher,
                requests,
                store=store,
                budget=budget_of(options.teacher),
                progress=progress,
            )
        failed = [reply.error for reply in replies.values() if reply.finish == "failed"]
        if len(failed) > options.most_failed * len(requests):
            raise JaxrecipesError(
                f"{source}: the teacher left {len(failed)} of {len(requests)} requests unanswered; "
                f"the first reason: {failed[0]}. The same command asks again for these only; or "
                "raise sdft_rewrite.most_failed to go on without them"
            )
        return replies

    def _score(
        self,
        target: Path,
        items: Mapping[str, Item],
        accepted: Mapping[tuple[str, int], str],
        prepare: Callable[..., PreparedSet],
    ) -> dict[str, dict[tuple[str, int | None], float]]:
        """Returns nats a token of each answer under the seed model, in the ordinary prompt."""
        named: list[tuple[tuple[str, int | None], Example]] = [
            ((name, None), item.example) for name, item in items.items()
        ]
        named += [(key, with_answer(items[key[0]].example, text)) for key, text in accepted.items()]
        rows = [{**row_of(example), "id": json.dumps(key)} for key, example in named]
        path = target / "scored.jsonl"
        write_json_lines(path, rows)
        prepared = prepare(
            target / "scored",
            SourceSpec(str(path), kind="jsonl"),
            # One that is longer than a row is left out, and has no score.
            supervision=Supervision(turns="last", overlong="drop"),
        )
        execution = local_execution()
        places = model_shardings(read_model_config(self.base.folder), execution.mesh)
        dtype = jnp.dtype(self.config.model.compute_dtype)
        imported = import_checkpoint(self.base.folder, dtype=dtype, shardings=places)
        self.console.print(
            f"the seed model reads {len(rows)} answers …", style="dim", highlight=False
        )
        sums = evaluate_set(
            imported.config,
            imported.params,
            rows_from_prepared(prepared),
            compute_dtype=dtype,
            execution=execution,
        )
        found: dict[str, dict[tuple[str, int | None], float]] = {}
        for id_, nll, tokens in zip(sums.document_ids, sums.nll, sums.tokens, strict=True):
            name, sample = json.loads(id_)
            if tokens:
                found.setdefault(name, {})[name, sample] = float(nll / tokens)
        return found

    def _choose(
        self,
        target: Path,
        section: SourceSection,
        examples: Iterator[tuple[Example, Item | None]],
        candidates: Path,
    ) -> None:
        """Writes the rows that are learned, and what became of each example."""
        with (candidates / CANDIDATES).open(encoding="utf-8") as file:
            written = {row["id"]: row for row in map(json.loads, file)}
        choices: list[Choice] = []
        rows: list[dict[str, Any]] = []
        shown: list[dict[str, Any]] = []
        for example, item in examples:
            if item is None:
                choices.append(Choice(example.id, "fallback", "", None, {UNTOUCHED: 1}, None, None))
                rows.append(row_of(example))
                continue
            row = written[example.id]
            choice = choose(
                item,
                dict(row["accepted"]),
                row["reasons"],
                dict(row["nll"]),
                self.options,
                seed=self.config.seed,
            )
            choices.append(choice)
            rows.append(row_of(with_answer(example, choice.text)))
            if choice.status == "rewritten" and len(shown) < _SHOWN:
                shown.append(_shown(item, choice))
        rejected: Counter[str] = Counter()
        for choice in choices:
            rejected.update(choice.reasons)
        statistics = summarise(choices, rejected)
        self._check(section.source, statistics)
        write_json_lines(target / ROWS, rows)
        write_json_lines(target / PROVENANCE, [_provenance(choice) for choice in choices])
        write_json(target / STATISTICS, {**statistics, "shown": shown})
        counts = ", ".join(f"{statistics[name]} {name}" for name in _COUNTED if statistics[name])
        self.console.print(
            f"{section.source}: {statistics['examples']} answers: {counts}", highlight=False
        )

    def _check(self, source: str, statistics: Mapping[str, Any]) -> None:
        share = statistics["fallback"] / max(statistics["examples"], 1)
        if share > self.options.most_fallback:
            reasons = ", ".join(f"{n} {reason}" for reason, n in statistics["reasons"].items())
            raise DataError(
                f"{source}: no rewriting was accepted for {share:.0%} of the answers, which stay "
                f"as they are; expected at most {self.options.most_fallback:.0%} "
                f"(sdft_rewrite.most_fallback). Why samples were rejected: {reasons}. Look at "
                f"{REJECTS} in {self.folder}; more samples, another wording or a better teacher "
                "may help"
            )


_COUNTED = ("rewritten", "copied", "fallback", "original")


def _other_meaning(
    accepted: dict[tuple[str, int], str],
    items: Mapping[str, Item],
    section: SemanticSection,
    seed: int,
) -> list[Reject]:
    """Takes those out of `accepted` that are far from their references, and returns them."""
    if not accepted:
        return []
    preset = section.encoder.removeprefix(RANDOM_PREFIX)
    encoder = (
        random_encoder(preset, seed=seed)
        if section.encoder.startswith(RANDOM_PREFIX)
        else import_encoder(section.encoder)
    )
    keys = list(accepted)
    names = sorted({name for name, _ in keys})
    place = {name: number for number, name in enumerate(names)}
    references = embed_texts([items[name].reference for name in names], encoder)
    vectors = embed_texts([accepted[key] for key in keys], encoder)
    cosines = np.einsum("th,th->t", vectors, references[[place[name] for name, _ in keys]])
    return [
        Reject(json.dumps(key), "another meaning", accepted.pop(key))
        for key, cosine in zip(keys, cosines, strict=True)
        if cosine < section.least
    ]


def _provenance(choice: Choice) -> dict[str, Any]:
    row = asdict(choice)
    del row["text"]
    return row


def _shown(item: Item, choice: Choice) -> dict[str, str]:
    return {
        "id": choice.id,
        "original": item.reference[:_SHOWN_CHARACTERS],
        "rewritten": choice.text[:_SHOWN_CHARACTERS],
    }
