"""Held-out split by document: decided by a hash of the document alone, never by its place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from jaxrecipes.data.documents import Item, ItemType
from jaxrecipes.errors import ConfigError


@dataclass(frozen=True)
class Split:
    """One side of a held-out split.

    Attributes:
        part: Which side.
        held_out: Share of the documents (in expectation) that is held out, in (0, 1).
        seed: Another seed gives another split.
    """

    part: Literal["train", "held_out"]
    held_out: float
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises a ConfigError where a value is out of range."""
        if self.part not in ("train", "held_out"):
            raise ConfigError(f"split.part: unknown {self.part!r}; expected train or held_out.")
        if not 0.0 < self.held_out < 1.0:
            raise ConfigError(f"split.held_out: {self.held_out} is outside of (0, 1).")


def stable_fraction(key: str, seed: int) -> float:
    """Maps a key to [0, 1), the same on every machine, Python version and host."""
    digest = hashlib.sha256(f"{seed}\x00{key}".encode()).digest()
    # 53 bits, so that the quotient is exact and can never round up to 1.0.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def is_held_out(key: str, *, held_out: float, seed: int) -> bool:
    """Tells whether a key (a document id, a group) belongs to the held-out side."""
    return stable_fraction(key, seed) < held_out


def split_key(document: Item) -> str:
    """Returns what decides a document's side: its group, or else its text.

    The text and not the id, so that two copies of one text never stand on both sides.
    """
    if document.group is not None:
        return f"group\x00{document.group}"
    return f"text\x00{hashlib.sha256(document.text.encode()).hexdigest()}"


def select_part(documents: Iterable[ItemType], split: Split) -> Iterator[ItemType]:
    """Yields the documents (or examples) of one side of the split, in their order."""
    for document in documents:
        held_out = is_held_out(split_key(document), held_out=split.held_out, seed=split.seed)
        if held_out == (split.part == "held_out"):
            yield document
