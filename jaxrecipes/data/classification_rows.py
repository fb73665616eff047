"""Labelled texts: read with their labels checked, and the numbers that classes have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxrecipes.data.docstring_task import docstring_rows
from jaxrecipes.data.documents import ChangedRows, ReadReport, check_unique_ids
from jaxrecipes.data.example_rows import ExampleRows
from jaxrecipes.data.example_shapes import Shape
from jaxrecipes.data.example_sources import ALL_ROLES, find_shape
from jaxrecipes.data.examples import Example, Labelled
from jaxrecipes.data.sources import SourceSpec, read_rows, resolve_source
from jaxrecipes.durable import read_manifest, write_json
from jaxrecipes.errors import DataError

_LABELS: tuple[Shape, ...] = ("classification", "sentence_pair")
_VERSION = 1


def read_labelled(spec: SourceSpec | str | Path) -> list[Labelled]:
    """Reads a source of labelled texts or pairs of texts.

    Args:
        spec: The source, or the path of a file; rows such as {"text": "...", "label": "..."} or
            {"sentence1": "...", "sentence2": "...", "label": "..."}, others by a mapping; or
            docstrings, labelled with their package (`docstring_task`).

    Returns:
        Its examples in order, with unique ids, none of their texts empty.

    Raises:
        ConfigError: The specification is wrong.
        DataError: The input is missing or damaged, holds rows of another shape, or a text is empty;
            the message names file and line.
    """
    spec = spec if isinstance(spec, SourceSpec) else SourceSpec(str(spec))
    source = resolve_source(spec, roles=ALL_ROLES)
    if source.kind == "docstrings":
        return docstring_rows(source)
    shape = find_shape(source)
    # Text with labels beside it is a corpus to `find_shape`; here labels are asked for.
    shape = "classification" if shape == "documents" else shape
    if shape not in _LABELS:
        raise DataError(
            f"{spec.reference}: the rows are of shape {shape}; expected labelled texts, of shape "
            f"{' or '.join(_LABELS)}."
        )
    rows = ChangedRows(ExampleRows(spec.columns, ReadReport(), shape), _full)
    examples = list(check_unique_ids(read_rows(source, rows), spec.reference))
    if not examples:
        raise DataError(f"{spec.reference}: there are no rows; expected at least one.")
    return examples


def _full(example: Example | None, where: str) -> Labelled:
    """Refuses an example with an empty text."""
    if not isinstance(example, Labelled) or not all(text.strip() for text in example.texts):
        raise DataError(
            f"{where}: a text is empty; expected one with at least a word. Leave the row out."
        )
    return example


@dataclass(frozen=True)
class LabelMap:
    """The classes of a task: their number is their place.

    Attributes:
        names: The labels as text, sorted (whole numbers by value), without repetition.
    """

    names: tuple[str, ...]

    @classmethod
    def of_training(cls, examples: Sequence[Labelled]) -> LabelMap:
        """Collects the labels of training examples.

        Raises:
            DataError: There are fewer than two classes.
        """
        found = {example.label for example in examples}
        if len({str(label) for label in found}) < 2:
            where = examples[0].where if examples else "the training rows"
            raise DataError(
                f"{where} and all {len(examples)} rows have the label "
                f"{next(iter(found), None)!r}; expected at least two classes to tell apart."
            )
        if all(isinstance(label, int) for label in found):
            return cls(tuple(str(label) for label in sorted(found, key=int)))
        return cls(tuple(sorted({str(label) for label in found})))

    def numbers(self, examples: Iterable[Labelled]) -> list[int]:
        """Looks the labels of examples up.

        Raises:
            DataError: A label does not occur in the training rows; names file and line.
        """
        places = {name: place for place, name in enumerate(self.names)}
        numbers = []
        for example in examples:
            place = places.get(str(example.label))
            if place is None:
                raise DataError(
                    f"{example.where}: the label {example.label!r} does not occur in the training "
                    f"rows, which have: {', '.join(self.names)}. Correct the label, or train on "
                    "rows that have it."
                )
            numbers.append(place)
        return numbers

    def save(self, path: Path) -> None:
        """Writes the map as JSON, durably."""
        write_json(path, {"schema_version": _VERSION, "labels": list(self.names)})

    @classmethod
    def load(cls, path: Path) -> LabelMap:
        """Reads what `save` wrote.

        Raises:
            DataError: The file is missing or damaged.
        """
        values = read_manifest(
            path, version=_VERSION, missing="there is no label map.", again="Train again."
        )
        names = values.get("labels")
        if not isinstance(names, list) or len(names) < 2:
            raise DataError(f"{path}: key 'labels' is {names!r}; expected a list of names.")
        return cls(tuple(str(name) for name in names))
