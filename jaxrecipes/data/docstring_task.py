"""Tasks that every machine has: from which package is a docstring, and what does a name do?"""

from __future__ import annotations

from collections.abc import Iterator

from jaxrecipes.data.documents import Document, ReadReport
from jaxrecipes.data.examples import Conversation, Labelled
from jaxrecipes.data.sources import ResolvedSource, read_documents
from jaxrecipes.data.split import stable_fraction
from jaxrecipes.errors import ConfigError

# Where each split begins and ends in [0, 1).
SPLITS = {"train": (0.0, 0.7), "dev": (0.7, 0.85), "test": (0.85, 1.0)}


def docstring_rows(source: ResolvedSource) -> list[Labelled]:
    """Makes docstrings rows of a task: the text without its name, labelled with its package.

    Names that end alike (`numpy.sum`, `jax.numpy.sum`) are in one split, since much of their text
    is the same.

    Args:
        source: Of kind docstrings; its `split` is train, dev or test: 70, 15 and 15 % of the names.

    Returns:
        The rows in order.

    Raises:
        ConfigError: Another split is asked for.
    """
    split = source.spec.split
    if split not in SPLITS:
        raise ConfigError(
            f"{source.spec.reference}: split is {split!r}; docstrings with labels have the splits "
            f"{', '.join(SPLITS)}"
        )
    low, high = SPLITS[split]
    return [
        row
        for document in read_documents(source)
        if low <= stable_fraction(str(document.group), 0) < high
        for row in [_row(document)]
        if row.texts[0]
    ]


def _row(document: Document) -> Labelled:
    _, _, text = document.text.partition("\n\n")
    return Labelled(
        id=document.id,
        where=f"docstring of {document.id}",
        texts=(text.strip(),),
        label=document.id.split(".")[0],
        group=document.group,
    )


def docstring_chats(source: ResolvedSource, report: ReadReport) -> Iterator[Conversation]:
    """Makes docstrings chats: what a name does, answered by the first paragraph about it.

    Args:
        source: Of kind docstrings.
        report: Counts those without such a paragraph as dropped.

    Yields:
        Chats of two turns, in the order of the docstrings.
    """
    read = ReadReport()
    for document in read_documents(source, read):
        _, _, text = document.text.partition("\n\n")
        answer = " ".join(text.strip().partition("\n\n")[0].split())
        if not answer:
            report.drop("no first paragraph", document.id)
            continue
        messages = (
            {"role": "user", "content": f"What is {document.id} in Python?"},
            {"role": "assistant", "content": answer},
        )
        report.documents += 1
        report.characters += len(answer)
        where = f"docstring of {document.id}"
        yield Conversation(document.id, where, messages, group=document.group)
