"""The folder in which a prepared set grows: one committed block after the other.

A block is a shard of rows and a listing of its documents. ``progress.json`` counts the blocks that
are whole; it is replaced atomically after each, so a kill costs at most the block in the making.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxrecipes.data.pack import PackedRows, check_supervised
from jaxrecipes.data.rows import Attend, Row, encode_row
from jaxrecipes.data.store import DOCUMENTS, MANIFEST
from jaxrecipes.data.tokenize import TokenizedDocument
from jaxrecipes.durable import file_entry, hash_file, replace_folder, synchronise, write_json
from jaxrecipes.errors import DataError

PROGRESS = "progress.json"


class PartialSet:
    """A set in the making.

    Attributes:
        folder: Where it grows.
        key: Key of the set that is to be.
        blocks: What is known of each finished block.
    """

    def __init__(self, folder: Path, key: str, blocks: list[dict[str, Any]]) -> None:
        """Starts with the given finished blocks; use ``open``."""
        self.folder = folder
        self.key = key
        self.blocks = blocks

    @classmethod
    def open(cls, folder: Path, key: str, say: Callable[[str], None]) -> PartialSet:
        """Goes on with the blocks that a killed run left, if their key is the same."""
        blocks: list[dict[str, Any]] = []
        try:
            progress = json.loads((folder / PROGRESS).read_bytes())
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
                "shard": {**file_entry(shard), "rows": len(packed)},
                "listing": file_entry(listing),
                "documents_read": len(documents),
                "digest": digest_ids(ids),
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
        write_json(self.folder / PROGRESS, {"key": self.key, "blocks": self.blocks})

    def finish(self, manifest: dict[str, Any], target: Path) -> None:
        """Joins the listings, writes the manifest and moves the folder into place."""
        _write_documents(self)
        manifest["documents_file"] = file_entry(self.folder / DOCUMENTS)
        write_json(self.folder / MANIFEST, manifest)
        # From here on the partial folder is a complete set; its helpers go before it is moved.
        for block in self.blocks:
            (self.folder / block["listing"]["name"]).unlink(missing_ok=True)
        (self.folder / PROGRESS).unlink()
        synchronise(self.folder)
        replace_folder(self.folder, target)


def _write_shard(
    path: Path, packed: PackedRows, document_numbers: np.ndarray, dtype: np.dtype
) -> None:
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    # One record a group is what random access needs; compression gains little on token ids
    # (measured: 0 % on random ids) and is deterministic, so it is left at its default.
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for row in packed:
        segments = row.segments.copy()
        segments[:, 0] = document_numbers[segments[:, 0]]
        writer.write(encode_row(Row(row.token_ids, segments, row.supervised), dtype))
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


def _write_documents(work: PartialSet) -> None:
    with (work.folder / DOCUMENTS).open("wb") as target:
        for block in work.blocks:
            with (work.folder / block["listing"]["name"]).open("rb") as part:
                shutil.copyfileobj(part, target)
        target.flush()
        os.fsync(target.fileno())


def digest_ids(ids: list[str]) -> str:
    """Returns a hash of document ids in their order."""
    return hashlib.sha256("\x00".join(ids).encode()).hexdigest()
