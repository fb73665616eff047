"""Unlabelled texts that know where they come from, and texts that should not be among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from jaxrecipes.data.documents import ChangedRows, Document, DocumentRows, ReadReport
from jaxrecipes.data.examples import Labelled
from jaxrecipes.data.sources import (
    TABLE_KINDS,
    SourceSpec,
    read_documents,
    read_rows,
    resolve_source,
)
from jaxrecipes.errors import DataError

_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class PlainText:
    """A text, or the two of a pair, without a label.

    Attributes:
        texts: One text or two.
        where: File and line, for messages.
    """

    texts: tuple[str, ...]
    where: str


def read_plain_texts(spec: SourceSpec, limit: int | None = None) -> list[PlainText]:
    """Reads a source of documents.

    Args:
        spec: The source.
        limit: Read at most so many; None for all.

    Returns:
        Its texts in order; empty ones are left out.

    Raises:
        ConfigError: The specification is wrong.
        DataError: The input is missing or damaged, or no text is in it.
    """
    source = resolve_source(spec)
    if source.kind in TABLE_KINDS:
        documents: Iterable[Document] = read_rows(
            source, ChangedRows(DocumentRows(spec.columns, ReadReport()), _placed)
        )
    else:  # their ids say the place already
        documents = read_documents(source)
    found = [PlainText((one.text,), one.id) for one in islice(documents, limit)]
    if not found:
        raise DataError(f"{spec.reference}: there are no texts; expected at least one.")
    return found


def _placed(document: Document | None, where: str) -> Document | None:
    """Gives a document file and line as its id."""
    return None if document is None else replace(document, id=where)


def without_labels(examples: Iterable[Labelled]) -> list[PlainText]:
    """Returns the texts of labelled rows."""
    return [PlainText(example.texts, example.where) for example in examples]


def normalise(text: str) -> str:
    """Makes texts equal that differ in case or white space only."""
    return " ".join(text.split()).casefold()


def text_key(texts: Sequence[str]) -> str:
    """Returns what two texts, or pairs, have in common where they count as equal."""
    return "\n".join(map(normalise, texts))


@dataclass(frozen=True)
class Overlap:
    """A text that stands in two places.

    Attributes:
        text: Its beginning.
        where: File and line in what is read.
        held_out: File and line among the rows that should not be read.
    """

    text: str
    where: str
    held_out: str


def find_overlaps(read: Iterable[PlainText], held_out: Iterable[PlainText]) -> list[Overlap]:
    """Finds texts that should not be read among those that are.

    Texts are equal up to case and white space. A pair is equal to a pair, and one text of a pair to
    a single text.

    Args:
        read: What is read.
        held_out: What should not be.

    Returns:
        One entry for each text of `read` that is found.
    """
    places: dict[str, str] = {}
    for text in held_out:
        for key in {text_key(text.texts), *map(normalise, text.texts)}:
            places.setdefault(key, text.where)
    overlaps = []
    for text in read:
        place = places.get(text_key(text.texts))
        if place is not None:
            shown = " / ".join(text.texts)[:_SHOWN_CHARACTERS]
            overlaps.append(Overlap(shown, text.where, place))
    return overlaps


def refuse_overlaps(overlaps: Sequence[Overlap], phase: str) -> None:
    """Refuses to pretrain on texts that the model is to be tested on.

    Args:
        overlaps: From `find_overlaps`.
        phase: Name of the phase that would read them.

    Raises:
        DataError: There are any; says how many and shows the first.
    """
    if not overlaps:
        return
    first = overlaps[0]
    raise DataError(
        f"phase {phase} would read {len(overlaps)} texts of dev or test rows, for example "
        f"{first.text!r} ({first.where}, which is {first.held_out}). Remove them from what it "
        "reads, or set task.transductive: true if pretraining may see the texts (never the labels) "
        "of what is tested."
    )
