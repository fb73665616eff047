"""Preparation: documents of a source become a prepared set, once, killable at any moment.

Documents are read in order and packed in blocks of about ``BLOCK_TOKENS`` tokens; each block is one
shard. Finished blocks are committed to ``.<name>.partial`` beside the set, so a rerun after a kill goes
on after the last of them and ends with the same bytes as a run that was never killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import heapq
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxrecipes.data.documents import Document, ReadReport
from jaxrecipes.data.pack import Fit, Overlong, PackedRows, check_supervised, pack, resolve_fit
from jaxrecipes.data.rows import Attend, encode_row, token_dtype
from jaxrecipes.data.sources import (
    ResolvedSource,
    SourceSpec,
    hash_file,
    read_documents,
    resolve_source,
    source_fingerprint,
)
from jaxrecipes.data.split import Split, select_part, stable_fraction
from jaxrecipes.data.store import (
    DOCUMENTS,
    MANIFEST,
    SCHEMA_VERSION,
    PreparedSet,
    explain_miss,
    find_damage,
    read_manifest,
    set_key,
)
from jaxrecipes.data.tokenize import (
    TokenizedDocument,
    Tokenizer,
    end_token,
    tokenize_documents,
)
from jaxrecipes.errors import DataError, JaxrecipesError

BLOCK_TOKENS = 2**24
"""Tokens packed at a time: bounds memory (about 0.5 GB) and the work that a kill can cost."""

_PROGRESS = "progress.json"
# The files whose code decides the bytes of a set; a change in any of them makes a new set.
_SHAPING_CODE = (
    "documents.py files.py installed.py libraries.py pack.py prepare.py rows.py sources.py split.py "
    "store.py tokenize.py"
).split()


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
        log: Called with one line a block, and with the reasons where an old set is not used.
        block_tokens: Tokens a shard.

    Returns:
        The open set; ``reused`` tells whether it was there already.

    Raises:
        ConfigError: An option is wrong.
        DataError: The source or its texts cannot be used; see the readers, ``tokenize`` and ``pack``.
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
    resolved = resolve_source(source)
    parts = {
        "source": source_fingerprint(resolved),
        "tokenizer": {
            "fingerprint": tokenizer_fingerprint,
            "vocab_size": str(vocab_size),
            "eos": str(eos),
        },
        "options": {name: json.dumps(value) for name, value in options.items()},
        "code": {name: hash_file(Path(__file__).parent / name) for name in _SHAPING_CODE},
    }
    with _write_errors(folder), _locked(folder, say):
        ready = _existing(folder, parts, say)
        if ready is not None:
            return ready
        partial = folder.with_name(f".{folder.name}.partial")
        work = _Work.open(partial, set_key(parts), say)
        documents = _selected(resolved, split, limit_documents)
        tokenized = tokenize_documents(
            _skip_finished(documents, work, say),
            tokenizer,
            vocab_size=vocab_size,
            truncate_length=length if overlong == "truncate" else None,
        )
        for block in _blocks(tokenized, block_tokens):
            packed = pack(block, length=length, overlong=overlong, attend=attend, fit=fit)
            work.commit(block, packed, attend=attend, dtype=token_dtype(vocab_size))
            say(
                f"{folder.name}: {work.total('documents')} documents, {work.total('tokens')} tokens, "
                f"{work.total('rows')} rows"
            )
        if not work.blocks:
            raise DataError(
                f"{source.reference}: no document is left"
                + (f" on the {split.part} side of the split" if split is not None else "")
                + "; expected at least one. Use more documents or another held-out share."
            )
        manifest = _manifest(work, parts, options, vocab_size, tokenizer_fingerprint, eos)
        work.finish(manifest, folder)
    return PreparedSet(folder, manifest)


class _Work:
    """The folder in which a set grows, one committed block after the other."""

    def __init__(self, folder: Path, key: str, blocks: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.key = key
        self.blocks = blocks

    @classmethod
    def open(cls, folder: Path, key: str, say: Callable[[str], None]) -> _Work:
        """Goes on with the blocks that a killed run left, where they are of the same key and whole."""
        blocks: list[dict[str, Any]] = []
        try:
            progress = json.loads((folder / _PROGRESS).read_bytes())
            if progress["key"] == key:
                for block in progress["blocks"]:
                    if any(
                        hash_file(folder / block[part]["name"]) != block[part]["sha256"]
                        for part in ("shard", "listing")
                    ):
                        break
                    blocks.append(block)
        except (OSError, ValueError, KeyError, TypeError, DataError):
            blocks = []
        if blocks:
            say(f"going on after {len(blocks)} finished blocks in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, key, blocks)

    def restart(self) -> None:
        """Forgets all finished blocks."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self.blocks = []

    def total(self, name: str) -> int:
        """Returns the sum of a count over the finished blocks."""
        return sum(int(block[name]) for block in self.blocks)

    def commit(
        self,
        documents: list[TokenizedDocument],
        packed: PackedRows,
        *,
        attend: Attend,
        dtype: np.dtype,
    ) -> None:
        """Writes a block's shard and document listing, then the progress file that counts them."""
        number = len(self.blocks)
        first_row, first_document = self.total("rows"), self.total("documents")
        ids = [document.id for document in documents]
        supervised = check_supervised(packed, attend, ids, first_row)
        # Documents without a token in the rows (dropped) are not listed: number the others.
        listed = packed.kept_tokens > 0
        new_index = np.cumsum(listed) - 1 + first_document
        shard = self.folder / f"rows-{number:05d}.array_record"
        _write_shard(shard, packed, new_index, dtype)
        listing = self.folder / f"documents-{number:05d}.jsonl"
        _write_listing(listing, documents, packed, first_row)
        segment_rows = np.repeat(np.arange(len(packed)), np.diff(packed.segment_ends, prepend=0))
        self.blocks.append(
            {
                "shard": {**_file_entry(shard), "rows": len(packed)},
                "listing": _file_entry(listing),
                "documents_read": len(documents),
                "digest": _digest_ids(ids),
                "documents": int(listed.sum()),
                "rows": len(packed),
                "tokens": len(packed.token_ids),
                "supervised_tokens": supervised,
                "bytes": int(packed.kept_bytes.sum()),
                "max_token_id": int(packed.token_ids.max()),
                "max_segments": int(np.bincount(segment_rows).max()),
                "changed": dict(packed.dropped.dropped),
                "examples": packed.dropped.examples,
            }
        )
        _write_json(self.folder / _PROGRESS, {"key": self.key, "blocks": self.blocks})

    def finish(self, manifest: dict[str, Any], target: Path) -> None:
        """Joins the listings, writes the manifest and moves the folder into place."""
        _write_documents(self)
        manifest["documents_file"] = _file_entry(self.folder / DOCUMENTS)
        _write_json(self.folder / MANIFEST, manifest)
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        # From here on the partial folder is a complete set; its helpers go before it is moved.
        for block in self.blocks:
            (self.folder / block["listing"]["name"]).unlink(missing_ok=True)
        (self.folder / _PROGRESS).unlink()
        _sync(self.folder)
        if target.exists():
            target.rename(old)
        self.folder.rename(target)
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)


def _existing(
    folder: Path, parts: Mapping[str, Mapping[str, str]], say: Callable[[str], None]
) -> PreparedSet | None:
    if folder.exists() and not (folder / MANIFEST).exists() and any(folder.iterdir()):
        raise DataError(
            f"{folder}: the folder is not empty and holds no prepared set; it is left as it is. Give "
            "another folder, or empty it."
        )
    partial = folder.with_name(f".{folder.name}.partial")
    for place in (folder, partial):
        if not (place / MANIFEST).exists():
            continue
        try:
            manifest = read_manifest(place)
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
            if (folder / MANIFEST).exists():
                shutil.rmtree(folder)
            for leftover in [*partial.glob("documents-*.jsonl"), partial / _PROGRESS]:
                leftover.unlink(missing_ok=True)
            partial.rename(folder)
            _sync(folder.parent)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(folder.with_name(f".{folder.name}.old"), ignore_errors=True)
        return PreparedSet(folder, manifest, reused=True)
    return None


def _selected(source: ResolvedSource, split: Split | None, limit: int | None) -> Iterator[Document]:
    def documents() -> Iterator[Document]:
        everything = read_documents(source, ReadReport())
        return everything if split is None else select_part(everything, split)

    if limit is None:
        yield from documents()
        return
    ranked = ((stable_fraction(d.id, 0), place) for place, d in enumerate(documents()))
    chosen = {place for _, place in heapq.nsmallest(limit, ranked)}
    for place, document in enumerate(documents()):
        if place in chosen:
            yield document


def _skip_finished(
    documents: Iterator[Document], work: _Work, say: Callable[[str], None]
) -> Iterator[Document]:
    """Skips what finished blocks hold, after checking that the source still brings the same."""
    finished = iter(work.blocks[:])
    skipped: list[Document] = []
    for block in finished:
        part = [d for _, d in zip(range(block["documents_read"]), documents, strict=False)]
        skipped.extend(part)
        if _digest_ids([d.id for d in part]) != block["digest"]:
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
    work: _Work,
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
        "overlong": {
            reason: {"documents": count, "examples": examples[reason]}
            for reason, count in sorted(changed.items())
        },
        "shards": [block["shard"] for block in work.blocks],
    }


def _write_shard(
    path: Path, packed: PackedRows, document_numbers: np.ndarray, dtype: np.dtype
) -> None:
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    # One record a group is what random access needs; compression gains little on token ids (measured:
    # 0 % on random ids) and is deterministic, so it is left at its default.
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for row in packed:
        segments = row.segments.copy()
        segments[:, 0] = document_numbers[segments[:, 0]]
        writer.write(encode_row(type(row)(row.token_ids, segments, row.supervised), dtype))
    writer.close()
    reader = ArrayRecordReader(str(path))
    written = reader.num_records()
    reader.close()
    if written != len(packed):  # a full disk shows here: the writer itself does not always raise
        raise OSError(f"{path}: {written} of {len(packed)} rows were written")
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_listing(
    path: Path, documents: list[TokenizedDocument], packed: PackedRows, first_row: int
) -> None:
    places: dict[int, list[list[int]]] = {}
    first = 0
    for row, end in enumerate(packed.segment_ends.tolist()):
        for document, offset, tokens in packed.segments[first:end].tolist():
            places.setdefault(document, []).append([first_row + row, offset, tokens])
        first = end
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for index in sorted(places):
            line = {
                "id": documents[index].id,
                "bytes": int(packed.kept_bytes[index]),
                "tokens": int(packed.kept_tokens[index]),
                "rows": sorted(places[index], key=lambda place: place[1]),
            }
            file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _write_documents(work: _Work) -> None:
    with (work.folder / DOCUMENTS).open("wb") as target:
        for block in work.blocks:
            with (work.folder / block["listing"]["name"]).open("rb") as part:
                shutil.copyfileobj(part, target)
        target.flush()
        os.fsync(target.fileno())


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        json.dump(value, file, indent=1, sort_keys=True, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    _sync(path.parent)


def _file_entry(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": hash_file(path)}


def _digest_ids(ids: list[str]) -> str:
    return hashlib.sha256("\x00".join(ids).encode()).hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Lets one process at a time prepare a folder; the kernel drops the lock of a killed one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{folder}: another process prepares this set; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JaxrecipesError(
            f"{folder}: the prepared set cannot be written ({error.strerror or error}). Check the rights "
            "and the free space (df -h), then run the same command again: finished blocks are kept."
        ) from None


def _silent(_: str) -> None:
    return None
