"""Preparation: documents of a source become a prepared set, once, killable at any moment.

Documents are read in order and packed in blocks of about ``BLOCK_TOKENS`` tokens; each block is one
shard. Finished blocks are committed to ``.<name>.partial`` beside the set, so a rerun after a kill
goes on after the last of them and ends with the same bytes as a run that was never killed.
"""

from __future__ import annotations

import heapq
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxrecipes.data.documents import ROLES, Document, ItemType, ReadReport
from jaxrecipes.data.example_sources import ALL_ROLES, find_shape, read_examples
from jaxrecipes.data.pack import Fit, Overlong, pack, resolve_fit
from jaxrecipes.data.partial import PROGRESS, PartialSet, digest_ids
from jaxrecipes.data.rows import Attend, token_dtype
from jaxrecipes.data.sources import (
    ResolvedSource,
    SourceSpec,
    read_documents,
    resolve_source,
    source_fingerprint,
)
from jaxrecipes.data.split import Split, select_part, stable_fraction
from jaxrecipes.data.store import (
    MANIFEST,
    SCHEMA_VERSION,
    PreparedSet,
    explain_miss,
    find_damage,
    read_set_manifest,
    set_key,
)
from jaxrecipes.data.tokenize import (
    TokenizedDocument,
    Tokenizer,
    end_token,
    tokenize_documents,
)
from jaxrecipes.data.tokenize_examples import ExampleTokenizer, Supervision, tokenize_examples
from jaxrecipes.durable import hash_file, locked, replace_folder, write_errors
from jaxrecipes.errors import ConfigError, DataError

BLOCK_TOKENS = 2**24
"""Tokens packed at a time: bounds memory (about 0.5 GB) and the work that a kill can cost."""

# The files whose code decides the bytes of a set; a change in any of them makes a new set.
_SHAPING_CODE = [
    "documents.py",
    "files.py",
    "installed.py",
    "libraries.py",
    "pack.py",
    "partial.py",
    "prepare.py",
    "rows.py",
    "sources.py",
    "split.py",
    "store.py",
    "tokenize.py",
]
# The same for supervised examples; documents do not depend on these.
_SUPERVISED_CODE = [
    "chat_template.py",
    "docstring_task.py",
    "example_rows.py",
    "example_shapes.py",
    "example_sources.py",
    "examples.py",
    "marks.py",
    "render.py",
    "tokenize_examples.py",
]


def prepare(
    folder: str | Path,
    source: SourceSpec,
    tokenizer: Tokenizer,
    *,
    tokenizer_fingerprint: str,
    vocab_size: int,
    length: int,
    overlong: Overlong = "error",
    attend: Attend = "document",
    fit: Fit | None = None,
    split: Split | None = None,
    limit_documents: int | None = None,
    supervision: Supervision | None = None,
    log: Callable[[str], None] | None = None,
    block_tokens: int = BLOCK_TOKENS,
) -> PreparedSet:
    """Prepares a set, or opens it where it is there already with the same key.

    Args:
        folder: Where the set is to be; a set with another key in it is replaced when the new one is
            complete, any other content is refused.
        source: Where the documents come from.
        tokenizer: The model's tokenizer.
        tokenizer_fingerprint: Hash of the tokenizer, part of the key.
        vocab_size: Entries of the model's embedding; ids must be below it.
        length: Tokens a row.
        overlong: See ``pack``.
        attend: See ``pack``.
        fit: See ``pack``.
        split: Keep one side of a held-out split.
        limit_documents: Keep at most this many documents (after the split): those with the smallest
            hash of their id, so the choice does not depend on their order.
        supervision: The source holds supervised examples, rendered and masked like this; `overlong`
            is then the supervision's own. None: documents. Where its shape is None and the source
            turns out to hold documents, it is as if it were None.
        log: Called with one line a block, and with the reasons where an old set is not used.
        block_tokens: Tokens a shard.

    Returns:
        The open set; ``reused`` tells whether it was there already.

    Raises:
        ConfigError: An option is wrong.
        DataError: The source or its texts cannot be used; see the readers, ``tokenize`` and
            ``pack``.
        JaxrecipesError: The folder cannot be written (rights, disk full).
    """
    folder = Path(folder)
    say = log if log is not None else _silent
    options = {
        "length": length,
        "overlong": overlong,
        "attend": attend,
        "fit": resolve_fit(length=length, overlong=overlong, attend=attend, fit=fit),
        "limit_documents": limit_documents,
        "split": None if split is None else [split.part, split.held_out, split.seed],
        "block_tokens": block_tokens,
    }
    eos = end_token(tokenizer, vocab_size)
    resolved = resolve_source(source, roles=ROLES if supervision is None else ALL_ROLES)
    if supervision is not None:
        shape = find_shape(resolved, supervision.shape)
        supervision = None if shape == "documents" else replace(supervision, shape=shape)
    if supervision is not None:
        if attend != "document":
            raise ConfigError(
                f"{source.reference}: supervised examples must not see each other in a row, so "
                f"attend: {attend} cannot be used with them; expected attend: document."
            )
        # Examples fit into a row before they are packed.
        options["overlong"] = supervision.overlong
    parts = {
        "source": source_fingerprint(resolved),
        "tokenizer": {
            "fingerprint": tokenizer_fingerprint,
            "vocab_size": str(vocab_size),
            "eos": str(eos),
        },
        "options": {name: json.dumps(value) for name, value in options.items()},
        "code": _code(_SHAPING_CODE if supervision is None else _SHAPING_CODE + _SUPERVISED_CODE),
    }
    if supervision is not None:
        parts["supervision"] = supervision.key(tokenizer)
    with write_errors(folder, "the prepared set"), locked(folder, say):
        ready = _existing(folder, parts, say)
        if ready is not None:
            return ready
        growing = folder.with_name(f".{folder.name}.partial")
        work = PartialSet.open(growing, set_key(parts), say)
        report = ReadReport()
        if supervision is None:
            documents = select_documents(resolved, split, limit_documents, report)
            tokenized = tokenize_documents(
                _skip_finished(documents, work, say),
                tokenizer,
                vocab_size=vocab_size,
                truncate_length=length if overlong == "truncate" else None,
            )
        else:
            read = partial(read_examples, resolved, shape=supervision.shape)
            examples = select(read, split, limit_documents, report)
            tokenized = tokenize_examples(
                _skip_finished(examples, work, say),
                ExampleTokenizer(tokenizer, vocab_size=vocab_size, turns=supervision.turns),
                length=length,
                overlong=supervision.overlong,
            )
            overlong = "error"
        for block in _blocks(tokenized, block_tokens):
            packed = pack(block, length=length, overlong=overlong, attend=attend, fit=fit)
            work.commit(block, packed, attend=attend, dtype=token_dtype(vocab_size))
            say(
                f"{folder.name}: {work.total('documents')} documents, {work.total('tokens')} "
                f"tokens, {work.total('rows')} rows"
            )
        if not work.blocks:
            raise DataError(
                f"{source.reference}: no document is left"
                + (f" on the {split.part} side of the split" if split is not None else "")
                + "; expected at least one. Use more documents or another held-out share."
            )
        manifest = _manifest(work, parts, options, vocab_size, tokenizer_fingerprint, eos)
        manifest["left_out_of_source"] = _counted(report.dropped, report.examples)
        if supervision is not None:
            manifest["shape"], manifest["columns"] = supervision.shape, report.columns
            _say_supervised(folder.name, manifest, say)
        work.finish(manifest, folder)
    return PreparedSet(folder, manifest)


def _existing(
    folder: Path, parts: Mapping[str, Mapping[str, str]], say: Callable[[str], None]
) -> PreparedSet | None:
    if folder.exists() and not (folder / MANIFEST).exists() and any(folder.iterdir()):
        raise DataError(
            f"{folder}: the folder is not empty and holds no prepared set; it is left as it is. "
            "Give another folder, or empty it."
        )
    partial = folder.with_name(f".{folder.name}.partial")
    for place in (folder, partial):
        if not (place / MANIFEST).exists():
            continue
        try:
            manifest = read_set_manifest(place)
        except DataError as error:
            say(f"not used: {error}")
            continue
        if manifest["key"] != set_key(parts):
            reasons = explain_miss(manifest.get("key_parts", {}), parts)
            if place == folder:
                say(f"{folder}: prepared again, because " + "; ".join(reasons))
            continue
        damage = find_damage(place, manifest, verify=True)
        if damage is not None:
            if place == folder:
                say(f"{folder}: prepared again, because {damage}")
            continue
        if place == partial:
            # A run was killed between its last write and the move.
            for leftover in [*partial.glob("documents-*.jsonl"), partial / PROGRESS]:
                leftover.unlink(missing_ok=True)
            replace_folder(partial, folder)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(folder.with_name(f".{folder.name}.earlier"), ignore_errors=True)
        return PreparedSet(folder, manifest, reused=True)
    return None


def select_documents(
    source: ResolvedSource, split: Split | None, limit: int | None, report: ReadReport
) -> Iterator[Document]:
    """Yields the documents of a source that `prepare` would pack, in the source's order.

    Args:
        source: Where they come from.
        split: Keep one side of a held-out split.
        limit: Keep at most so many, those with the smallest hash of their id.
        report: Filled with counts while reading.
    """
    return select(partial(read_documents, source), split, limit, report)


def select(
    read: Callable[[ReadReport], Iterable[ItemType]],
    split: Split | None,
    limit: int | None,
    report: ReadReport,
) -> Iterator[ItemType]:
    """Yields the items of a source that `prepare` would pack, in the source's order.

    Args:
        read: Reads all of them (twice, where there is a limit) and fills a report.
        split: Keep one side of a held-out split.
        limit: Keep at most so many, those with the smallest hash of their id.
        report: Filled with counts while reading.
    """

    def items(report: ReadReport) -> Iterable[ItemType]:
        everything = read(report)
        return everything if split is None else select_part(everything, split)

    if limit is None:
        yield from items(report)
        return
    ranked = (
        (stable_fraction(item.id, 0), place) for place, item in enumerate(items(ReadReport()))
    )
    chosen = {place for _, place in heapq.nsmallest(limit, ranked)}
    for place, item in enumerate(items(report)):
        if place in chosen:
            yield item


def _skip_finished(
    documents: Iterator[ItemType], work: PartialSet, say: Callable[[str], None]
) -> Iterator[ItemType]:
    """Skips what finished blocks hold, after checking that the source still brings the same."""
    finished = iter(work.blocks[:])
    skipped: list[ItemType] = []
    for block in finished:
        part = [d for _, d in zip(range(block["documents_read"]), documents, strict=False)]
        skipped.extend(part)
        if digest_ids([d.id for d in part]) != block["digest"]:
            say("the source brought other documents than before the interruption: starting anew")
            work.restart()
            yield from skipped
            break
    yield from documents


def _blocks(
    documents: Iterator[TokenizedDocument], block_tokens: int
) -> Iterator[list[TokenizedDocument]]:
    block: list[TokenizedDocument] = []
    tokens = 0
    for document in documents:
        block.append(document)
        tokens += len(document.token_ids)
        if tokens >= block_tokens:
            yield block
            block, tokens = [], 0
    if block:
        yield block


def _manifest(
    work: PartialSet,
    parts: Mapping[str, Mapping[str, str]],
    options: Mapping[str, Any],
    vocab_size: int,
    tokenizer_fingerprint: str,
    eos: int,
) -> dict[str, Any]:
    changed: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for block in work.blocks:
        changed.update(block["changed"])
        for reason, ids in block["examples"].items():
            examples[reason] = (examples.get(reason, []) + ids)[:5]
    rows, length = work.total("rows"), options["length"]
    tokens = work.total("tokens")
    return {
        "schema_version": SCHEMA_VERSION,
        "key": set_key(parts),
        "key_parts": parts,
        "length": length,
        "attend": options["attend"],
        "options": dict(options),
        "token_dtype": token_dtype(vocab_size).str,
        "vocab_size": vocab_size,
        "max_token_id": max(block["max_token_id"] for block in work.blocks),
        "eos_token_id": eos,
        "tokenizer_fingerprint": tokenizer_fingerprint,
        "rows": rows,
        "documents": work.total("documents"),
        "documents_read": work.total("documents_read"),
        "tokens": tokens,
        "supervised_tokens": work.total("supervised_tokens"),
        "padding_tokens": rows * length - tokens,
        "bytes": work.total("bytes"),
        "max_segments": max(block["max_segments"] for block in work.blocks),
        "overlong": _counted(changed, examples),
        "shards": [block["shard"] for block in work.blocks],
    }


def _counted(counts: Mapping[str, int], examples: Mapping[str, list[str]]) -> dict[str, Any]:
    return {
        reason: {"documents": count, "examples": examples[reason]}
        for reason, count in sorted(counts.items())
    }


def _code(names: list[str]) -> dict[str, str]:
    return {name: hash_file(Path(__file__).parent / name) for name in names}


def _say_supervised(name: str, manifest: Mapping[str, Any], say: Callable[[str], None]) -> None:
    supervised, tokens = manifest["supervised_tokens"], manifest["tokens"]
    say(
        f"{name}: {supervised} of {tokens} tokens are supervised "
        f"({100 * supervised / tokens:.1f} %); shape: {manifest['shape']}, "
        + ", ".join(f"{role}: {column}" for role, column in manifest["columns"].items())
    )
    for part in ("left_out_of_source", "overlong"):
        for reason, entry in manifest[part].items():
            shown = ", ".join(entry["examples"])
            say(f"{name}: {entry['documents']} examples {reason}: {shown}")


def _silent(_: str) -> None:
    return None
