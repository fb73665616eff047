"""The sets of an experiment: what is learned, what is held out of it, and what must be kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from rich.console import Console

from jaxrecipes.checkpoint.huggingface import import_checkpoint, read_model_config
from jaxrecipes.config import Arm, Config
from jaxrecipes.config.data import KeepDocuments, OwnAnswers, SourceSection
from jaxrecipes.data.prepare import prepare
from jaxrecipes.data.sources import SourceSpec, read_documents
from jaxrecipes.data.split import Split
from jaxrecipes.data.store import PreparedSet
from jaxrecipes.durable import write_json
from jaxrecipes.errors import ConfigError
from jaxrecipes.evaluate.context_gain import ContextPairs
from jaxrecipes.evaluate.probes import general_prompts
from jaxrecipes.evaluate.rows import EvaluationRows, join_rows, pack_scored, rows_from_prepared
from jaxrecipes.experiment.base_model import BaseModel
from jaxrecipes.experiment.devices import local_execution, model_shardings
from jaxrecipes.experiment.ordered_data import Ordering
from jaxrecipes.experiment.rewritten_data import Rewriting
from jaxrecipes.experiment.sources import smaller, source_spec, supervision
from jaxrecipes.generate.answers import write_answers
from jaxrecipes.generate.sampling import Sampling
from jaxrecipes.generate.writing_progress import writing_progress
from jaxrecipes.stages import run_stage


@dataclass(frozen=True)
class TrainingSets:
    """What arms learn from.

    Attributes:
        train: Arm -> prepared sets to learn from, with their weights in the mixture. Arms differ
            only where a recipe orders documents or rewrites answers.
    """

    train: Mapping[str, list[tuple[PreparedSet, float]]]

    @property
    def train_rows(self) -> int:
        """Rows in all training sets of the main arm; they decide the steps of every arm."""
        return sum(len(prepared) for prepared, _ in next(iter(self.train.values())))

    def fingerprint(self, arm: str) -> list[str]:
        """Returns the keys of all sets that an arm reads, for its identity."""
        return [prepared.manifest["key"] for prepared, _ in self.train[arm]]


@dataclass(frozen=True)
class DataSets(TrainingSets):
    """Everything that an experiment reads.

    Attributes:
        learn: Held-out documents of the same sources, to measure what was learned.
        keep: Rows to measure what was forgotten.
        context: Held-out documents behind related and other ones, where a recipe orders documents.
        measured: Keys of the sets that are measured.
        orders: Arm -> for each source what its order is like, for the report; only arms that order
            documents.
        rewrites: Arm -> for each source what became of its answers, for the report; only arms that
            rewrite them.
    """

    learn: EvaluationRows
    keep: EvaluationRows
    context: ContextPairs | None
    measured: list[str]
    orders: Mapping[str, list[dict[str, Any]]]
    rewrites: Mapping[str, list[dict[str, Any]]]

    def fingerprint(self, arm: str) -> list[str]:
        """Returns the keys of all sets that an arm reads, those it is measured on included."""
        return [*super().fingerprint(arm), *self.measured]


def prepare_data(
    config: Config, arms: Sequence[Arm], base: BaseModel, output: Path, console: Console
) -> DataSets:
    """Prepares all sets, or finds them prepared.

    Args:
        config: The experiment.
        arms: Its arms.
        base: The base model; its tokenizer is used.
        output: The run folder.
        console: Where to say what is done.

    Returns:
        The sets.

    Raises:
        ConfigError: The sets do not fit the run.
        DataError: A source cannot be used.
    """
    vocab_size = read_model_config(base.folder).vocab_size
    plain = partial(
        prepare,
        tokenizer=base.tokenizer,
        tokenizer_fingerprint=base.tokenizer_fingerprint,
        vocab_size=vocab_size,
        length=config.data.length,
        log=lambda line: console.print(line, style="dim", highlight=False),
    )

    def measured(
        name: str, section: SourceSection, split: Split | None, limit: int | None
    ) -> PreparedSet:
        # A measured document stands alone and counts once: its first row, so that many can be
        # measured.
        overlong = config.data.overlong
        return plain(
            output / "data" / name,
            source_spec(section),
            overlong="truncate" if overlong == "split" else overlong,
            split=split,
            limit_documents=smaller(limit, section.limit_documents),
            supervision=supervision(section, config.data.supervise),
        )

    def trained(suffix: str, section: SourceSection) -> PreparedSet:
        return plain(
            output / "data" / f"learn_train{suffix}",
            source_spec(section),
            overlong=config.data.overlong,
            attend=config.data.attend,
            split=kept,
            limit_documents=section.limit_documents,
            supervision=supervision(section, config.data.supervise),
        )

    held = Split("held_out", config.data.held_out, config.seed)
    kept = Split("train", config.data.held_out, config.seed)
    sections = config.data.learn
    suffixes = [""] if len(sections) == 1 else [f"_{number}" for number in range(len(sections))]
    sources = list(zip(suffixes, sections, strict=True))
    share = _per_source(config.evaluate.learn_documents, len(sections))
    held_out = [measured(f"learn_held_out{suffix}", one, held, share) for suffix, one in sources]
    keep, keep_keys = _keep_rows(config, base, output, console, measured)
    keys = [*(prepared.manifest["key"] for prepared in held_out), *keep_keys]
    train: dict[str, list[tuple[PreparedSet, float]]] = {}
    orders: dict[str, list[dict[str, Any]]] = {}
    rewrites: dict[str, list[dict[str, Any]]] = {}
    context: ContextPairs | None = None
    for arm in arms:
        if arm.config.sdft_rewrite is not None:
            rewriting = Rewriting(
                arm.config, arm.config.sdft_rewrite, base, output / "data" / "rewritten", console
            )
            train[arm.name], rewrites[arm.name] = rewriting.training_sets(kept, plain)
            continue
        if arm.config.in_context_pretraining is None:
            train[arm.name] = [(trained(suffix, one), one.weight) for suffix, one in sources]
            continue
        options, folder = arm.config.in_context_pretraining, output / "data" / "in_context"
        ordering = Ordering(config, options, base, folder, console)
        train[arm.name], orders[arm.name] = ordering.training_sets(kept, plain)
        if context is None:
            context = ordering.held_out_pairs(held, share)
            keys.append(context.fingerprint())
    learn = join_rows([_rows(prepared) for prepared in held_out])
    return DataSets(train, learn, keep, context, keys, orders, rewrites)


def _rows(prepared: PreparedSet) -> EvaluationRows:
    names = [document.id for document in prepared.documents]
    return rows_from_prepared(prepared, document_ids=names)


def _per_source(limit: int | None, sources: int) -> int | None:
    return None if limit is None else max(limit // sources, 1)


def _keep_rows(
    config: Config,
    base: BaseModel,
    output: Path,
    console: Console,
    make: Callable[..., PreparedSet],
) -> tuple[EvaluationRows, list[str]]:
    keep = config.data.keep
    if isinstance(keep, KeepDocuments):
        share = _per_source(config.evaluate.keep_documents, len(keep.sources))
        sets = [
            make(f"keep_{number}" if len(keep.sources) > 1 else "keep", section, None, share)
            for number, section in enumerate(keep.sources)
        ]
        rows = join_rows([_rows(prepared) for prepared in sets])
        return rows, [prepared.manifest["key"] for prepared in sets]
    return _own_answers(config, keep, base, output, console)


def _own_answers(
    config: Config, keep: OwnAnswers, base: BaseModel, output: Path, console: Console
) -> tuple[EvaluationRows, list[str]]:
    prompts = general_prompts() if keep.prompts == "builtin" else read_prompts(keep.prompts)
    limits = [limit for limit in (keep.limit_prompts, config.evaluate.keep_documents) if limit]
    if limits:
        prompts = dict(list(prompts.items())[: min(limits)])
    dtype = config.model.compute_dtype
    inputs = {
        "base": base.fingerprint,
        "prompts": prompts,
        "max_new_tokens": keep.max_new_tokens,
        "temperature": keep.temperature,
        "seed": config.seed,
        "compute_dtype": dtype,
    }
    if base.chat_template is not None:
        inputs["chat_template"] = base.chat_template

    def build(folder: Path) -> None:
        console.print(
            f"the base model answers {len(prompts)} general prompts: its keep set …",
            highlight=False,
        )
        # On this host's devices alone: of several hosts, one writes the answers.
        mesh = local_execution().mesh
        places = model_shardings(read_model_config(base.folder), mesh)
        imported = import_checkpoint(base.folder, dtype=jnp.dtype(dtype), shardings=places)
        with writing_progress(console, title="answers", total=len(prompts)) as on_progress:
            answers = write_answers(
                imported.config,
                imported.params,
                base.tokenizer,
                prompts,
                max_new_tokens=keep.max_new_tokens,
                sampling=Sampling(temperature=keep.temperature),
                seed=config.seed,
                compute_dtype=jnp.dtype(dtype),
                on_progress=on_progress,
            )
        records = [
            {
                "id": answer.id,
                "text": answer.text,
                "prompt_ids": list(map(int, answer.prompt_ids)),
                "answer_ids": list(map(int, answer.answer_ids)),
            }
            for answer in answers
        ]
        write_json(folder / "answers.json", records)

    folder = run_stage(output / "data" / "keep", inputs, build).folder
    records = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    sequences = [
        (record["id"], record["prompt_ids"] + record["answer_ids"], len(record["prompt_ids"]))
        for record in records
        if record["answer_ids"]
    ]
    longest = max(len(tokens) for _, tokens, _ in sequences)
    if longest > config.data.length:
        raise ConfigError(
            f"data.keep: the longest prompt with its answer has {longest} tokens, data.length is "
            f"{config.data.length}; lower data.keep.max_new_tokens or raise data.length"
        )
    rows = pack_scored(sequences, length=config.data.length)
    return rows, [rows.fingerprint()]


def read_prompts(path: str) -> dict[str, str]:
    """Reads prompts from a JSONL file with a `prompt` field, or from a text file, one a line.

    Args:
        path: The file.

    Returns:
        Id -> prompt.

    Raises:
        DataError: The file cannot be used.
    """
    jsonl = path.endswith((".jsonl", ".jsonl.gz"))
    columns = {"text": "prompt"} if jsonl else {}
    spec = SourceSpec(reference=path, columns=columns, unit="line")
    return {document.id: document.text for document in read_documents(spec)}
