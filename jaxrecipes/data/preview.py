"""What `jaxrecipes preview` shows: how a source is read, its lengths, and how rows look."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from jaxrecipes.data.documents import ROLES, Document, ItemType, ReadReport
from jaxrecipes.data.example_shapes import Shape
from jaxrecipes.data.example_sources import ALL_ROLES, find_shape, read_examples
from jaxrecipes.data.examples import Example
from jaxrecipes.data.pack import Fit, Overlong, PackedRows, pack, supervised_counts
from jaxrecipes.data.rows import Attend, Row, row_arrays
from jaxrecipes.data.sources import SourceSpec, read_documents, resolve_source
from jaxrecipes.data.split import Split, select_part
from jaxrecipes.data.tokenize import TokenizedDocument, Tokenizer, tokenize_documents
from jaxrecipes.data.tokenize_examples import ExampleTokenizer, Supervision, fit_length
from jaxrecipes.errors import DataError

PERCENTILES = (0, 25, 50, 75, 90, 99, 100)
EXAMPLE_STYLES: Mapping[bool, str] = {True: "green", False: "bright_black"}
_COLOURS = ("cyan", "green", "magenta", "yellow", "blue")


class DecodingTokenizer(Tokenizer, Protocol):
    """A tokenizer that also turns ids back into text."""

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        """Returns the text of token ids."""
        ...


@dataclass(frozen=True, eq=False)
class Preview:
    """What was found in a source.

    Attributes:
        reference: The source as the user wrote it.
        kind: Detected kind.
        shape: Shape of its rows, given or detected.
        files: Number of files.
        complete: False where only the first documents were read.
        report: Documents read, and those left out with the reasons.
        duplicates: Documents whose text stands in the source before.
        duplicate_ids: The first of them.
        lengths: [documents] int64 tokens a document.
        bytes: UTF-8 bytes of all texts.
        packed: The packed rows, None where packing stops with ``problem``.
        problem: Message of the error that preparation would end with.
        document_ids: Id of each document, as the rows count them.
        length: Tokens a row.
        attend: See ``pack``.
        examples: The first supervised examples as they are before any is cut; empty for documents.
    """

    reference: str
    kind: str
    shape: Shape
    files: int
    complete: bool
    report: ReadReport
    duplicates: int
    duplicate_ids: list[str]
    lengths: np.ndarray
    bytes: int
    packed: PackedRows | None
    problem: str | None
    document_ids: list[str]
    length: int
    attend: Attend
    examples: list[TokenizedDocument] = field(default_factory=list)


def preview_source(
    source: SourceSpec,
    tokenizer: Tokenizer,
    *,
    vocab_size: int,
    length: int,
    overlong: Overlong = "error",
    attend: Attend = "document",
    fit: Fit | None = None,
    split: Split | None = None,
    supervision: Supervision | None = None,
    maximum_documents: int = 2000,
) -> Preview:
    """Reads, tokenizes and packs the first documents of a source in memory.

    Args:
        source: The source.
        tokenizer: The model's tokenizer.
        vocab_size: The model's vocabulary.
        length: Tokens a row.
        overlong: See ``pack``.
        attend: See ``pack``.
        fit: See ``pack``.
        split: Side of a held-out split.
        supervision: See ``prepare``.
        maximum_documents: Documents to read at most.

    Raises:
        ConfigError: The source or an option is wrong.
        DataError: The source cannot be read. (A failure of packing, such as a document that is too
            long, is part of the preview.)
    """
    resolved = resolve_source(source, roles=ROLES if supervision is None else ALL_ROLES)
    shape: Shape = "documents"
    if supervision is not None:
        shape = find_shape(resolved, supervision.shape)
    report = ReadReport()
    packed, problem = None, None
    if supervision is not None and shape != "documents":
        rows = read_examples(resolved, report, shape=shape)
        examples, complete, duplicate_ids = _first(rows, split, maximum_documents)
        tokenize = ExampleTokenizer(tokenizer, vocab_size=vocab_size, turns=supervision.turns)
        tokenized, problem = _tokenize(examples, tokenize)
        overlong, whole = "error", tokenized
        try:
            tokenized = [
                fit_length(one, length, supervision.overlong, begin=tokenize.begin) for one in whole
            ]
        except DataError as error:
            problem = problem or str(error)
    else:
        whole = []
        documents: Iterator[Document] = read_documents(resolved, report)
        read, complete, duplicate_ids = _first(documents, split, maximum_documents)
        tokenized = list(
            tokenize_documents(
                read,
                tokenizer,
                vocab_size=vocab_size,
                truncate_length=length if overlong == "truncate" else None,
            )
        )
    if problem is None:
        try:
            packed = pack(tokenized, length=length, overlong=overlong, attend=attend, fit=fit)
        except DataError as error:
            problem = str(error)
    counted = whole or tokenized
    return Preview(
        reference=source.reference,
        kind=resolved.kind,
        shape=shape,
        files=len(resolved.paths),
        complete=complete,
        report=report,
        duplicates=len(duplicate_ids),
        duplicate_ids=duplicate_ids[:5],
        lengths=np.array([len(document.token_ids) for document in counted], np.int64),
        bytes=sum(document.byte_count for document in counted),
        packed=packed,
        problem=problem,
        document_ids=[document.id for document in tokenized],
        length=length,
        attend=attend,
        examples=whole,
    )


def _first(
    items: Iterator[ItemType], split: Split | None, maximum: int
) -> tuple[list[ItemType], bool, list[str]]:
    """Reads the first items; returns them, whether these are all, and the ids of duplicates."""
    if split is not None:
        items = select_part(items, split)
    read = list(islice(items, maximum))
    complete = next(items, None) is None
    seen: set[bytes] = set()
    duplicate_ids: list[str] = []
    for item in read:
        digest = hashlib.sha256(item.text.encode()).digest()
        if digest in seen:
            duplicate_ids.append(item.id)
        seen.add(digest)
    return read, complete, duplicate_ids


def _tokenize(
    examples: list[Example], tokenizer: ExampleTokenizer
) -> tuple[list[TokenizedDocument], str | None]:
    """Tokenizes examples up to the first that cannot be, and returns what is wrong with it."""
    tokenized = []
    for example in examples:
        try:
            tokenized.append(tokenizer(example))
        except DataError as error:
            return tokenized, str(error)
    return tokenized, None


def render_preview(
    preview: Preview, tokenizer: DecodingTokenizer, *, rows: int = 3, characters: int = 320
) -> RenderableType:
    """Renders a preview for a terminal.

    Args:
        preview: From ``preview_source``.
        tokenizer: Turns ids back into text.
        rows: Rows to show.
        characters: Characters of a segment to show: its beginning and its end.
    """
    parts: list[RenderableType] = [_summary(preview), _length_table(preview)]
    if preview.problem is not None:
        parts.append(Panel(Text(preview.problem), title="would stop here", border_style="red"))
    packed = preview.packed
    if preview.examples:
        parts += [
            Panel(
                example_text(example, tokenizer, characters=4 * characters),
                title=f"example {printable(example.id)}",
                title_align="left",
            )
            for example in preview.examples[:rows]
        ]
        parts.append(
            Text.assemble(
                ("green", EXAMPLE_STYLES[True]),
                ": supervised, the model learns to write it; ",
                ("grey", EXAMPLE_STYLES[False]),
                ": it only reads it",
            )
        )
    elif packed is not None:
        # Spread over the set: neighbouring rows are often pieces of one long document.
        for index in np.unique(np.linspace(0, len(packed) - 1, rows).astype(int)).tolist():
            text = row_text(
                packed[index],
                preview.document_ids,
                tokenizer,
                length=preview.length,
                attend=preview.attend,
                characters=characters,
            )
            count = len(packed[index].segments)
            title = f"row {index}: {count} document{'s' * (count != 1)}"
            parts.append(Panel(text, title=title, title_align="left"))
        parts.append(
            Text.assemble(
                "one colour a document; ",
                ("grey and struck through", "bright_black strike"),
                ": not a target of the loss; ",
                ("[...]", "reverse"),
                ": document id and place",
            )
        )
    return Group(*parts)


def example_text(
    example: TokenizedDocument, tokenizer: DecodingTokenizer, *, characters: int = 1280
) -> Text:
    """Renders one supervised example: green what is supervised, grey what is not.

    Args:
        example: A tokenized example.
        tokenizer: Turns ids back into text.
        characters: Characters to show: the beginning and the end.
    """
    targets = np.zeros(len(example.token_ids), bool)
    if example.supervised is not None:
        targets[1:] = example.supervised[1:]
    return _segment_text(example.token_ids, targets, tokenizer, EXAMPLE_STYLES, characters)


def row_text(
    row: Row,
    document_ids: Sequence[str],
    tokenizer: DecodingTokenizer,
    *,
    length: int,
    attend: Attend,
    characters: int = 320,
) -> Text:
    """Renders one row: a colour a document, ids at boundaries, tokens that are no targets grey."""
    arrays = row_arrays(row, length=length, attend=attend)
    text = Text()
    start = 0
    for number, (document, offset, tokens) in enumerate(row.segments.tolist()):
        if number:
            text.append("\n")
        place = f"[{printable(document_ids[int(document)])}, tokens {offset}-{offset + tokens - 1}]"
        text.append(place, style="reverse")
        text.append(" ")
        colour = _COLOURS[number % len(_COLOURS)]
        segment = slice(start, start + tokens)
        text.append_text(
            _segment_text(
                arrays["token_ids"][segment],
                arrays["loss_mask"][segment],
                tokenizer,
                {True: colour, False: "bright_black strike"},
                characters,
            )
        )
        start += tokens
    if start < length:
        text.append(f"\n[{length - start} padding]", style="bright_black")
    return text


def printable(text: str) -> str:
    """Makes control characters visible, so that no document can steer the terminal."""
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else chr(0x2400 + ord(character))  # the Unicode pictures of the control codes
        if ord(character) < 0x20
        else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def _segment_text(
    token_ids: np.ndarray,
    targets: np.ndarray,
    tokenizer: DecodingTokenizer,
    styles: Mapping[bool, str],
    characters: int,
) -> Text:
    text = Text()
    changes = np.flatnonzero(np.diff(targets.astype(np.int8))) + 1
    for run in np.split(np.arange(len(token_ids)), changes):
        decoded = str(tokenizer.decode(token_ids[run].tolist(), skip_special_tokens=False))
        text.append(printable(decoded), style=styles[bool(targets[run[0]])])
    if len(text) <= characters:
        return text
    half = characters // 2
    return Text.assemble(text[:half], (" ... ", "bright_black"), text[len(text) - half :])


def _summary(preview: Preview) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    files = f", {preview.files} file{'s' * (preview.files != 1)}" if preview.files else ""
    table.add_row("source", Text(printable(f"{preview.reference} ({preview.kind}{files})")))
    if preview.shape != "documents":
        table.add_row("shape", preview.shape)
    columns = ", ".join(f"{role}: {column}" for role, column in preview.report.columns.items())
    if columns:
        table.add_row("columns", Text(printable(f"{{{columns}}}")))
    read = f"{len(preview.lengths):,}"
    what = "documents" if preview.shape == "documents" else "examples"
    table.add_row(what, read if preview.complete else f"first {read} (there are more)")
    tokens = int(preview.lengths.sum())
    ratio = preview.bytes / tokens if tokens else 0.0
    table.add_row("tokens", f"{tokens:,} ({preview.bytes:,} bytes, {ratio:.2f} bytes a token)")
    changes = {**preview.report.dropped}
    if preview.packed is not None:
        changes |= preview.packed.dropped.dropped
    examples = preview.report.examples | (
        preview.packed.dropped.examples if preview.packed is not None else {}
    )
    for reason, count in changes.items():
        table.add_row(
            "left out or cut", Text(printable(f"{count:,} {reason}: {', '.join(examples[reason])}"))
        )
    shown = f": {', '.join(preview.duplicate_ids)}" if preview.duplicates else ""
    table.add_row("exact duplicates", Text(printable(f"{preview.duplicates:,}{shown}")))
    if preview.packed is not None:
        packed = preview.packed
        places = len(packed) * preview.length
        targets = int(supervised_counts(packed, preview.attend).sum())
        table.add_row(
            "rows", f"{len(packed):,} of {preview.length} tokens, attend: {preview.attend}"
        )
        table.add_row("supervised", f"{100 * targets / len(packed.token_ids):.1f} % of the tokens")
        table.add_row(
            "padding", f"{100 * (1 - len(packed.token_ids) / places):.2f} % of the places"
        )
    return table


def _length_table(preview: Preview) -> Table:
    what = "document" if preview.shape == "documents" else "example"
    table = Table(title=f"tokens a {what}", title_justify="left")
    names = {0: "shortest", 50: "median", 100: "longest"}
    for percentile in PERCENTILES:
        table.add_column(names.get(percentile, f"{percentile} %"), justify="right")
    table.add_column(f"over {preview.length}", justify="right")
    if len(preview.lengths):
        values = np.percentile(preview.lengths, PERCENTILES).astype(int)
        over = int((preview.lengths > preview.length).sum())
        table.add_row(*(f"{value:,}" for value in values), f"{over:,}")
    return table
