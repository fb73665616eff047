"""Documents in one file with random access: what methods that choose an order read from."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from jaxrecipes.data.documents import Document
from jaxrecipes.errors import DataError

DOCUMENTS, OFFSETS = "documents.jsonl", "offsets.npy"


def write_document_file(documents: Iterable[Document], folder: Path) -> int:
    """Writes documents and the places of their lines.

    Args:
        documents: The documents, in order.
        folder: An existing folder; it gets `documents.jsonl` and `offsets.npy`.

    Returns:
        How many documents were written.

    Raises:
        OSError: The folder cannot be written.
    """
    offsets = [0]
    with (folder / DOCUMENTS).open("wb") as file:
        for document in documents:
            record = {"id": document.id, "text": document.text}
            if document.group is not None:
                record["group"] = document.group
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            offsets.append(file.tell())
    np.save(folder / OFFSETS, np.array(offsets, np.int64))
    return len(offsets) - 1


class DocumentFile:
    """The documents that `write_document_file` wrote; texts stay on disk until they are asked for.

    Attributes:
        folder: Where they are.
    """

    def __init__(self, folder: str | Path) -> None:
        """Opens a folder.

        Raises:
            DataError: There are no documents in it, or its two files do not belong together.
        """
        self.folder = Path(folder)
        try:
            self._offsets = np.load(self.folder / OFFSETS, mmap_mode="r")
            size = (self.folder / DOCUMENTS).stat().st_size
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.folder}: no documents can be read from here ({error}); expected "
                f"{DOCUMENTS} and {OFFSETS}. Run the same command again to write them anew."
            ) from None
        if self._offsets.ndim != 1 or not len(self._offsets) or self._offsets[-1] != size:
            raise DataError(
                f"{self.folder}: {DOCUMENTS} has {size} bytes, {OFFSETS} describes another file. "
                "Remove the folder and run the same command again."
            )

    def __len__(self) -> int:
        """Returns the number of documents."""
        return len(self._offsets) - 1

    @property
    def bytes(self) -> int:
        """Size of the documents' file."""
        return int(self._offsets[-1])

    def __getitem__(self, index: int) -> Document:
        """Returns one document.

        Raises:
            IndexError: There is no such document.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)} in {self.folder}")
        record = json.loads(self._bytes[self._offsets[index] : self._offsets[index + 1]])
        return Document(record["id"], record["text"], record.get("group"))

    def __iter__(self) -> Iterator[Document]:
        """Yields the documents in order."""
        return (self[index] for index in range(len(self)))

    def text(self, index: int) -> str:
        """Returns the text of one document."""
        return self[index].text

    @cached_property
    def _bytes(self) -> mmap.mmap | bytes:
        with (self.folder / DOCUMENTS).open("rb") as file:
            # An empty file cannot be mapped.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if len(self) else b""
